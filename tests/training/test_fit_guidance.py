"""Guides fitted to data files: images or stored features, what is stored, and data that cannot be used."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import average, fit
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.datasets.sources.records import Source
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.confidence import RIDGE, ranks, spearman
from sca_caption.images import ImageError, Transform
from sca_caption.inference.batching import reader
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.fit_guidance import FITS, features_from_dataset, held_out_confidence
from sca_caption.vocab import Vocabulary
from tests.helpers.guided_captioners import SIZE, guided_checkpoint
from tests.helpers.made_photos import error_line, fail, message, record, write
from tests.helpers.tiny_captioner import STYLES, TINY, TINY_WORDS, save_styled, tiny_captioner

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
def path(request, tiny_checkpoint, tmp_path):
    """A checkpoint to change, without guides; with a word predictor for the guide that reads it."""
    copy = tmp_path / "best.pt"
    if "callspec" in dir(request.node) and request.node.callspec.params.get("guide") == "words":
        model = tiny_captioner(config=dataclasses.replace(TINY, word_rank=4))
        checkpoint.save(copy, Checkpoint(model, Vocabulary(TINY_WORDS), Transform(32)))
    else:
        copy.write_bytes(tiny_checkpoint.read_bytes())
    return copy


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """The file of a checkpoint with every guide."""
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
    if guide == "words":
        assert ours.thresholds == pytest.approx(theirs.thresholds, abs=1e-3)
        return
    data = CaptionDataset(features)
    maps = tuple(torch.from_numpy(np.stack(x)) for x in zip(*map(data.features, range(20)), strict=True))
    captioner = checkpoint.load(path).captioner
    state = captioner.start(captioner.encode(maps))
    assert_close(ours(state), theirs(state), rtol=0.05, atol=0.01)


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


def test_output_is_a_new_file_with_the_same_guide(path, tmp_path):
    data, output, before = (
        as_images(tmp_path / "images.h5"),
        tmp_path / "new" / "output.st",
        path.read_bytes(),
    )
    assert run("confidence", path, data, "--output", str(output), "--dtype", "int8") == 0
    assert path.read_bytes() == before and [*output.parent.iterdir()] == [output]
    average.main([str(tmp_path / "averaged.st"), str(path), "--dtype", "int8"])
    assert run("confidence", tmp_path / "averaged.st", data) == 0
    assert output.read_bytes() == (tmp_path / "averaged.st").read_bytes()


def test_output_may_have_the_mean_weights_of_several_checkpoints(path, tmp_path):
    data, output, other = as_images(tmp_path / "images.h5"), tmp_path / "output.st", tmp_path / "other.st"
    changed = checkpoint.load(path)
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.mul_(1.5)
    checkpoint.save(other, changed, "float32")
    flags = ["--average-with", str(other), "--shares", "3", "1"]
    assert run("confidence", path, data, "--output", str(output), *flags) == 0
    found, given = (checkpoint.load(each).model.state_dict() for each in (output, path))
    for name, value in dict(checkpoint.load(path).model.named_parameters()).items():
        assert_close(found[name], 1.125 * value, rtol=2e-3, atol=1e-4)
    assert set(found) == set(given)
    assert run("confidence", path, data, *flags) == 2  # an average would replace the checkpoint


def test_without_output_there_is_no_data_type_to_choose(path, tmp_path, capsys):
    assert run("confidence", path, as_images(tmp_path / "images.h5"), "--dtype", "int8") == 2
    assert "--output" in capsys.readouterr().err


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
    features = features_from_dataset(found, Mixture([data]), rows, CPU)
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([data.image(row) for row in rows])).permute(0, 3, 1, 2)
        means = found.captioner.encode(images)[0].mean((2, 3))
    assert_close(features, means.sign() * means.abs().sqrt(), rtol=1e-4, atol=1e-5)


# ---- several data files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def styled(tmp_path_factory) -> Path:
    return save_styled(tmp_path_factory.mktemp("styled") / "best.pt")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """everyday.h5 and others.h5: 24 and 31 validation images, with other photographs and captions."""
    folder = tmp_path_factory.mktemp("files")
    texts = {"everyday": TEXTS, "others": ("two men", "a blue ball in the water", "the red cat sits")}
    for number, (name, own) in enumerate(texts.items()):
        splits = ["train"] * 40 + ["val"] * (24 + 7 * number)
        records = [
            record(500 * number + i, split, [own[i % len(own)], own[(i + 1) % len(own)]])
            for i, split in enumerate(splits)
        ]
        write(Source(name, "made for a test", records), folder / f"{name}.h5", encoding="raw")
    return [folder / f"{name}.h5" for name in texts]


def captions_and_scores(path: Path, file: Path, style: str) -> tuple[list, np.ndarray]:
    """Of the validation images of one file by the pipeline, in a style."""
    data = CaptionDataset(file)
    rows = data.indices("val").tolist()
    pipeline = CaptionPipeline.load(path, device="cpu", style=style)
    best = [result.captions[0] for result in pipeline.stream(rows, data.image)]
    cider = Cider([[ptb_tokenize(text) for text in data.references(row)] for row in rows])
    return best, np.array(cider.score([ptb_tokenize(each.text) for each in best])[1])


def test_each_file_has_its_style_and_its_median(styled, files):
    """The file everyday has a style of its own, others the default one; folds mix the captions of both."""
    data = Mixture([CaptionDataset(file) for file in files])
    fitted = FITS["confidence"][0](checkpoint.load(styled), data, data.indices("val").tolist(), CPU)
    texts = {
        style: [each.text for each in captions_and_scores(styled, files[0], style)[0]] for style in STYLES
    }
    assert len(set(map(tuple, texts.values()))) == 3
    found = [
        captions_and_scores(styled, file, style) for file, style in zip(files, STYLES[1::-1], strict=True)
    ]
    x = np.array([each.mean_log_prob for best, _ in found for each in best])
    own = [scores > np.median(scores) for _, scores in found]
    confidence = held_out_confidence(x, np.concatenate(own), {})
    assert [*fitted.held_out] == ["everyday", "others"]
    parts = np.split(confidence, [24])
    for held, (_, scores), good, part in zip(fitted.held_out.values(), found, own, parts, strict=True):
        assert np.array_equal(held.good, good) and held.quality == pytest.approx(scores)
        assert held.confidence == pytest.approx(part, abs=1e-6)
    pooled = np.concatenate([scores for _, scores in found])
    assert (np.concatenate(own) != (pooled > np.median(pooled))).any()
    residuals = np.concatenate(own) - np.array([fitted.guide.probability(each) for each in x])
    assert residuals @ x == pytest.approx(RIDGE * fitted.guide.slope, abs=1e-6)
    assert residuals.sum() == pytest.approx(RIDGE * fitted.guide.intercept, abs=1e-6)

    lines = fitted.lines
    assert len(lines) == 16 and lines[0] == "fitted to the captions of 2 files"
    start = "Spearman's rank correlation with"
    correlations = [spearman(*pair) for pair in zip(parts, (scores for _, scores in found), strict=True)]
    assert lines[1] == f"everyday (style everyday): {start} CIDEr over 24 images: {correlations[0]:.2f}"
    assert lines[6] == f"others (style made): {start} CIDEr over 31 images: {correlations[1]:.2f}"
    within = np.concatenate([ranks(scores) / len(scores) for _, scores in found])
    assert lines[11] == (
        f"together: {start} the rank of CIDEr within each file over 55 images: {spearman(confidence, within):.2f}"
    )
    order = confidence.argsort()[:14]  # the first of four parts of 55
    share = 100 * np.concatenate(own)[order].mean()
    assert lines[12].endswith(f": {share:3.0f}% of 14 better than the median")


def test_a_file_cut_in_two_fits_what_the_whole_file_fits(path, tmp_path):
    """Whose vocabularies differ: word ids are the checkpoint's."""
    whole, records = source(), source().records
    halves = {"one": (records[:25], 1), "two": (records[25:], 20)}
    write(whole, tmp_path / "whole.h5", encoding="raw")
    for name, (half, least) in halves.items():
        part = Source(name, "made for a test", half)
        write(part, tmp_path / f"{name}.h5", encoding="raw", min_count=least)
    mixture = Mixture([CaptionDataset(tmp_path / f"{name}.h5") for name in halves])
    assert mixture.files[0].vocabulary != mixture.files[1].vocabulary
    found = checkpoint.load(path)
    cut = FITS["consensus"][0](found, mixture, mixture.indices("train").tolist(), CPU)
    single = Mixture([CaptionDataset(tmp_path / "whole.h5")])
    uncut = FITS["consensus"][0](found, single, single.indices("train").tolist(), CPU)
    assert cut.lines == [f"{uncut.lines[0]} of 2 files"]
    for key, value in cut.guide.state_dict().items():
        assert torch.equal(value, uncut.guide.state_dict()[key]), key


def test_the_program_plots_several_files(styled, files, tmp_path, capsys):
    path, figure = tmp_path / "best.pt", tmp_path / "reliability.svg"
    shutil.copy(styled, path)
    arguments = ["confidence", path, "--data", *files, "--plot", figure, "--device", "cpu"]
    assert fit.main([*map(str, arguments)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: fitted to the captions of 2 files\neveryday (style ")
    written = figure.read_text(encoding="utf-8")
    assert "everyday: 24 captions, ECE 0." in written and "others: 31 captions, ECE 0." in written
    assert set(checkpoint.load(path).guides) == {"confidence"}


def test_files_that_cannot_be_fitted_are_one_line(styled, files, tmp_path, capsys):
    path = tmp_path / "best.pt"
    shutil.copy(styled, path)
    before = path.read_bytes()

    def mistake(guide: str, *arguments: object) -> str:
        status = fit.main([guide, str(path), "--device", "cpu", "--data", *map(str, arguments)])
        return error_line(status, *capsys.readouterr())

    large = as_images(tmp_path / "large.h5", 48)
    (tmp_path / "more").mkdir()
    same = shutil.copy(files[0], tmp_path / "more")
    few = tmp_path / "few.h5"
    write(source(val=19), few, encoding="raw")
    none = tmp_path / "none.h5"
    write(source(val=0), none, encoding="raw")
    cases = [
        (("consensus", files[0], tmp_path / "no.h5"), f"no data file {tmp_path / 'no.h5'}; "),
        (("confidence", files[0], large), f"{large} has another transform than {files[0]} ("),
        (("consensus", files[0], same), "two data files are named everyday; rename one"),
        (("confidence", files[0], few), f"{few} has 19 images in that split; at least 20 are needed"),
        (("consensus", files[0], none, "--split", "val"), f"{none} has 0 images in that split; choose another --split"),
        (("consensus", files[0], "--plot", "a.png"), "--plot a.png: fit consensus draws no figure; leave the flag out"),
        (("confidence", files[0], "--plot", "a.gif"), "--plot a.gif: unknown figure format '.gif'; one of: "),
    ]  # fmt: skip
    for (guide, *arguments), start in cases:
        assert mistake(guide, *arguments).startswith(start)
    assert path.read_bytes() == before and not Path("a.png").exists()
