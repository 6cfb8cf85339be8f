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


def covered(picture: np.ndarray, fill: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """How many of the 9 samples of each pixel show `fill`, from the pixel's colour; -1: a third colour is in it."""
    mixed = [np.round((k * fill.astype(float) + (9 - k) * ground) / 9) for k in range(10)]
    distance = np.stack([np.abs(picture - colour).max(2) for colour in mixed])
    return np.where(distance.min(0) <= 1, distance.argmin(0), -1)


def mask_and_box(found: shapes.Instance) -> tuple[np.ndarray, tuple[int, ...]]:
    """The mask, and the smallest box around its pixels by their coordinates."""
    y, x = np.nonzero(found.mask)
    return found.mask, (x.min(), y.min(), x.max() + 1, y.max() + 1)


@pytest.mark.parametrize("size", [96, 33])
def test_masks_are_the_drawn_pixels_and_boxes_fit_them(size):
    for scene in (shapes.scene(3, index) for index in range(12)):
        picture = np.asarray(shapes.draw(scene, size)).astype(int)
        found = shapes.instances(scene, size)
        assert [shapes.CLASSES[each.label] for each in found] == [shape.short for shape in scene.shapes]
        for each, shape in zip(found, scene.shapes, strict=True):
            x, y = (int(c * size) for c in shape.centre)
            mask, box = mask_and_box(each)
            assert each.box == box and mask.shape == (size, size) and mask[y, x]
            share = covered(picture, picture[y, x], picture[0, 0])
            if len(scene.shapes) == 1:
                assert (share >= 0).all() and (mask == (share > 4)).all(), scene
            else:  # pixels with the other shape in them are not mixtures of these two colours
                assert mask[share > 4].all() and not mask[(share >= 0) & (share < 5)].any(), scene
        assert sum(each.mask.astype(int) for each in found).max() == 1  # disjoint


def test_a_mask_ends_where_a_later_shape_hides_it():
    below = shapes.Shape("square", "red", "large", (0.5, 0.5))
    above = shapes.Shape("square", "blue", "large", (0.6, 0.5))
    alone = [shapes.instances(shapes.Scene((shape,), "white", "", 0), 60)[0] for shape in (below, above)]
    first, second = shapes.instances(shapes.Scene((below, above), "white", "", 0), 60)
    assert second.box == alone[1].box and second.mask[alone[1].mask].all()
    assert not first.mask[second.mask].any()
    # A pixel with both shapes and the background in it shows more of the later shape than it would show alone.
    assert (second.mask & ~alone[1].mask & ~alone[0].mask).sum() == 0
    assert ((first.mask | second.mask) == (alone[0].mask | alone[1].mask)).all()  # no gap between them
    assert first.box == (*alone[0].box[:2], second.box[0], alone[0].box[3])
    picture = np.asarray(shapes.draw(shapes.Scene((below, above), "white", "", 0), 60)).astype(int)
    red, blue = picture[30, first.box[0] + 2], picture[30, 36]
    assert first.mask[(picture == red).all(2)].all() and not first.mask[(picture == blue).all(2)].any()


def test_a_hidden_shape_has_no_instance_and_the_image_cuts_others_off():
    small = shapes.Shape("circle", "red", "small", (0.5, 0.5))
    large = shapes.Shape("square", "green", "large", (0.5, 0.5))
    (only,) = shapes.instances(shapes.Scene((small, large), "black", "", 0))
    assert shapes.CLASSES[only.label] == "green square"
    both = shapes.instances(shapes.Scene((large, small), "black", "", 0))
    assert len(both) == 2 and not (both[0].mask & both[1].mask).any()
    corner = shapes.Shape("circle", "red", "large", (0.0, 1.0))
    (cut,) = shapes.instances(shapes.Scene((corner,), "black", "", 0), 50)
    assert cut.box[0] == 0 and cut.box[3] == 50 and cut.mask[49, 0]
    gone = shapes.Shape("circle", "red", "small", (2.0, 2.0))
    assert shapes.instances(shapes.Scene((gone,), "black", "", 0)) == []


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
