"""Which channels are shown, and where what excites them is."""

import numpy as np
import pytest
from PIL import Image

from sca_caption.explain.channel_patches import (
    PATCH_SHARE,
    crop_patch,
    find_peaks,
    relative_changes,
    rising_channels,
    strongest_channels,
)
from sca_caption.images import Transform


def made_weights(words: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(channels), words).astype(np.float32)


def by_rank(values: np.ndarray, count: int, other_than=()) -> set[int]:
    """The set that `strongest_channels` promises, by brute force: all pairs by rank in their word, then by value."""
    pairs = []
    for t, row in enumerate(values):
        for channel, value in enumerate(row):
            rank = sum(other > value for other in row)
            pairs.append((rank, -value, t, channel))
    chosen = []
    for *_, channel in sorted(pairs):
        if channel not in chosen and channel not in other_than:
            chosen.append(channel)
    return set(chosen[:count])


@pytest.mark.parametrize(
    ("words", "channels", "count"), [(1, 30, 6), (4, 30, 6), (12, 30, 6), (3, 4, 6), (9, 200, 12)]
)
def test_the_strongest_channels(words, channels, count):
    weights = made_weights(words, channels)
    found = strongest_channels(weights, count)
    assert len(found) == len(set(found)) == min(count, channels)
    assert set(found) == by_rank(weights, count)
    if words == 1:
        assert found == np.argsort(-weights[0])[:count].tolist()
    if words <= count:  # every word's own is there, in the words' order
        tops = weights.argmax(1).tolist()
        assert [channel for channel in found if channel in tops] == list(dict.fromkeys(tops))


def test_the_channels_that_change_most():
    weights = made_weights(5, 40)
    change = relative_changes(weights)
    np.testing.assert_allclose(change.mean(0), 0, atol=1e-6)
    shown = strongest_channels(weights, 6)
    found = rising_channels(weights, 6, shown)
    assert set(found) == by_rank(weights / weights.mean(0), 6, shown) and not set(found) & set(shown)


def test_peaks_are_the_greatest_values():
    maps = np.random.default_rng(0).normal(size=(3, 7, 4, 5)).astype(np.float32)
    at, greatest, around = find_peaks(maps)
    np.testing.assert_array_equal(at, maps.reshape(3, 7, 20).argmax(-1))
    np.testing.assert_array_equal(greatest, maps.max((2, 3)))
    row, column = divmod(int(at[1, 2]), 5)
    edged = np.pad(maps[1, 2], 1, mode="edge")
    assert around[1, 2] == pytest.approx(edged[row : row + 3, column : column + 3].mean(), rel=1e-5)


def test_of_equal_peaks_the_one_amid_the_greatest_wins():
    values = np.zeros((6, 6), np.float32)
    values[0, 0] = 6.0
    values[3:6, 3:6] = 5.0
    values[4, 4] = 6.0
    assert int(find_peaks(values)[0]) == 4 * 6 + 4


@pytest.mark.parametrize("mode", ["resize", "crop"])
@pytest.mark.parametrize("size", [(160, 80), (60, 200), (90, 90)])
def test_a_patch_is_the_neighbourhood_of_its_position(mode, size):
    transform, (width, height) = Transform(32, mode), size
    ys, xs = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([xs, ys, 0 * xs], 2).astype(np.uint8))  # every pixel says where it is
    left, top = ((width - min(size)) / 2, (height - min(size)) / 2) if mode == "crop" else (0, 0)
    wide, high = (min(size),) * 2 if mode == "crop" else size
    for at in (0, 5 * 9 + 3, 80):
        found = crop_patch(image, at, (9, 9), transform)
        side = min(PATCH_SHARE * (wide * high) ** 0.5, wide, high)
        assert found.size == (round(side),) * 2
        x, y = np.asarray(found)[:, :, :2].reshape(-1, 2).mean(0) + 0.5
        wanted = [left + (at % 9 + 0.5) / 9 * wide, top + (at // 9 + 0.5) / 9 * high]
        wanted[0] = min(max(wanted[0], left + side / 2), left + wide - side / 2)
        wanted[1] = min(max(wanted[1], top + side / 2), top + high - side / 2)
        assert (x, y) == pytest.approx(wanted, abs=1.2)


def test_a_patch_of_the_smallest_image():
    found = crop_patch(Image.new("RGB", (1, 1), "red"), 3, (2, 2), Transform(32))
    assert found.getpixel((0, 0)) == (255, 0, 0)
