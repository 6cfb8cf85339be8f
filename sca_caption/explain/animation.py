"""Animated GIF of an explanation: one frame per word with the spatial attention at the word."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sca_caption.explain.overlay import GREY_LEVELS, blend, multiples, opacity_of, paint, scale_top
from sca_caption.runtime.atomic_files import atomic_write

if TYPE_CHECKING:
    from sca_caption.explain.explanation import Explanation


PIXELS = 170_000  # of the photograph; bounds the file size
WIDTHS = (300, 640)  # minimum and maximum width in pixels
WORD_DURATION, LAST_DURATION = 800, 2000  # milliseconds
MARGIN, LINE_HEIGHT, NOTE_HEIGHT = 12, 30, 22
TEXT_SIZE, NOTE_SIZE = 20, 13  # pixels
PAST, CURRENT, FUTURE = (40, 40, 40), (255, 255, 255), (165, 165, 165)  # colours of words
NOTE_COLOR = (105, 105, 105)
MARK = (186, 54, 85)  # background of the current word, a colour of the overlay's colour map
GREYS, STRENGTHS = 40, 24  # number of grey levels and of strengths in the palette


def save_animation(explanation: "Explanation", path: Path, flag: str = "--explain") -> None:
    """Write an `explanation.Explanation` as a looping GIF. Raises UserError if the file cannot be written."""
    colours = palette()
    quantized = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames(explanation)]
    durations = [WORD_DURATION] * (len(quantized) - 1) + [LAST_DURATION]
    with atomic_write(path, flag) as temporary:
        quantized[0].save(
            temporary,
            "GIF",
            save_all=True,
            append_images=quantized[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def frames(explanation: "Explanation") -> list[Image.Image]:
    """Draw one frame per word, all of the same size: photograph with the top layer's spatial weights, and the caption."""
    spatial = [layer.spatial for layer in explanation.trace.layers if layer.spatial is not None]
    photograph = resize_photograph(explanation.photograph)
    width = max(WIDTHS[0], photograph.width)
    layout = word_layout(explanation.words, width)
    height = photograph.height + 2 * MARGIN + LINE_HEIGHT * (1 + max(row for row, _ in layout)) + NOTE_HEIGHT
    top = scale_top(*spatial)
    drawn = []
    for t, word in enumerate(explanation.words):
        frame = Image.new("RGB", (width, height), "white")
        note = f"“{word}”: probability {explanation.trace.probabilities[t]:.2f}"
        picture = photograph
        if spatial:
            weights = spatial[-1][t]
            values = multiples(weights, photograph.size, explanation.transform)
            picture = Image.fromarray(paint(photograph, values, top, explanation.transform))
            note += f", spatial weights up to {weights.max() * weights.size:.1f} times uniform"
        frame.paste(picture, ((width - picture.width) // 2, 0))
        drawing = ImageDraw.Draw(frame)
        for number, ((row, left), each) in enumerate(zip(layout, explanation.words, strict=True)):
            upper = photograph.height + MARGIN + row * LINE_HEIGHT
            if number == t:
                right = left + font(TEXT_SIZE).getlength(each)
                drawing.rounded_rectangle((left - 4, upper, right + 4, upper + LINE_HEIGHT - 5), 5, fill=MARK)
            colour = CURRENT if number == t else PAST if number < t else FUTURE
            drawing.text(
                (left, upper + (LINE_HEIGHT - 5) / 2), each, font=font(TEXT_SIZE), fill=colour, anchor="lm"
            )
        size = NOTE_SIZE if font(NOTE_SIZE).getlength(note) <= width - 2 * MARGIN else NOTE_SIZE - 2
        if font(size).getlength(note) > width - 2 * MARGIN:
            note = note.replace("spatial weights up to ", "up to ")
        drawing.text((MARGIN, height - MARGIN), note, font=font(size), fill=NOTE_COLOR, anchor="ls")
        drawn.append(frame)
    return drawn


def resize_photograph(photograph: Image.Image) -> Image.Image:
    """Resize a photograph to about PIXELS pixels, but at most the maximum width."""
    width, height = photograph.size
    scale = min((PIXELS / (width * height)) ** 0.5, WIDTHS[1] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return photograph.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def word_layout(words: tuple[str, ...], width: int) -> list[tuple[int, float]]:
    """Line and left edge of each word of a caption wrapped at `width` pixels."""
    layout, row, left = [], 0, float(MARGIN)
    for word in words:
        length = font(TEXT_SIZE).getlength(word)
        if left > MARGIN and left + length > width - MARGIN:
            row, left = row + 1, float(MARGIN)
        layout.append((row, left))
        left += length + font(TEXT_SIZE).getlength(" ") + 4
    return layout


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Matplotlib's own font, which is the same on every system."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def palette() -> Image.Image:
    """Palette of all frames: greys blended with the colours of all strengths. One palette prevents flicker."""
    white = 1.0
    # Greys near white are left out, because Pillow's approximate lookup would use them for white.
    plain = np.append(np.linspace(GREY_LEVELS[0], 0.93, GREYS - 1), white)[None]
    colours = [blend(plain, np.zeros(plain.shape))]
    for strength in np.linspace(0, 1, STRENGTHS + 1)[1:]:
        transparency = 1 - float(opacity_of(np.array(strength)))
        count = 3 + round(12 * transparency)
        greys = np.linspace(*GREY_LEVELS, count)[None]
        colours.append(blend(greys, np.full(greys.shape, strength)))
    mark = np.linspace(np.array(MARK) / 255, white, 6)[None]
    levels = (255 * np.concatenate([*colours, mark], 1)[0] + 0.5).astype(np.uint8)
    assert len(levels) <= 256
    image = Image.new("P", (1, 1))
    image.putpalette(levels.tobytes())
    return image
