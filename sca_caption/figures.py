"""Writing matplotlib's figures to files, with neither a screen nor pyplot's global state."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.atomic import check_writable, replacing
from sca_caption.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (".pdf", ".png", ".svg")


def check_figure(path: Path, flag: str) -> None:
    """Raise UserError where no figure could be written to `path`, before work is spent on it."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{flag} {path}: unknown kind of picture {path.suffix!r}; one of: {', '.join(KINDS)}")
    check_writable(path, flag)


def save_figure(figure: "Figure", path: Path, flag: str) -> None:
    """Write a figure in the format that the name ends in. Raises UserError where it cannot be written."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with dollar signs is no formula
    with warnings.catch_warnings(), replacing(path, flag) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def shortened(name: str, most: int = 24) -> str:
    """A name that fits beside a picture."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
