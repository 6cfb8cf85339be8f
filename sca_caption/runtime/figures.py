"""Matplotlib figures without pyplot: layout in inches, text measurement, reproducible files."""

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sca_caption.runtime.atomic_files import atomic_write, check_writable
from sca_caption.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = (".pdf", ".png", ".svg")
ANIMATION_FORMAT = ".gif"
POINTS = 72  # per inch
DPI = 200  # of a Page
HINTING = 1.04  # largest ratio of the width of hinted letters to their nominal width
METADATA = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # no dates, so files are reproducible
RC_PARAMS = {"svg.hashsalt": "sca_caption", "pdf.fonttype": 42}  # fixed ids; TrueType text can be edited


class Page:
    """A figure with positions in inches, measured from the left and from the top."""

    def __init__(self, width: float, height: float):
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure((width, height), dpi=DPI)

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Add axes at a rectangle."""
        bottom = self.height - top - height
        rectangle = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(rectangle)

    def image(self, left: float, top: float, width: float, height: float, pixels: np.ndarray) -> "Axes":
        """Draw an image, uint8 (h, w, 3), in the centre of a rectangle, with its aspect ratio."""
        axes = self.axes(left, top, width, height)
        axes.imshow(pixels, interpolation="antialiased")
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, text: str, size: float, **style: Any) -> None:
        """Draw a line of text with its baseline at `top`. size: in points."""
        options: dict[str, Any] = {"va": "baseline", "parse_math": False, "fontsize": size} | style
        self.figure.text(left / self.width, 1 - top / self.height, text, **options)


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Upper bound of the width of a line of text in inches. size: in points."""
    return HINTING * size * sum(_advance(character, weight) for character in text)


@cache
def _advance(character: str, weight: str) -> float:
    """Advance width of a character of one point in inches, without kerning."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=100, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        wide, narrow = (
            text_to_path.get_text_width_height_descent(text, font, False)[0]
            for text in (f".{character}.", "..")
        )
    return (wide - narrow) / 100 / POINTS


def fit_text(
    text: str, width: float, size: float, min_size: float, weight: str = "normal"
) -> tuple[str, float]:
    """Fit a text into `width` inches. Returns (text, size in points).

    First the size is reduced, but not below `min_size`. Then the end of the text is replaced by an ellipsis.
    """
    size = max(min_size, min(size, size * width / max(text_width(text, size, weight), 1e-9)))
    whole = text
    while text_width(text, size, weight) > width * 1.001 and len(text) > 1:
        whole = whole[:-1]
        text = whole.rstrip() + "…"
    return text, size


def wrap_text(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Break a text into lines of at most `width` inches. A single wider word stays whole."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size, weight) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def check_figure(path: Path, flag: str, extra_formats: tuple[str, ...] = ()) -> None:
    """Raise UserError if no figure can be written to `path`. extra_formats: further accepted suffixes."""
    formats = sorted((*FORMATS, *extra_formats))
    if path.suffix.lower() not in formats:
        raise UserError(f"{flag} {path}: unknown figure format {path.suffix!r}; one of: {', '.join(formats)}")
    check_writable(path, flag)


def save_figure(figure: "Figure", path: Path, flag: str, *, dpi: int = 150, outlines: bool = True) -> None:
    """Write a figure in the format of the path's suffix. Equal figures give equal bytes.

    dpi: of .png files, and of images in other formats. outlines: draw text in .svg files as paths, which look the same
    everywhere, instead of text, which can be searched and edited. Raises UserError if the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # so that dollar signs in names do not start formulas
    kind = path.suffix.lower()
    settings: Any = RC_PARAMS | {"svg.fonttype": "path" if outlines else "none"}
    with warnings.catch_warnings(), rc_context(settings), atomic_write(path, flag) as temporary:
        # Matplotlib draws a box instead of a missing glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format=kind[1:], dpi=dpi, metadata=METADATA.get(kind))


def shorten_name(name: str, max_length: int = 24) -> str:
    """Shorten a name to at most `max_length` characters, with an ellipsis at its end."""
    return name if len(name) <= max_length else name[: max_length - 1].rstrip() + "…"
