"""Ranking by expected consensus: the regression against its closed forms, the ranking against CIDEr's own formula."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from sca_caption.cli.fit_confidence import main as calibrate
from sca_caption.cli.fit_consensus import learnt, main
from torch.testing import assert_close

from sca_caption import checkpoint
from sca_caption.cli import average
from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.decoding import beam_search as decode
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.evaluation.caption_metrics import Cider, ngrams_of
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.confidence import Calibration, fit
from sca_caption.guidance.consensus import Consensus, Ranking, fitted, powers, tfidf
from sca_caption.guidance.object_classifier import original
from sca_caption.images import Transform
from sca_caption.images import fit as fit_image
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline, read_by
from sca_caption.training import weight_soup
from sca_caption.vocab import Vocabulary
from tests.guidance.test_object_classifier import network, speaking  # noqa: F401 (a fixture)
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import photo, record, write

IDF = [0.0, 1.0, 2.0, 0.5, 3.0]


def said(*tokens: int, score: float = 0.0, finished: bool = True) -> Hypothesis:
    return Hypothesis(list(tokens), score, score, finished)


# ---- what is expected ------------------------------------------------------------------------------------------------


def examples(images: int = 40, channels: int = 6, words: int = 9):
    torch.manual_seed(0)
    features = torch.rand(images, channels)
    captions = [torch.randint(4, words, (3, 5)).tolist() for _ in range(images)]
    return features, captions


def targets(captions, words: int) -> np.ndarray:
    """The mean of unit tf-idf vectors, written out word by word."""
    frequency = [sum(any(word in caption for caption in each) for each in captions) for word in range(words)]
    idf = [math.log(len(captions) / max(1, count)) for count in frequency]
    found = np.zeros((len(captions), words))
    for row, references in zip(found, captions, strict=True):
        for caption in references:
            vector = np.array([caption.count(word) * idf[word] for word in range(words)])
            row += vector / max(np.linalg.norm(vector), 1e-12) / len(references)
    return found


def test_with_every_rank_it_is_ridge_regression():
    features, captions = examples()
    found = fitted(features, captions, 9, rank=99, ridge=0.3)
    y = targets(captions, 9)
    x = (features - features.mean(0)).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mean = x.mean(0)
    weights = np.linalg.solve((x - mean).T @ (x - mean) + 0.3 * np.eye(6), (x - mean).T @ (y - y.mean(0)))
    wanted = y.mean(0) + (x - mean) @ weights
    maps = (features**2)[:, :, None, None].expand(-1, -1, 2, 3)  # whose powers are the features
    assert_close(powers(maps), features)
    assert_close(found(maps).double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-5)
    assert len(found.narrow.weight) == 6 and not any(each.requires_grad for each in found.parameters())


def test_a_lower_rank_is_the_best_of_its_rank():
    """Against gradient descent on the same penalised error over all maps of that rank."""
    features, captions = examples()
    y = torch.from_numpy(targets(captions, 9))
    x = (features - features.mean(0)).double()
    x = x / x.norm(dim=1, keepdim=True)
    x = x - x.mean(0)

    def error(weights):
        return ((y - y.mean(0) - x @ weights) ** 2).sum() + 0.3 * (weights**2).sum()

    found = fitted(features, captions, 9, rank=2, ridge=0.3)
    ours = error((found.widen.weight @ found.narrow.weight).T.double()).item()
    torch.manual_seed(1)
    left, right = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((6, 2), (2, 9)))
    descent = torch.optim.LBFGS([left, right], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        loss = error(left @ right)
        loss.backward()
        return loss

    descent.step(closure)
    assert ours <= error(left @ right).item() + 1e-6 and ours == pytest.approx(
        error(left @ right).item(), rel=1e-3
    )
    every = fitted(features, captions, 9, rank=6, ridge=0.3)
    assert ours > 1.01 * error((every.widen.weight @ every.narrow.weight).T.double()).item()


def test_two_networks_have_equal_shares():
    """Regression on both, each centred and brought to length 1, against its closed form."""
    features, captions = examples(channels=10)
    features[:, 6:] *= 50  # however loud one of them is
    found = fitted(features, captions, 9, rank=99, ridge=0.3, channels=(6, 4))
    parts = [part - part.mean(0) for part in features.double().split((6, 4), 1)]
    x = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], 1).numpy() / math.sqrt(2)
    y, mean = targets(captions, 9), x.mean(0)
    weights = np.linalg.solve((x - mean).T @ (x - mean) + 0.3 * np.eye(10), (x - mean).T @ (y - y.mean(0)))
    wanted = torch.from_numpy(y.mean(0) + (x - mean) @ weights)
    maps, seen = (features[:, :6] ** 2)[:, :, None, None].expand(-1, -1, 2, 3), features[:, 6:] ** 2
    assert found.reads_objects and not fitted(features, captions, 9, rank=99, ridge=0.3).reads_objects
    assert_close(found(maps, seen).double(), wanted, rtol=1e-4, atol=1e-5)
    assert (found(maps, seen.flip(0)) - found(maps, seen)).abs().max() > 0.01


def test_signs_survive_the_root():
    assert powers(torch.tensor([4.0, -9.0, 0.0]).view(1, 3, 1, 1)).tolist() == [[2, -3, 0]]


def test_words_in_every_caption_count_for_nothing():
    assert tfidf([[0, 0], []], torch.tensor(IDF).double()).tolist() == [0] * 5


# ---- ranking ---------------------------------------------------------------------------------------------------------


def test_a_captions_consensus_is_ciders_first_term():
    """Captions of two words, as the references, have CIDEr of single words only where no pair is theirs."""
    references = [["red dog", "old cat"], ["dog runs", "red cat"], ["men run", "old dog"]]
    words = Vocabulary(["red", "dog", "old", "cat", "runs", "men", "run"])
    captions = [[words.encode(text.split()) for text in each] for each in references]
    frequency = [
        sum(any(word in caption for caption in each) for each in captions) for word in range(len(words))
    ]
    idf = [math.log(3 / max(1, count)) for count in frequency]
    expected = torch.stack([tfidf(each, torch.tensor(idf).double()) for each in captions])
    cider = Cider([[ptb_tokenize(text) for text in each] for each in references])
    for image, text in itertools.product(range(3), ["dog red", "cat old", "runs men", "dog cat", "cat red"]):
        (found,) = Ranking(expected, idf, 1.0)(image, [said(*words.encode(text.split()))])
        wanted = cider.score_image(ngrams_of(ptb_tokenize(text)), cider.references[image])
        assert 1000 / 4 * found.consensus == pytest.approx(wanted, abs=1e-6)


def test_captions_change_places_by_weight():
    expected = torch.tensor([[0.0, 0.1, 0.0, 0.0, 0.9], [0.0, 0.9, 0.0, 0.0, 0.1]])
    found = [said(1, score=-1.0), said(4, score=-1.5), said(2, score=-3.0)]
    assert [each.tokens for each in Ranking(expected, IDF, 0.5)(0, found)] == [[1], [4], [2]]
    ranked = Ranking(expected, IDF, 1.0)(0, found)
    assert [each.tokens for each in ranked] == [[4], [1], [2]]
    assert [each.score for each in ranked] == pytest.approx([-0.6, -0.9, -3.0])
    assert [Ranking(expected, IDF, 1.0).likelihood(each) for each in ranked] == pytest.approx(
        [-1.5, -1.0, -3.0]
    )
    every = Ranking(expected, IDF, 1.0).of_all([found, found], [[], []])
    assert [[each.tokens[0] for each in captions] for captions in every] == [[4, 1, 2], [1, 4, 2]]


def test_without_a_weight_captions_are_only_rated():
    found = [said(1, score=-5.0), said(4, score=-1.0)]
    rated = Ranking(torch.tensor([[0.0, 0.1, 0.0, 0.0, 0.9]]), IDF, 0.0)(0, found)
    assert [each.score for each in rated] == [-5, -1]
    assert [each.consensus for each in rated] == pytest.approx([0.1, 0.9])


def test_unended_captions_and_those_without_the_wanted_words_stay_behind():
    expected = torch.ones(1, 5)
    found = [said(1, 2, score=-9.0), said(4, score=-1.0), said(1, 2, 4, score=-0.1, finished=False)]
    ranked = Ranking(expected, IDF, 1.0)(0, found, [[2, 3], [1]])
    assert [each.tokens for each in ranked] == [[1, 2], [1, 2, 4], [4]]


def test_new_words_and_common_ones_count_for_nothing():
    expected = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5]])
    alone, among = Ranking(expected, IDF, 1.0)(0, [said(1, score=-1), said(1, 0, 5, 77, score=-2)])
    assert alone.consensus == among.consensus == 0.5
    assert Ranking(expected, IDF, 1.0)(0, [said(0, 9)])[0].consensus == 0


# ---- a captioner that knows ------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    words = ["a red dog runs", "a cat sits on grass", "two men", "blue water", "the woman runs"]
    records = [record(i, "train", [words[i % 5], words[i % 3]]) for i in range(12)]
    records += [record(i + 12, "val", [words[i % 5], words[i % 2]]) for i in range(20)]
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    return CaptionDataset(tmp_path / "made.h5")


@pytest.fixture
def knowing(tiny_checkpoint, tmp_path, data, capsys):
    """The path of a captioner that has learnt from the data."""
    path = tmp_path / "best.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    assert main([str(path), "--data", str(data.path)]) == 0
    assert "from the references of 12 images" in capsys.readouterr().out
    return path


def test_the_program_learns_from_the_train_split(knowing, tiny_checkpoint, data):
    before, after = checkpoint.load(tiny_checkpoint), checkpoint.load(knowing)
    for name, value in before.model.state_dict().items():
        assert_close(after.model.state_dict()[name], value, rtol=0, atol=0)
    rows = data.indices("train").tolist()
    again = learnt(before, data, rows, torch.device("cpu"))
    for name, value in again.state_dict().items():
        assert_close(after.consensus.state_dict()[name], value, rtol=0, atol=0)
    with torch.inference_mode():
        maps = before.model.encode(stack([data.image(row) for row in rows]))
    captions = [[before.vocabulary.encode(w for w in text.split() if w in before.vocabulary) for text in
                 data.references(row)] for row in rows]  # fmt: skip
    wanted = fitted(powers(maps[0]), captions, len(before.vocabulary), 256, 1.0, 0.05)
    assert_close(again(maps[0]), wanted(maps[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_it_is_kept_in_a_checkpoint(knowing, dtype, tmp_path):
    found = checkpoint.load(knowing)
    checkpoint.save(tmp_path / "other.safetensors", found, dtype)
    other = checkpoint.load(tmp_path / "other.safetensors")
    tolerance = 0 if dtype == "float32" else 2e-2
    for name, value in found.consensus.state_dict().items():
        assert_close(other.consensus.state_dict()[name], value, rtol=tolerance, atol=tolerance)
    checkpoint.add_consensus(
        tmp_path / "other.safetensors", found.consensus
    )  # once more, in the file's own form
    assert checkpoint.load(tmp_path / "other.safetensors").consensus is not None
    assert weight_soup.average([knowing], [1.0]).consensus is not None
    assert weight_soup.average([knowing, knowing], [1.0, 1.0]).consensus is None


def test_it_ranks_what_a_search_finds(knowing, data):
    rows = data.indices("val").tolist()
    batch = stack([data.image(row) for row in rows])
    pipeline = CaptionPipeline.load(knowing, search=SearchConfig(beam_size=3, num_captions=3, rerank_weight=50.0))
    encoded, seen = pipeline.encode(batch)
    plain = decode.beam_search(pipeline.model, pipeline.model.start(encoded), **pipeline.settings)
    assert {len(theirs) for theirs in plain} == {6}  # more than there are beams
    ranking = pipeline.ranking(read_by(pipeline.consensus, encoded[0], seen))
    heavy = pipeline.caption_batch(batch)
    for image, (ours, theirs) in enumerate(zip(heavy, plain, strict=True)):
        likelihood = {tuple(each.tokens): each.score for each in theirs}
        for each in ours:
            assert each.score == pytest.approx(likelihood[each.tokens] + 50 * each.consensus, abs=1e-4)
        scores = sorted((each.score for each in ranking(image, theirs)), reverse=True)
        assert [each.score for each in ours] == pytest.approx(scores[:3], abs=1e-4)
    assert any(ours[0].tokens not in [tuple(each.tokens) for each in theirs[:3]]
               for ours, theirs in zip(heavy, plain, strict=True))  # fmt: skip
    assert (
        CaptionPipeline.load(knowing, search=SearchConfig(beam_size=1)).settings["num_captions"] == 1
    )  # greedy, as it was
    one = SearchConfig(beam_size=3, rerank_weight=50.0)
    first = CaptionPipeline.load(knowing, search=one).caption_batch(batch)
    assert [[each.text for each in captions] for captions in first] == [[each[0].text] for each in heavy]
    (alone,) = CaptionPipeline.load(knowing, search=one).caption_batch(batch[3:4])
    assert alone[0].text == first[3][0].text and alone[0].score == pytest.approx(first[3][0].score, abs=1e-4)


def test_drawn_and_diverse_captions_stay_in_their_order(knowing, data):
    batch = stack([data.image(row) for row in data.indices("val").tolist()])
    for options in (
        {"search": SearchConfig(beam_size=4, num_captions=4, diverse_groups=2)},
        {"search": SearchConfig(num_captions=3), "sampling": SamplingConfig()},
    ):
        with_it, off = (
            CaptionPipeline.load(
                knowing, **options | {"search": dataclasses.replace(options["search"], rerank_weight=weight)}
            )
            for weight in (50.0, 0.0)
        )
        ours, theirs = with_it.caption_batch(batch), off.caption_batch(batch)
        assert [[each.text for each in x] for x in ours] == [[each.text for each in x] for x in theirs]
        assert all(each.consensus is not None for captions in ours for each in captions)


@pytest.mark.slow
def test_it_reads_what_imagenets_network_saw(network, data, tmp_path):  # noqa: F811
    words = Vocabulary(["a", "red", "dog", "runs", "cat", "sits", "on", "men"])
    model = speaking(network, words, 0)
    objects = original(lite_weights(), model.backbone, size=64)
    path = tmp_path / "best.pt"
    checkpoint.save(path, checkpoint.Checkpoint(model, words, Transform(64), objects=objects))
    assert main([str(path), "--data", str(data.path)]) == 0
    found = checkpoint.load(path)
    assert found.consensus.channels == (320, 1280)
    batch = stack([fit_image(photo(number), Transform(64)) for number in range(6)])
    pipeline = CaptionPipeline.load(path)
    with torch.inference_mode():
        encoded, seen = pipeline.encode(batch)
        with objects.watching(model.backbone) as below:
            maps = model.encode(batch)
        assert_close(seen, objects(torch.cat(below)))
        expected = read_by(pipeline.consensus, encoded[0], seen)
        assert_close(expected, found.consensus(maps[0], seen), rtol=1e-4, atol=1e-5)
        assert (expected - found.consensus(maps[0], seen.flip(0))).abs().max() > 1e-3
    # Without naming objects too; of stored features, in which nothing can be seen, nothing is expected.
    (first, *_) = CaptionPipeline.load(path, objects=False).caption_batch(batch)
    assert first[0].consensus is not None
    (first, *_) = CaptionPipeline.load(path).caption_batch(maps)
    assert first[0].consensus is None
    # Other objects make what was learnt of these useless.
    torch.save(lite_weights("efficientnet_lite1"), tmp_path / "lite.pth")
    flags = ["--objects", str(tmp_path / "lite.pth")]
    assert average.main([str(tmp_path / "other"), str(path)]) == 0
    assert checkpoint.load(tmp_path / "other").consensus is not None
    assert average.main([str(tmp_path / "other"), str(path), *flags]) == 0
    assert checkpoint.load(tmp_path / "other").consensus is None


def test_several_models_speak_without_it(knowing, data):
    batch = stack([data.image(0)])
    (found,) = CaptionPipeline.load([knowing, knowing]).caption_batch(batch)
    assert found[0].consensus is None


def test_confidence_reads_it(knowing, data, capsys):
    assert calibrate([str(knowing), "--data", str(data.path)]) == 0
    curve = Calibration.of(checkpoint.load(knowing).metrics)
    (caption,) = CaptionPipeline.load(knowing).caption_batch(stack([data.image(0)]))[0]
    assert curve.consensus and caption.confidence == curve.probability(
        caption.mean_log_prob, caption.consensus
    )
    assert caption.confidence != curve.probability(caption.mean_log_prob)


def test_the_fit_is_the_likeliest_of_two_causes():
    random = np.random.default_rng(0)
    x, c = random.normal(-1, 0.5, 40_000), random.random(40_000)
    good = random.random(40_000) < 1 / (1 + np.exp(-(3 * x + 4 * c + 1)))
    found = fit(x, good, c)
    assert (found.slope, found.consensus, found.intercept) == pytest.approx((3, 4, 1), abs=0.12)
    assert Calibration.of(found.metrics()) == found


def test_a_captioner_without_it_says_so(tiny_checkpoint, data):
    (found,) = CaptionPipeline.load(tiny_checkpoint).caption_batch(stack([data.image(0)]))
    assert found[0].consensus is None
    assert checkpoint.load(tiny_checkpoint).consensus is None


def test_the_map_of_more_channels_than_images():
    features, captions = examples(images=3)
    found = fitted(features, captions, 9, rank=256, ridge=1.0)
    assert isinstance(found, Consensus) and len(found.narrow.weight) == 3
