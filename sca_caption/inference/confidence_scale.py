"""The levels of confidence: their limits, words and colours, for the terminal, the gallery and the pages.

A level is decided by the whole per cent that is shown. Pages get the levels as data, in the script and the style sheet of
`gallery_page/confidence_scale.*`, which the functions here complete.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).with_name("gallery_page")
DIGITS = 4  # decimal places of a confidence in results files


@dataclass(frozen=True)
class Level:
    """A level of confidence.

    Attributes:
        name: in class names and as the short word.
        minimum: the lowest per cent that belongs to it.
        words: the long form.
        light, dark: its colour on light and on dark pages; contrast 4.5 with their backgrounds (WCAG 2.2, 1.4.3).
        sgr: the parameter of its colour on a terminal.
    """

    name: str
    minimum: int
    words: str
    light: str
    dark: str
    sgr: str


LEVELS = (
    Level("high", 60, "High confidence", "#2c7035", "#8fc47a", "32"),
    Level("medium", 40, "Medium confidence", "#8a5a00", "#e5b454", "33"),
    Level("low", 0, "Low confidence", "#b3261e", "#ff8a80", "31"),
)


def percent_of(confidence: float) -> int:
    """The whole per cent that is shown of a confidence, the same for one that a results file has rounded."""
    return math.floor(100 * round(confidence, DIGITS) + 0.5)


def level_of(confidence: float) -> Level:
    """The level of a confidence from 0 to 1."""
    return next(level for level in LEVELS if percent_of(confidence) >= level.minimum)


def files() -> dict[str, str]:
    """The contents of the two files of a page that loads them, by name."""
    return {"confidence_scale.js": script(module=True), "confidence_scale.css": style()}


def script(module: bool) -> str:
    """The JavaScript that shows confidences, as a module or as part of a script."""
    levels = [{"name": each.name, "minimum": each.minimum, "words": each.words} for each in LEVELS]
    text = (PAGES / "confidence_scale.js").read_text(encoding="utf-8")
    text = text.replace("{{levels}}", json.dumps(levels)).replace("{{digits}}", str(DIGITS))
    return text if module else text.replace("export ", "")


def style() -> str:
    """The style sheet of what `script` shows. Pages define --line, the colour of the meter's empty part."""
    text = (PAGES / "confidence_scale.css").read_text(encoding="utf-8")
    for mode in ("light", "dark"):
        colours = " ".join(f"--confidence-{each.name}: {getattr(each, mode)};" for each in LEVELS)
        text = text.replace("{{" + mode + "}}", colours)
    return text + "".join(
        f".confidence-{each.name} {{ --level: var(--confidence-{each.name}); }}\n" for each in LEVELS
    )
