"""Terminal output: captions, safe single lines, and a progress bar."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.config import BATCH_SIZE
from sca_caption.inference.confidence_scale import level_of, percent_of
from sca_caption.runtime.errors import UserError, format_message, supports_colour

if TYPE_CHECKING:
    from tqdm import tqdm

    from sca_caption.inference.captions import Caption, Result


class Printer:
    """Prints captions: `path<TAB>caption`, and the caption alone for a single image.

    scores: print the confidence before each caption. by_confidence: print at `finish`, the least confident first.
    names_only: print the file's name instead of its path.
    """

    def __init__(self, single: bool, scores: bool, by_confidence: bool, names_only: bool = False):
        self.single, self.scores, self.names_only = single, scores, names_only
        self.waiting: list[tuple[float, int, str]] | None = [] if by_confidence else None

    def write(self, index: int, result: "Result") -> None:
        if result.error:
            return
        file = Path(result.item).name if self.names_only else result.item
        start = "" if self.single else f"{one_line(file)}\t"
        scores = [f"{shown_confidence(caption)}\t" if self.scores else "" for caption in result.captions]
        lines = zip(scores, result.captions, strict=True)
        text = "\n".join(start + score + caption.text for score, caption in lines)
        if self.waiting is None:
            show(text)
        else:
            self.waiting.append((confidence(result.captions[0]), index, text))

    def finish(self) -> None:
        for _, _, text in sorted(self.waiting or ()):
            show(text)


def confidence(caption: "Caption") -> float:
    """Its calibrated confidence, else its mean log-probability."""
    return caption.mean_log_prob if caption.confidence is None else caption.confidence


def shown_confidence(caption: "Caption") -> str:
    """The confidence with two decimals, in the colour of its level if standard output supports colours."""
    if caption.confidence is None:
        return f"{caption.mean_log_prob:.2f}"
    text = f"{percent_of(caption.confidence) / 100:.2f}"
    return f"\x1b[{level_of(caption.confidence).sgr}m{text}\x1b[0m" if supports_colour(sys.stdout) else text


def one_line(text: object) -> str:
    """Text for one line of the terminal: control and unencodable characters become escapes."""
    text = "".join(
        c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in str(text)
    )
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def show(text: str) -> None:
    """Print and flush. Raises UserError if standard output is a file on a full disk."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again as it exits
        raise UserError(f"cannot write to standard output ({error.strerror}); free space") from error


def progress(total: int, quiet: bool) -> tuple["tqdm", Callable[[str], None]]:
    """A progress bar if stderr is a terminal and there are many images, and a function that prints lines beside it."""
    from tqdm import tqdm

    off = quiet or total <= BATCH_SIZE or not sys.stderr.isatty()
    bar = tqdm(total=total, unit="image", disable=off, dynamic_ncols=True)
    return bar, partial(print, file=sys.stderr) if off else partial(tqdm.write, file=sys.stderr)


def report_all(paths: Sequence[Path]) -> int:
    """Print for each path why it cannot be opened."""
    from sca_caption.images import ImageError, open_image

    for path in paths:
        try:
            open_image(path)
        except ImageError as error:
            print(format_message("error", one_line(error), sys.stderr), file=sys.stderr)
    return 2


def missing_words_note(result: "Result") -> str:
    """The note about an image whose best caption lacks forced words."""
    missing = ", ".join(result.captions[0].missing_words)
    return one_line(f"{result.item}: found no grammatical caption with {missing}; this one is without")
