"""The generated data set: captions are checked against the pixels and against the scene."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from sca_caption.datasets import shapes
from sca_caption.datasets.sources import find
from sca_caption.runtime.errors import UserError

COUNT = 200


def centroid(picture: np.ndarray, colour: str) -> tuple[float, float, float]:
    """Return x, y and area of the pixels near a colour, as fractions of the image's width and area."""
    near = np.abs(picture.astype(int) - shapes.COLOURS[colour]).max(2) < 30
    y, x = np.nonzero(near)
    size = len(picture)
    return (x.mean() + 0.5) / size, (y.mean() + 0.5) / size, near.sum() / size**2


def test_drawn_shapes_agree_with_the_scene():
    for scene in (shapes.scene(0, index) for index in range(0, COUNT, 5)):
        picture = np.asarray(shapes.draw(scene))
        found = [centroid(picture, shape.colour) for shape in scene.shapes]
        for (x, y, area), shape in zip(found, scene.shapes, strict=True):
            assert abs(x - shape.centre[0]) < 0.03 and abs(y - shape.centre[1]) < 0.05, scene
            assert (area > 0.06) == (shape.size == "large"), scene
        if len(found) == 2:
            (x1, y1, _), (x2, y2, _) = found
            side = {"above": y2 - y1, "below": y1 - y2, "to the left of": x2 - x1, "to the right of": x1 - x2}
            assert side[scene.where] > 0.3, scene
        else:
            place = {"on the left": (0.27, 0.5), "on the right": (0.73, 0.5), "at the top": (0.5, 0.27)}
            place |= {"at the bottom": (0.5, 0.73), "in the middle": (0.5, 0.5)}
            wanted = place[scene.where]
            assert np.hypot(found[0][0] - wanted[0], found[0][1] - wanted[1]) < 0.1, scene
        level = {"white": 250, "grey": 165, "black": 20}[scene.background]
        assert np.abs(picture[0, 0].astype(int) - level).max() <= 12, scene


def test_captions_agree_with_the_scene():
    for scene in (shapes.scene(0, index) for index in range(COUNT)):
        captions = shapes.captions(scene)
        assert len(set(captions)) == 5, scene
        for caption in captions:
            assert_agrees(caption, scene)


def assert_agrees(caption: str, scene: shapes.Scene) -> None:
    colours = {shape.colour: shape for shape in scene.shapes}
    words = caption.split()
    for i, word in enumerate(words):
        if word in shapes.KINDS:
            shape = colours[words[i - 1]]
            assert shape.kind == word, caption
            assert words[i - 2] not in shapes.SIZES or words[i - 2] == shape.size, caption
    relation = next((r for r in shapes.RELATIONS if f" {r} a " in caption or f" {r} the " in caption), None)
    if relation and len(scene.shapes) == 2:
        in_order = caption.index(scene.shapes[0].colour) < caption.index(scene.shapes[1].colour)
        assert relation == (scene.where if in_order else shapes.INVERSE[scene.where]), caption


def test_records():
    source = find("shapes", count=50)
    assert source.counts() == {"train": 40, "val": 5, "test": 5} and not source.problems
    again = find("shapes", count=50)
    assert source.records == again.records
    for record, copy in zip(pickle.loads(pickle.dumps(source.records)), again.records, strict=True):
        picture = Image.open(io.BytesIO(record.read()))
        assert record.read() == copy.read() and (picture.size, picture.mode) == ((96, 96), "RGB")
    other = find("shapes", count=50, seed=1)
    assert sum(a.captions == b.captions for a, b in zip(source.records, other.records, strict=True)) < 5
    with pytest.raises(UserError, match="at least 10"):
        find("shapes", count=3)


def test_vocabulary_is_small_and_its_words_are_frequent():
    captions = [caption for record in find("shapes", count=300).records for caption in record.captions]
    words = [word for caption in captions for word in caption.split()]
    assert len(set(words)) <= 40 and min(words.count(word) for word in set(words)) >= 20
    assert max(len(caption.split()) for caption in captions) <= 16


def test_samples_are_not_in_the_data_set():
    samples = shapes.sample(6)
    known = {shapes.scene(0, index) for index in range(800)}
    scenes = [shapes.scene(0, -1 - index) for index in range(6)]
    assert not known & set(scenes)
    for (picture, caption), scene in zip(samples, scenes, strict=True):
        assert picture.size == (96, 96) and caption in shapes.captions(scene)
