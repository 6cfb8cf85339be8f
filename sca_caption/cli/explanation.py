"""`caption.py --explain`: the figure of the one image."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sca_caption.errors import UserError
from sca_caption.figures import ANIMATED, check_figure

FLAG, DATA_FLAG = "--explain", "--explain-data"


def check_explanation(path: Path, data: Path | None, images: Sequence[Path]) -> None:
    """Raise UserError for what is known to fail before the model is loaded."""
    check_figure(path, FLAG, also=(ANIMATED,))
    if len(images) != 1:
        raise UserError(f"{FLAG} draws one image, found {len(images)}; give one")
    if data:
        if path.suffix.lower() == ANIMATED:
            raise UserError(f"{DATA_FLAG} is for the channels, which {ANIMATED} does not show; leave it out")
        from sca_caption.store import CaptionData

        CaptionData(data)


class Drawing:
    """Draws the explanation of the image that it is given. Raises UserError where the file cannot be written."""

    def __init__(self, path: Path, describer: "Describer", data: Path | None):  # noqa: F821
        self.path, self.describer, self.data = path, describer, data

    def write(self, index: int, result: "Result") -> None:  # noqa: F821
        if result.error:
            return
        from sca_caption.explain import explained

        examples = None
        if self.data:
            from tqdm import tqdm

            from sca_caption.channel_examples import find_examples
            from sca_caption.store import CaptionData

            bar = partial(tqdm, desc="patches", unit="batch", disable=not sys.stderr.isatty(), leave=False)
            examples = find_examples(self.describer, CaptionData(self.data), progress=bar)
        found = explained(self.describer, result.item, result.captions[0], result.trace, examples)
        found.save(self.path, FLAG)
