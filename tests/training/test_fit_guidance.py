"""Guides fitted to data files: images or stored features, what is stored, and data that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sca_caption import checkpoint
from sca_caption.cli import fit
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.datasets.sources.records import Source
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.confidence import RIDGE, spearman
from sca_caption.images import ImageError, Transform
from sca_caption.inference.batching import reader
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.fit_guidance import FITS, features_from_dataset, held_out_confidence
from tests.helpers.guided_captioners import SIZE, guided_checkpoint
from tests.helpers.made_photos import fail, message, record, write

TEXTS = ("a man runs", "a dog sits on grass", "red water", "blue water", "the cat runs")
CPU = torch.device("cpu")


def source(train: int = 60, val: int = 24) -> Source:
    splits = ["train"] * train + ["val"] * val
    records = [record(i, split, [TEXTS[i % 5], TEXTS[(i + 1) % 5]]) for i, split in enumerate(splits)]
    return Source("made", "made for a test", records)


def as_images(path: Path, size: int = 32) -> Path:
    write(source(), path, transform=Transform(size), encoding="raw")
    return path


def as_features(path: Path, model: SCACNN, size: int = 32) -> Path:
    """The data file of `source` with the encoder's maps of `model`."""

    @torch.inference_mode()
    def encode(images: np.ndarray) -> list[np.ndarray]:
        return [each.numpy() for each in model.encode(torch.from_numpy(images).permute(0, 3, 1, 2))]

    of = {"backbone": model.config.backbone, "layers": list(model.config.layers)}
    options = {"encoding": "features", "encode": encode, "features_of": of}
    write(source(), path, transform=Transform(size), **options)
    return path


def run(guide: str, path: Path, data: Path, *flags: str) -> int:
    return fit.main([guide, str(path), "--data", str(data), "--device", "cpu", *flags])


@pytest.fixture
def path(tiny_checkpoint, tmp_path):
    """A checkpoint to change, without guides."""
    copy = tmp_path / "best.pt"
    copy.write_bytes(tiny_checkpoint.read_bytes())
    return copy


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """The file of a checkpoint with every guide, of which three read images."""
    saved = tmp_path_factory.mktemp("guided") / "best.pt"
    checkpoint.save(saved, guided_checkpoint())
    return saved


@pytest.mark.parametrize("guide", FITS)
def test_stored_features_fit_the_guides_that_images_fit(guide, path, tmp_path):
    """Up to the float16 of stored features."""
    images, features = as_images(tmp_path / "images.h5"), tmp_path / "features.h5"
    as_features(features, checkpoint.load(path).captioner)
    other = tmp_path / "other.pt"
    other.write_bytes(path.read_bytes())
    for file, data in ((path, images), (other, features)):
        if guide == "confidence":  # reads a rating, which comes of the same features
            assert run("consensus", file, data) == 0
        assert run(guide, file, data) == 0
    ours, theirs = (checkpoint.load(file).guides[guide] for file in (path, other))
    if guide == "confidence":
        assert set(ours.ratings) == set(theirs.ratings) == {"consensus"}
        assert (theirs.slope, theirs.intercept) == pytest.approx((ours.slope, ours.intercept), abs=0.1)
        return
    data = CaptionDataset(features)
    maps = torch.from_numpy(np.stack([data.features(row)[0] for row in range(20)])).float()
    assert ours.channels == theirs.channels == (64,)
    assert_close(ours(maps), theirs(maps), rtol=0.05, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("guide", FITS)
def test_the_program_replaces_one_guide_and_keeps_the_others(guide, guided, tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes(guided.read_bytes())
    data = CaptionDataset(as_images(tmp_path / "images.h5", SIZE))
    before = checkpoint.load(path)
    rows = data.indices(FITS[guide][1]).tolist()
    fitted = FITS[guide][0](before, Mixture([data]), rows, CPU).guide
    assert run(guide, path, data.path) == 0
    after = checkpoint.load(path)
    assert set(after.guides) == set(before.guides) and after.metrics == before.metrics
    for name, value in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], value), name
    for name, trained in after.guides.items():
        expected = fitted if name == guide else before.guides[name]
        assert trained.settings() == expected.settings(), name
        for key, value in trained.state_dict().items():
            assert torch.equal(value, expected.state_dict()[key]), (name, key)
    if guide != "confidence":
        assert fitted.channels == (320, 1280)  # of both networks


@pytest.mark.slow
def test_confidence_of_a_model_that_reads_images_needs_images(guided, tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(guided.read_bytes())
    features = as_features(tmp_path / "features.h5", checkpoint.load(path).captioner, SIZE)
    assert run("confidence", path, features) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and path.read_bytes() == guided.read_bytes()
    for part in (str(features), "features", "objects", "presence", "consensus", "--encoding jpeg"):
        assert part in error
    # Of stored features alone, the other guides read the captioner's map only.
    assert run("presence", path, features) == 0
    assert checkpoint.load(path).guides["presence"].channels == (320,)


def test_confidence_is_fitted_to_the_captions_of_the_pipeline(path, tmp_path):
    """Good captions are those above the median; the model has the maximum likelihood for what the pipeline gives."""
    data = CaptionDataset(as_images(tmp_path / "images.h5"))
    assert run("consensus", path, data.path) == 0
    rows = data.indices("val").tolist()[:22]
    fitted = FITS["confidence"][0](checkpoint.load(path), Mixture([data]), rows, CPU)
    found, lines = fitted.guide, fitted.lines
    pipeline = CaptionPipeline.load(path, device="cpu")
    read = reader(data, pipeline.networks, pipeline.transform)
    best = [result.captions[0] for result in pipeline.stream(rows, read)]
    cider = Cider([[ptb_tokenize(text) for text in data.references(row)] for row in rows])
    scores = np.array(cider.score([ptb_tokenize(each.text) for each in best])[1])
    assert (scores > np.median(scores)).sum() > (scores > np.mean(scores)).sum()
    # At the maximum of the likelihood, the residuals are orthogonal to what the model reads, up to its ridge.
    residuals = (scores > np.median(scores)) - np.array(
        [found.probability(each.mean_log_prob, each.ratings) for each in best]
    )
    weights = [found.slope, found.ratings["consensus"], found.intercept]
    inputs = [[each.mean_log_prob, each.ratings["consensus"], 1.0] for each in best]
    assert residuals @ np.array(inputs) == pytest.approx(RIDGE * np.array(weights), abs=1e-6)
    assert found.ratings["consensus"] and len(lines) == 5 and f"over {len(rows)} images" in lines[0]


def test_held_out_confidence_is_of_models_that_did_not_see_the_caption():
    random = np.random.default_rng(0)
    x, rating = random.normal(-1, 0.5, 60), random.random(60)
    good = random.random(60) < 1 / (1 + np.exp(-(3 * x + 2)))
    before = held_out_confidence(x, good, {"consensus": rating})
    other = good.copy()
    other[7] = not other[7]
    after = held_out_confidence(x, other, {"consensus": rating})
    fold = np.arange(60) % 10 == 7
    assert np.array_equal(before[fold], after[fold]) and not np.isclose(before[~fold], after[~fold]).any()
    assert spearman(before, x) > 0.5


@pytest.mark.parametrize("guide", FITS)
def test_a_split_without_images_is_named(guide, path, tmp_path):
    data = as_images(tmp_path / "images.h5")
    found, mixture = checkpoint.load(path), Mixture([CaptionDataset(data)])
    rows = mixture.indices("test").tolist()
    message(lambda: FITS[guide][0](found, mixture, rows, CPU), str(data), "0 images")


@pytest.mark.parametrize("guide", FITS)
def test_an_image_that_cannot_be_read_is_named(guide, path, tmp_path, monkeypatch, capsys):
    data = as_images(tmp_path / "images.h5")
    before = path.read_bytes()
    monkeypatch.setattr(
        CaptionDataset, "image", lambda *_: fail(ImageError("photo 3.png", "cut short; copy it again"))
    )
    assert run(guide, path, data) == 2
    error = capsys.readouterr().err
    assert "photo 3.png" in error and error.count("\n") == 1 and path.read_bytes() == before


def test_features_are_those_of_the_encoder(path, tmp_path):
    found, data = checkpoint.load(path), CaptionDataset(as_images(tmp_path / "images.h5"))
    rows = [3, 0, 60]
    features, channels = features_from_dataset(found, Mixture([data]), rows, CPU)
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([data.image(row) for row in rows])).permute(0, 3, 1, 2)
        means = found.captioner.encode(images)[0].mean((2, 3))
    assert channels == [64]
    assert_close(features, means.sign() * means.abs().sqrt(), rtol=1e-4, atol=1e-5)
