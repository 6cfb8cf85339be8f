"""The images that excite channels most are those that a pass over all of them, one by one, finds."""

import numpy as np
import pytest
from PIL import Image

from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.explain.channel_patches import TOP_IMAGES, crop_patch, find_examples, find_peaks
from sca_caption.images import Transform
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import unattended_maps
from tests.helpers.made_photos import SMALL, dataset, message, write


@pytest.fixture
def data(tmp_path) -> CaptionDataset:
    write(dataset(9), tmp_path / "made.h5")
    return CaptionDataset(tmp_path / "made.h5")


def test_the_images_that_excite_most(tiny_checkpoint, data):
    pipeline, rows = CaptionPipeline.load(tiny_checkpoint, batch_size=3), data.indices("train")
    found = find_examples(pipeline, data)
    assert found.image_count == len(rows) == 7
    maps = [unattended_maps(pipeline.sca_cnn, stack([data.image(row)])) for row in rows]
    for layer, examples in enumerate(found.layers):
        for channel in range(0, examples.rows.shape[1], 7):
            values = [float(of_image[layer][0, channel].max()) for of_image in maps]
            kept = [values[list(rows).index(row)] for row in examples.rows[:, channel]]
            np.testing.assert_allclose(kept, sorted(values, reverse=True)[:TOP_IMAGES], rtol=1e-4)
            first = list(rows).index(examples.rows[0, channel])
            at = int(find_peaks(maps[first][layer][0, channel])[0])
            wanted = crop_patch(Image.fromarray(data.image(rows[first])), at, examples.grid, SMALL)
            np.testing.assert_array_equal(found.patches(layer, channel)[0], wanted)


def test_at_most_max_images_are_searched(tiny_checkpoint, data):
    pipeline = CaptionPipeline.load(tiny_checkpoint, batch_size=2)
    found = find_examples(pipeline, data, max_images=2)
    assert found.image_count == 2 and len(found.patches(0, 0)) == 2
    assert set(found.layers[0].rows[:2].ravel()) == {0, 6} and (found.layers[0].rows[2] == -1).all()


def test_what_cannot_be_looked_through(tiny_checkpoint, data):
    several = CaptionPipeline.load([tiny_checkpoint, tiny_checkpoint])
    assert "the attention of 2 models cannot be shown" in message(lambda: find_examples(several, data))
    pipeline = CaptionPipeline.load(tiny_checkpoint)
    data.encoding = "features"
    assert "holds features, and patches need photographs" in message(lambda: find_examples(pipeline, data))


def test_images_come_at_the_models_size(tiny_checkpoint, tmp_path):
    write(dataset(5), tmp_path / "large.h5", transform=Transform(48))
    found = find_examples(CaptionPipeline.load(tiny_checkpoint), CaptionDataset(tmp_path / "large.h5"))
    assert found.patches(0, 1)[0].size == (8, 8)  # a quarter of the model's 32
