"""FeatureCache: a frozen CNN's maps are those of `encode`, and training on them equals training on images."""

import dataclasses
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training import feature_cache
from sca_caption.training.caption_task import CaptionTask
from sca_caption.training.feature_cache import FeatureCache
from tests.helpers.mixtures import mixture_of, write_two
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import QUICK, captioner, run

pytestmark = pytest.mark.usefixtures("toy", "no_tensorboard")

PLAIN = dataclasses.replace(QUICK, augment=False)
CACHED = dataclasses.replace(PLAIN, cache_features=True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    return write_two(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("changes", [{}, {"feature_dropout": 0.4}], ids=["plain", "dropout"])
def test_maps_are_those_of_the_cnn_rounded_to_float16(changes, data, monkeypatch):
    """Dropout is not cached: it differs from step to step."""
    monkeypatch.setattr(feature_cache, "BATCH_SIZE", 3)  # the last batch is smaller
    model, rows = captioner(data, **changes).train(), [5, 0, 3, 10, 2, 7, 1]
    cache = FeatureCache(Mixture([data]), model, rows, quiet=True)
    assert cache.encoding == "features" and len(cache) == len(data) == 11
    model.eval()
    for row in rows:
        pixels = torch.from_numpy(data.image(row)).permute(2, 0, 1)[None]
        with torch.no_grad():
            wanted = [x[0].half() for x in model.encode(pixels)]
        found = cache.features(row)
        assert len(found) == len(wanted) == 2  # the attended map and the shortcut past it
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == np.float16
            # Sums of a batch of another size may round differently.
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=2e-3, atol=1e-4)
    with pytest.raises(KeyError):
        cache.features(4)


def test_everything_else_is_the_data_sets(paths):
    mixture = mixture_of(paths)
    model = captioner(mixture)
    cache = FeatureCache(mixture, model, [0, 12], quiet=True)
    copied = pickle.loads(pickle.dumps(cache))  # as a worker process gets it that is not forked
    for each in (cache, copied):
        assert each.vocabulary == mixture.vocabulary and each.parts == mixture.parts
        assert each.captions(12) == mixture.captions(12) and each.style(12) == 1
        assert each.references(12) == mixture.references(12)
        assert each.text_groups == 3 and each.text_captions(2) == mixture.text_captions(2)
        assert np.array_equal(each.features(12)[0], cache.features(12)[0])
        with pytest.raises(AttributeError):
            _ = each.nothing


@pytest.mark.parametrize(
    "changes",
    [{}, {"workers": 1}, {"captions_per_image": 1, "texts_per_step": 2}],
    ids=["images", "one worker", "texts"],
)
def test_training_with_the_cache_equals_training_without(changes, paths, tmp_path):
    """Up to the rounding of float16, also of two data files, of which rows repeat."""
    mixture = mixture_of(paths)
    model = {"word_rank": 4, "styles": mixture.styles}
    losses = []
    for name, config in (("images", PLAIN), ("cached", CACHED)):
        history, _ = run(mixture, tmp_path / name, dataclasses.replace(config, **changes), **model)
        losses.append([record["loss"] for record in history])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_the_cnn_runs_once_per_image_and_never_in_training(data, tmp_path, monkeypatch):
    reads, pixels, encode, image = Counter(), [], SCACNN.encode, CaptionDataset.image

    def encoding(self, images):
        pixels.append(len(images) if isinstance(images, torch.Tensor) else 0)
        return encode(self, images)

    def reading(self, index):
        reads[int(index)] += 1
        return image(self, index)

    monkeypatch.setattr(SCACNN, "encode", encoding)
    monkeypatch.setattr(CaptionDataset, "image", reading)
    task = CaptionTask(captioner(data), data, CACHED)
    assert sum(pixels) == 10 and reads == dict.fromkeys(range(10), 1)  # not the image of test
    task.start_epoch(0)
    for batch in task.batches(0):
        task.loss(batch)
    task.validate()
    assert sum(pixels) == 10 and sum(reads.values()) == 10 and len(pixels) > 3


def test_stored_features_are_not_cached_again(data):
    data.encoding, data.features_of = "features", {}
    task = CaptionTask(captioner(data), data, CACHED)
    assert isinstance(task.dataset.data, Mixture)
