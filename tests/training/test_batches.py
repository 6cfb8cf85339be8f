"""Training batches: one image with all of its captions, augmentation that fits the captions, collation."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from sca_caption.config import TrainConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training import batches
from sca_caption.training.batches import MAX_WORDS, CaptionedImages, Example, collate
from sca_caption.vocab import EOS, PAD
from tests.helpers.made_photos import encoded, record, write
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import QUICK, captioner, run, source

pytestmark = pytest.mark.usefixtures("toy", "no_tensorboard")


def test_each_image_is_read_once_per_epoch(data, tmp_path, monkeypatch):
    reads, image = Counter(), CaptionDataset.image

    def counting(self, index):
        reads[int(index)] += 1
        return image(self, index)

    monkeypatch.setattr(CaptionDataset, "image", counting)
    run(data, tmp_path, QUICK)
    assert reads == {
        i: 2 for i in range(10)
    }  # all of training and validation in each of two epochs, none of test


def test_an_image_is_encoded_once_for_all_of_its_captions(data, tmp_path, monkeypatch):
    seen, encode = [], SCACNN.encode

    def counting(self, images):
        seen.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(SCACNN, "encode", counting)
    run(data, tmp_path, dataclasses.replace(QUICK, epochs=1))
    assert seen == [3, 3, 1, 3]  # batches of three of seven images, and the validation's


def redder_left(image: torch.Tensor) -> bool:
    half = image.float()[0].mean(0)
    return bool(half[:16].mean() > half[16:].mean())


def test_images_whose_captions_name_a_side_are_never_mirrored(tmp_path):
    given = source(sided=True)
    for i, each in enumerate(given.records):
        image = Image.new("RGB", (32, 32), "black")
        image.paste(Image.new("RGB", (16, 32), "red"), (0, 0))
        given.records[i] = dataclasses.replace(each, read=record(i, data=encoded(image)).read)
    write(given, tmp_path / "sided.h5", encoding="raw")
    data = CaptionDataset(tmp_path / "sided.h5")
    views = CaptionedImages(Mixture([data]), TrainConfig(), augment=True)
    for i in range(7):
        mirrored = sum(not redder_left(views[epoch, i].image) for epoch in range(60))
        if i % 2:
            assert mirrored == 0, data.references(i)
        else:
            assert 15 < mirrored < 45  # of 60 coins
    plain = CaptionedImages(Mixture([data]), TrainConfig(), augment=False)
    assert all(np.array_equal(plain[0, i].image.permute(1, 2, 0), data.image(i)) for i in range(7))


def test_augmentation_depends_only_on_seed_epoch_and_image(data):
    one, same, other = (
        CaptionedImages(Mixture([CaptionDataset(data.path)]), TrainConfig(seed=seed), augment=True)
        for seed in (3, 3, 4)
    )
    wanted = one[5, 2].image
    assert wanted.shape == (3, 32, 32) and wanted.dtype == torch.uint8
    assert [same[key] is None for key in ((0, 0), (7, 1))] == [False, False]  # others are read in between
    assert torch.equal(same[5, 2].image, wanted)
    assert not torch.equal(other[5, 2].image, wanted)
    assert not torch.equal(one[6, 2].image, wanted)
    assert one[5, 2].captions == data.captions(2)


def test_crop_scale_and_color_jitter(tmp_path):
    ramp = np.tile(np.arange(32, dtype=np.uint8)[None, :, None] * 2 + 96, (32, 1, 3))
    given = source()
    given.records[0] = record(0, data=encoded(Image.fromarray(ramp)))
    write(given, tmp_path / "ramp.h5", encoding="raw")

    def ranges(**changes):
        """Ranges of the mean pixel value over the columns of each view, and over the views."""
        views = CaptionedImages(
            Mixture([CaptionDataset(tmp_path / "ramp.h5")]), TrainConfig(**changes), augment=True
        )
        found = torch.stack([views[epoch, 0].image.float() for epoch in range(40)])
        return found.mean((1, 2)).aminmax(dim=1), found.mean((1, 2, 3)).aminmax()

    (columns, same), (fewer, lit) = (
        ranges(crop_scale=1.0, color_jitter=0.0), ranges(crop_scale=0.1, color_jitter=0.4)
    )  # fmt: skip
    assert (columns.max - columns.min).min() > 62 * 0.75**0.5 - 3 > 2 * (fewer.max - fewer.min).min()
    assert same.max - same.min < 62 * 0.25 < lit.max - lit.min


def test_worker_processes_make_the_same_batches(data):
    views = CaptionedImages(Mixture([data]), TrainConfig(), augment=True)
    keys = [(1, i) for i in (4, 2, 6, 0, 1)]
    alone = list(batches.loader(views, keys, QUICK, collate))
    helped = list(batches.loader(views, keys, dataclasses.replace(QUICK, workers=2), collate))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.captions, b.captions)
        assert torch.equal(a.image_index, b.image_index)


def test_long_captions_are_truncated(tmp_path):
    given = source()
    given.records[0] = dataclasses.replace(given.records[0], captions=("dog " * 60,))
    write(given, tmp_path / "long.h5", encoding="raw")
    views = CaptionedImages(Mixture([CaptionDataset(tmp_path / "long.h5")]), TrainConfig(), augment=False)
    assert [len(caption) for caption in views[0, 0].captions] == [MAX_WORDS]


def test_training_on_stored_features_equals_training_on_images(data, tmp_path):
    """Up to the rounding of float16, with a frozen CNN and no augmentation."""
    config = dataclasses.replace(QUICK, augment=False)
    model = captioner(data).eval()

    @torch.no_grad()
    def encode(pixels):
        return [x.numpy() for x in model.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2))]

    write(source(), tmp_path / "features.h5", encoding="features", encode=encode)
    features = CaptionDataset(tmp_path / "features.h5")
    assert len(features.features(0)) == 2  # the attended map and the shortcut past it
    wanted, _ = run(data, tmp_path / "images", config)
    found, _ = run(features, tmp_path / "features", config)
    for a, b in zip(found, wanted, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_collate_adds_eos_and_pads():
    images = torch.arange(3 * 3 * 32 * 32).view(3, 3, 32, 32).to(torch.uint8)
    captions = [[[4, 5], []], [[6]], [[7, 8, 9]]]
    batch = collate(
        [Example(*pair, None, style) for *pair, style in zip(images, captions, (1, 0, 1), strict=True)]
    )
    assert batch.styles.tolist() == [1, 0, 1] and batch.fractions is None
    assert torch.equal(batch.images, images)
    assert batch.captions.tolist() == [
        [4, 5, EOS, PAD],
        [EOS, PAD, PAD, PAD],
        [6, EOS, PAD, PAD],
        [7, 8, 9, EOS],
    ]
    assert batch.image_index.tolist() == [0, 0, 1, 2]
    features = collate(
        [
            Example((torch.ones(2), torch.zeros(3)), [[4]], None, 0),
            Example((torch.zeros(2), torch.ones(3)), [[5]], None, 0),
        ]
    )
    assert [x.tolist() for x in features.images] == [[[1, 1], [0, 0]], [[0, 0, 0], [1, 1, 1]]]
