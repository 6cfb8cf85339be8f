"""Matplotlib's figures: laid out in inches, and written to files, with neither a screen nor pyplot's global state."""

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sca_caption.runtime.atomic_files import check_writable, replacing
from sca_caption.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


KINDS = (".pdf", ".png", ".svg")
ANIMATED = ".gif"  # of what moves
POINTS = 72  # an inch
DPI = 200  # of a page
HINTED = 1.04  # letters on pixels may be so much wider than drawn to scale
UNDATED = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same figure is the same file
WRITTEN = {"svg.hashsalt": "sca_caption", "pdf.fonttype": 42}  # TrueType, which other programs can edit


class Page:
    """A figure on which everything has its place in inches, from the left and from the top."""

    def __init__(self, width: float, height: float):
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure((width, height), dpi=DPI)

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        bottom = self.height - top - height
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def image(self, left: float, top: float, width: float, height: float, pixels: np.ndarray) -> "Axes":
        """An image uint8 (h, w, 3) in the middle of a rectangle, its proportions kept."""
        axes = self.axes(left, top, width, height)
        axes.imshow(pixels, interpolation="antialiased")
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, text: str, size: float, **style) -> None:
        """A line of text whose baseline is at `top`; `size` in points."""
        style = {"va": "baseline", "parse_math": False} | style
        self.figure.text(left / self.width, 1 - top / self.height, text, fontsize=size, **style)


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """How wide a line of text of `size` points is at most, in inches."""
    return HINTED * size * sum(_advance(character, weight) for character in text)


@cache
def _advance(character: str, weight: str) -> float:
    """The width of a character of one point, in inches; measured alone, as kerning is small."""
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


def fitted(text: str, width: float, size: float, least: float, weight: str = "normal") -> tuple[str, float]:
    """A text and its size in points, smaller or with its end cut off where it would be wider than `width` inches."""
    size = max(least, min(size, size * width / max(text_width(text, size, weight), 1e-9)))
    whole = text
    while text_width(text, size, weight) > width * 1.001 and len(text) > 1:
        whole = whole[:-1]
        text = whole.rstrip() + "…"
    return text, size


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """A text as lines no wider than `width` inches, unless a word alone is wider."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size, weight) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def check_figure(path: Path, flag: str, also: tuple[str, ...] = ()) -> None:
    """Raise UserError where no figure could be written to `path`, before work is spent on it."""
    kinds = sorted((*KINDS, *also))
    if path.suffix.lower() not in kinds:
        raise UserError(f"{flag} {path}: unknown kind of picture {path.suffix!r}; one of: {', '.join(kinds)}")
    check_writable(path, flag)


def save_figure(figure: "Figure", path: Path, flag: str, *, dpi: int = 150, outlines: bool = True) -> None:
    """Write a figure in the format that the name ends in; the same figure gives the same bytes.

    dpi: of .png, and of the images in others. outlines: whether text in .svg is drawn as shapes, which look the same
    everywhere, rather than as text, which can be searched and edited. Raises UserError where it cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with dollar signs is no formula
    kind = path.suffix.lower()
    settings = WRITTEN | {"svg.fonttype": "path" if outlines else "none"}
    with warnings.catch_warnings(), rc_context(settings), replacing(path, flag) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
        figure.savefig(temporary, format=kind[1:], dpi=dpi, metadata=UNDATED.get(kind))


def shortened(name: str, most: int = 24) -> str:
    """A name that fits beside a picture."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
