"""Overlay of spatial weights: positions, scale in multiples of uniform attention, colours."""

import numpy as np
import pytest
from PIL import Image

from sca_caption.explain.overlay import (
    MIN_SCALE_MAX,
    blend,
    multiples,
    paint,
    scale_strip,
    scale_ticks,
    scale_top,
    strength,
)
from sca_caption.images import Transform, fit

RESIZE, CROP = Transform(32), Transform(32, "crop")


def peaked(row: int, column: int, grid=(9, 9)) -> np.ndarray:
    """Weights of sum 1 with a third of it in one position."""
    weights = np.full(grid, 2 / 3 / (grid[0] * grid[1] - 1))
    weights[row, column] = 1 / 3
    return weights


@pytest.mark.parametrize("transform", [RESIZE, CROP])
@pytest.mark.parametrize("size", [(120, 60), (50, 170), (90, 90), (40, 41)])
@pytest.mark.parametrize("at", [(0, 0), (2, 6), (8, 3), (4, 4)])
def test_the_greatest_weight_is_where_the_model_sees_its_position(transform, size, at):
    found = multiples(peaked(*at), size, transform)
    assert found.shape == size[::-1]
    # What lights up there in the square that the model sees?
    y, x = np.unravel_index(found.argmax(), found.shape)
    spot = np.zeros((*found.shape, 3), np.uint8)
    spot[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 255
    seen = fit(Image.fromarray(spot), transform)[:, :, 0].astype(float)
    rows, columns = np.arange(transform.size) + 0.5, np.arange(transform.size) + 0.5
    centre = (rows @ seen.sum(1) / seen.sum(), columns @ seen.sum(0) / seen.sum())
    cell = transform.size / 9
    for place, position in zip(centre, at, strict=True):
        assert abs(place - (position + 0.5) * cell) <= 0.75 * cell


@pytest.mark.parametrize("size", [(120, 60), (51, 170), (7, 3)])
def test_multiples_average_one_over_what_is_seen_and_are_nothing_elsewhere(size):
    weights = np.random.default_rng(0).dirichlet(np.ones(20)).reshape(4, 5)
    whole = multiples(weights, size, RESIZE)
    assert whole.mean() == pytest.approx(1, rel=1e-4) and whole.min() >= 0
    part = multiples(weights, size, CROP)
    side = min(size)
    assert part.sum() / side**2 == pytest.approx(1, rel=1e-4)
    columns = np.flatnonzero(part.any(0))
    assert len(columns) <= side and np.count_nonzero(part.any(1)) <= side
    middle = (columns[0] + columns[-1] + 1) / 2
    assert abs(middle - size[0] / 2) <= 1


def test_even_weights_are_one_everywhere_and_have_no_colour():
    even = multiples(np.full((3, 3), 1 / 9), (40, 30), RESIZE)
    np.testing.assert_allclose(even, 1, rtol=1e-5)
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    pixels = paint(photograph, even, MIN_SCALE_MAX, RESIZE).astype(int)
    assert np.ptp(pixels, axis=2).max() <= 1  # grey
    attended = paint(photograph, 3 * even, MIN_SCALE_MAX, RESIZE).astype(int)
    assert np.ptp(attended, axis=2).min() > 40  # coloured on dark and light pixels alike


def test_the_scale_is_common_and_does_not_exaggerate():
    even, sharp = np.full((2, 3, 3), 1 / 9), np.zeros((1, 2, 2))
    sharp[0, 1, 1] = 1.0
    assert scale_top(even, None) == MIN_SCALE_MAX and scale_top(None) == MIN_SCALE_MAX
    assert scale_top(even, np.stack([peaked(1, 1)])) == pytest.approx(81 / 3)
    assert scale_top(even, sharp) == 4
    np.testing.assert_allclose(strength(np.array([0, 0.5, 1, 2, 4, 8]), 4.0), [0, 0, 0, 0.5, 1, 1])
    for top in (4.0, 9.4, 81.0, 700.0, 5000.0):
        ticks = scale_ticks(top)
        assert ticks[0] == 1 and 2 <= len(ticks) <= 5 and ticks[-1] <= top


def test_the_strip_shows_the_colours_that_the_photograph_gets():
    strip, top = scale_strip(8.0, 4), 8.0
    grey = paint(Image.new("RGB", (1, 1), (128, 128, 128)), np.array([[2.0]]), top, RESIZE)
    np.testing.assert_array_equal(strip[0, 1], grey[0, 0])  # 8 ** (1 / 3)


def test_what_the_model_does_not_see_is_faded():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8))
    pixels = paint(photograph, np.ones((20, 60)), MIN_SCALE_MAX, CROP).astype(int)
    assert pixels[:, :20].min() > 200 and pixels[:, 40:].min() > 200
    assert pixels[:, 20:40].min() < 100


def test_dark_and_light_photographs_use_the_same_greys():
    levels = np.random.default_rng(0).integers(0, 40, (30, 40, 3), np.uint8)
    dark, light = (
        paint(Image.fromarray(each), np.ones((30, 40)), MIN_SCALE_MAX, RESIZE)
        for each in (levels, levels + 200)
    )
    assert np.abs(dark.astype(int) - light).max() < 12
    flat = paint(Image.new("RGB", (5, 5), "black"), np.ones((5, 5)), MIN_SCALE_MAX, RESIZE)
    assert flat.max() < 80  # stays dark
    assert blend(np.ones((1, 1)), np.zeros((1, 1))).max() == 1


def test_weights_of_nothing_are_nothing():
    assert not multiples(np.zeros((3, 3), np.float32), (30, 20), Transform(32)).any()
