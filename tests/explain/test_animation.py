"""The GIF: one frame per word, the current word marked, the spatial weights at their positions."""

import numpy as np
import pytest
from PIL import Image

from sca_caption.explain.animation import MARK, WIDTHS, frames, palette, resize_photograph, word_layout
from tests.helpers.explanations import WORDS, made_explanation


@pytest.mark.parametrize("words", [WORDS, ("dog",), WORDS * 3])
def test_a_frame_a_word_and_the_last_one_longer(words, tmp_path):
    made_explanation(words).save(tmp_path / "why.gif")
    with Image.open(tmp_path / "why.gif") as gif:
        assert getattr(gif, "n_frames", 1) == len(words)
        if len(words) > 1:
            assert gif.info["loop"] == 0
        durations = []
        for t in range(len(words)):
            gif.seek(t)
            assert gif.convert("RGB").getpixel((1, gif.height - 2)) == (255, 255, 255)
            durations.append(gif.info["duration"])
        assert durations == [800] * (len(words) - 1) + [2000]
    assert (tmp_path / "why.gif").stat().st_size < 3e6


def test_the_current_word_is_marked():
    made = made_explanation()
    found = frames(made)
    places = word_layout(made.words, found[0].width)
    marks = []
    for frame in found:
        marked = (np.asarray(frame) == MARK).all(2)
        marked[: frame.height // 2] = False
        rows, columns = np.nonzero(marked)
        marks.append((rows.min(), columns.min()))
    for (row, left), (_, seen) in zip(places, marks, strict=True):
        assert row == 0 and abs(left - 4 - seen) <= 2


def test_words_wrap_inside_the_frame():
    words = ("extraordinarily",) * 8
    places = word_layout(words, 400)
    assert [row for row, _ in places] == sorted(row for row, _ in places) and places[-1][0] >= 2
    assert all(left < 400 - 100 for _, left in places)


def test_colour_is_where_the_weight_is():
    made = made_explanation(layers=(("top", 4, 2, 2),), size=(300, 300))
    made.trace.layers[0].spatial[:] = 0.02
    made.trace.layers[0].spatial[:, 1, 0] = 0.94
    side = resize_photograph(made.photograph).size[0]
    frame = np.asarray(frames(made)[0]).astype(int)[:side, :side]
    colour = np.ptp(frame, axis=2)
    quarter = side // 4
    assert colour[3 * quarter, quarter] > 60 and colour[quarter, 3 * quarter] <= 1


def test_a_model_without_spatial_attention_has_its_words_alone():
    found = frames(made_explanation(kinds="C"))
    assert len(found) == len(WORDS)
    side = resize_photograph(made_explanation().photograph).height
    np.testing.assert_array_equal(np.asarray(found[0])[:side], np.asarray(found[1])[:side])


@pytest.mark.parametrize("size", [(3, 2), (4000, 100), (100, 4000), (640, 480)])
def test_photographs_of_any_shape_become_frames_of_a_good_size(size):
    made = made_explanation(("a", "dog"), size=size)
    found = frames(made)
    assert len({frame.size for frame in found}) == 1
    assert WIDTHS[0] <= found[0].width <= WIDTHS[1] and found[0].width * found[0].height < 900_000


def test_the_palette_has_white_and_every_strength():
    colours = np.array(palette().getpalette()).reshape(-1, 3)
    assert len(colours) <= 256
    for wanted in ((255, 255, 255), MARK):
        assert (np.abs(colours - wanted).max(1) <= 1).any()
