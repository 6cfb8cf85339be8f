"""The words of a caption one after another, with where the model looked at each, as an animated GIF."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sca_caption.explain.overlay import GREY, blended, multiples, opacity_of, painted, scale_top
from sca_caption.runtime.atomic_files import atomic_write

if TYPE_CHECKING:
    from sca_caption.explain.explanation import Explanation


PIXELS = 170_000  # of the photograph, which bounds the size of the file
WIDTHS = (300, 640)  # pixels, from and to
A_WORD, LAST = 800, 2000  # milliseconds
MARGIN, LINE, NOTE_LINE = 12, 30, 22
TEXT, NOTE = 20, 13  # pixels
SAID, CURRENT, TO_COME, FAINT = (40, 40, 40), (255, 255, 255), (165, 165, 165), (105, 105, 105)
MARK = (186, 54, 85)  # behind the current word; of the colours of the weights
GREYS, STRENGTHS = 40, 24  # in the palette


def save_animation(explanation: "Explanation", path: Path, flag: str = "--explain") -> None:
    """Write the frames of an `explain.Explanation`, which repeat for ever. Raises UserError where that fails."""
    pictures = frames(explanation)
    colours = palette()
    pictures = [picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures]
    durations = [A_WORD] * (len(pictures) - 1) + [LAST]
    with atomic_write(path, flag) as temporary:
        pictures[0].save(
            temporary,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def frames(explanation: "Explanation") -> list[Image.Image]:
    """A frame a word, all of one size: the photograph under the top layer's spatial weights, the caption below it."""
    spatial = [layer.spatial for layer in explanation.trace.layers if layer.spatial is not None]
    photograph = fitting(explanation.photograph)
    width = max(WIDTHS[0], photograph.width)
    places = word_places(explanation.words, width)
    height = photograph.height + 2 * MARGIN + LINE * (1 + max(row for row, _ in places)) + NOTE_LINE
    top = scale_top(*spatial)
    made = []
    for t, word in enumerate(explanation.words):
        frame = Image.new("RGB", (width, height), "white")
        note = f"“{word}”: probability {explanation.trace.probabilities[t]:.2f}"
        picture = photograph
        if spatial:
            weights = spatial[-1][t]
            values = multiples(weights, photograph.size, explanation.transform)
            picture = Image.fromarray(painted(photograph, values, top, explanation.transform))
            note += f", spatial weights up to {weights.max() * weights.size:.1f} even shares"
        frame.paste(picture, ((width - picture.width) // 2, 0))
        drawing = ImageDraw.Draw(frame)
        for number, ((row, left), each) in enumerate(zip(places, explanation.words, strict=True)):
            upper = photograph.height + MARGIN + row * LINE
            if number == t:
                right = left + font(TEXT).getlength(each)
                drawing.rounded_rectangle((left - 4, upper, right + 4, upper + LINE - 5), 5, fill=MARK)
            colour = CURRENT if number == t else SAID if number < t else TO_COME
            drawing.text((left, upper + (LINE - 5) / 2), each, font=font(TEXT), fill=colour, anchor="lm")
        size = NOTE if font(NOTE).getlength(note) <= width - 2 * MARGIN else NOTE - 2
        if font(size).getlength(note) > width - 2 * MARGIN:
            note = note.replace("spatial weights up to ", "up to ")
        drawing.text((MARGIN, height - MARGIN), note, font=font(size), fill=FAINT, anchor="ls")
        made.append(frame)
    return made


def fitting(photograph: Image.Image) -> Image.Image:
    """A photograph of about PIXELS, within WIDTHS where its shape allows it."""
    width, height = photograph.size
    scale = min((PIXELS / (width * height)) ** 0.5, WIDTHS[1] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return photograph.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def word_places(words: tuple[str, ...], width: int) -> list[tuple[int, float]]:
    """Line and left edge of each word of a caption that wraps at `width` pixels."""
    places, row, left = [], 0, float(MARGIN)
    for word in words:
        length = font(TEXT).getlength(word)
        if left > MARGIN and left + length > width - MARGIN:
            row, left = row + 1, float(MARGIN)
        places.append((row, left))
        left += length + font(TEXT).getlength(" ") + 4
    return places


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own, which is the same everywhere."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def palette() -> Image.Image:
    """Colours for all frames and files, so that what stands still does not flicker: of greys under every strength."""
    white = 1.0
    plain = np.append(np.linspace(GREY[0], 0.93, GREYS - 1), white)[
        None
    ]  # white alone: Pillow looks up near misses
    colours = [blended(plain, np.zeros(plain.shape))]
    for amount in np.linspace(0, 1, STRENGTHS + 1)[1:]:
        shows = 1 - float(opacity_of(np.array(amount)))  # how much of the photograph
        count = 3 + round(12 * shows)
        greys = np.linspace(*GREY, count)[None]
        colours.append(blended(greys, np.full(greys.shape, amount)))
    mark = np.linspace(np.array(MARK) / 255, white, 6)[None]
    levels = (255 * np.concatenate([*colours, mark], 1)[0] + 0.5).astype(np.uint8)
    assert len(levels) <= 256
    made = Image.new("P", (1, 1))
    made.putpalette(levels.tobytes())
    return made
