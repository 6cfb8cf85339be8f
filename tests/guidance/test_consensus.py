"""Consensus reranking: the regression against its closed forms, the rating against CIDEr's own formula, the pipeline."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sca_caption import checkpoint
from sca_caption.cli import fit
from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.datasets.sources.records import Source
from sca_caption.decoding.beam_search import beam_search
from sca_caption.decoding.rules import bad_endings
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ngrams import count_ngrams
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.confidence import fit_confidence
from sca_caption.guidance.consensus import (
    ConsensusPredictor,
    ConsensusReranker,
    fit_consensus,
    mean_tfidf,
    signed_sqrt,
)
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.training import weight_soup
from sca_caption.training.fit_guidance import fit_consensus_from_dataset
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import record, write

IDF = [0.0, 1.0, 2.0, 0.5, 3.0]


# ---- the predictor -----------------------------------------------------------------------------------------------------


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


def test_with_full_rank_it_is_ridge_regression():
    features, captions = examples()
    found = fit_consensus(features, captions, 9, rank=99, ridge=0.3)
    y = targets(captions, 9)
    x = (features - features.mean(0)).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mean = x.mean(0)
    weights = np.linalg.solve((x - mean).T @ (x - mean) + 0.3 * np.eye(6), (x - mean).T @ (y - y.mean(0)))
    wanted = y.mean(0) + (x - mean) @ weights
    state = SimpleNamespace(features=features**2)
    assert_close(found(state).double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-5)
    assert len(found.down.weight) == 6 and not any(each.requires_grad for each in found.parameters())


def test_a_lower_rank_is_the_best_of_its_rank():
    """Against gradient descent on the same penalised error over all maps of that rank."""
    features, captions = examples()
    y = torch.from_numpy(targets(captions, 9))
    x = (features - features.mean(0)).double()
    x = x / x.norm(dim=1, keepdim=True)
    x = x - x.mean(0)

    def error(weights):
        return ((y - y.mean(0) - x @ weights) ** 2).sum() + 0.3 * (weights**2).sum()

    found = fit_consensus(features, captions, 9, rank=2, ridge=0.3)
    ours = error((found.up.weight @ found.down.weight).T.double()).item()
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
    every = fit_consensus(features, captions, 9, rank=6, ridge=0.3)
    assert ours > 1.01 * error((every.up.weight @ every.down.weight).T.double()).item()


def test_square_roots_keep_signs():
    assert signed_sqrt(torch.tensor([4.0, -9.0, 0.0])).tolist() == [2, -3, 0]


def test_words_in_every_caption_have_no_weight():
    assert mean_tfidf([[0, 0], []], torch.tensor(IDF).double()).tolist() == [0] * 5


# ---- ratings ---------------------------------------------------------------------------------------------------------


def test_a_rating_is_the_unigram_part_of_cider():
    """Captions of two words, as the references: their CIDEr is that of single words unless a pair matches."""
    references = [["red dog", "old cat"], ["dog runs", "red cat"], ["men run", "old dog"]]
    words = Vocabulary(["red", "dog", "old", "cat", "runs", "men", "run"])
    captions = [[words.encode(text.split()) for text in each] for each in references]
    frequency = [
        sum(any(word in caption for caption in each) for each in captions) for word in range(len(words))
    ]
    idf = [math.log(3 / max(1, count)) for count in frequency]
    expected = torch.stack([mean_tfidf(each, torch.tensor(idf).double()) for each in captions])
    cider = Cider([[ptb_tokenize(text) for text in each] for each in references])
    reranker = ConsensusReranker(idf)
    for image, text in itertools.product(range(3), ["dog red", "cat old", "runs men", "dog cat", "cat red"]):
        found = reranker.rate(expected, image, words.encode(text.split()))
        wanted = cider.score_image(count_ngrams(ptb_tokenize(text)), cider.references[image])
        assert 1000 / 4 * found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "rating"), [([1], 0.6), ([1, 1], 0.3), ([1, 2], 1.4 / 2**0.5), ([1, 2, 1], 1.4 / 5**0.5)]
)
def test_to_repeat_a_word_lowers_the_rating(tokens, rating):
    expected, reranker = torch.tensor([[0.0, 0.6, 0.8]]), ConsensusReranker([1.0, 1.0, 1.0])
    assert reranker.rate(expected, 0, tokens) == pytest.approx(rating)


def test_common_words_have_no_weight():
    expected, reranker = torch.full((1, 5), 0.5), ConsensusReranker(IDF)
    assert reranker.rate(expected, 0, [1]) == reranker.rate(expected, 0, [1, 0, 0]) == 0.5
    assert reranker.rate(expected, 0, [0]) == 0


# ---- in a pipeline ---------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    words = ["a red dog runs", "a cat sits on grass", "two men", "blue water", "the woman runs"]
    records = [record(i, "train", [words[i % 5], words[i % 3]]) for i in range(12)]
    records += [record(i + 12, "val", [words[i % 5], words[i % 2]]) for i in range(20)]
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    return CaptionDataset(tmp_path / "made.h5")


@pytest.fixture
def fitted(tiny_checkpoint, tmp_path, data, capsys):
    """The path of a checkpoint with a consensus predictor, fitted by the program."""
    path = tmp_path / "best.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    assert fit.main(["consensus", str(path), "--data", str(data.path)]) == 0
    assert "12 images" in capsys.readouterr().out
    return path


def test_candidates_change_places_by_weight(fitted):
    """Finished captions and those with the forced words stay ahead; the rating decides among the others."""
    expected = torch.zeros(1, len(checkpoint.load(fitted).vocabulary))
    pipeline = CaptionPipeline.load(fitted, search=SearchConfig(rerank_weight=1.0))
    reranker = ConsensusReranker([1.0] * expected.shape[1])
    pipeline.guides = [reranker]
    expected[0, 5], expected[0, 8] = 0.1, 0.9

    def caption(*tokens: int, score: float, finished: bool = True) -> Hypothesis:
        return Hypothesis(list(tokens), score, score, finished)

    found = [caption(5, score=-1.0), caption(8, score=-1.5), caption(6, score=-3.0)]
    (ranked,) = pipeline.rate([found], {"consensus": expected}, [[]])
    assert [each.tokens for each in ranked] == [[8], [5], [6]]
    assert [each.score for each in ranked] == pytest.approx([-0.6, -0.9, -3.0])
    assert [each.ratings["consensus"] for each in ranked] == pytest.approx([0.9, 0.1, 0.0])
    mixed = [caption(5, 6, score=-9.0), caption(8, score=-1.0), caption(5, 6, 8, score=-0.1, finished=False)]
    (ranked,) = pipeline.rate([mixed], {"consensus": expected}, [[[6, 7], [5]]])
    assert [each.tokens for each in ranked] == [[5, 6], [5, 6, 8], [8]]
    off = pipeline.with_search(SearchConfig(rerank_weight=0.0))
    (rated,) = off.rate([found], {"consensus": expected}, [[]])
    assert [each.score for each in rated] == [-1.0, -1.5, -3.0] and rated[0].ratings


def test_the_program_fits_the_train_split(fitted, tiny_checkpoint, data):
    before, after = checkpoint.load(tiny_checkpoint), checkpoint.load(fitted)
    for name, value in before.model.state_dict().items():
        assert_close(after.model.state_dict()[name], value, rtol=0, atol=0)
    rows = data.indices("train").tolist()
    again = fit_consensus_from_dataset(before, Mixture([data]), rows, torch.device("cpu")).guide
    for name, value in again.state_dict().items():
        assert_close(after.guides["consensus"].state_dict()[name], value, rtol=0, atol=0)
    with torch.inference_mode():
        state = before.model.start(before.model.encode(stack([data.image(row) for row in rows])))
    captions = [[before.vocabulary.encode(w for w in text.split() if w in before.vocabulary) for text in
                 data.references(row)] for row in rows]  # fmt: skip
    wanted = fit_consensus(signed_sqrt(state.features), captions, len(before.vocabulary), 256, 1.0, 0.05)
    assert_close(again(state), wanted(state), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_checkpoint_keeps_it(fitted, dtype, tmp_path):
    found = checkpoint.load(fitted)
    checkpoint.save(tmp_path / "other.safetensors", found, dtype)
    other = checkpoint.load(tmp_path / "other.safetensors")
    tolerance = 0 if dtype == "float32" else 2e-2
    for name, value in found.guides["consensus"].state_dict().items():
        assert_close(other.guides["consensus"].state_dict()[name], value, rtol=tolerance, atol=tolerance)
    checkpoint.add_guide(tmp_path / "other.safetensors", "consensus", found.guides["consensus"])
    assert "consensus" in checkpoint.load(tmp_path / "other.safetensors").guides
    assert "consensus" in weight_soup.average([fitted], [1.0]).guides
    assert not weight_soup.average([fitted, fitted], [1.0, 1.0]).guides


def test_the_pipeline_reranks_the_candidates_of_a_search(fitted, data):
    batch = stack([data.image(row) for row in data.indices("val").tolist()])
    search = SearchConfig(beam_size=3, num_captions=3, rerank_weight=50.0, distinct=False)
    pipeline = CaptionPipeline.load(fitted, search=search)
    with torch.inference_mode():
        state, predictions = pipeline.model.start(batch, pipeline.guides)
        plain = beam_search(
            pipeline.sca_cnn, state, beam_size=3, num_captions=6, length_penalty=search.length_penalty,
            block_ngrams=2, bad_endings=bad_endings(pipeline.vocabulary),
        )  # fmt: skip
    reranker, expected = pipeline.guides[0], predictions["consensus"]
    heavy = pipeline.caption_batch(batch)
    for image, (ours, theirs) in enumerate(zip(heavy, plain, strict=True)):
        scores = [each.score + 50 * reranker.rate(expected, image, each.tokens) for each in theirs]
        assert [each.score for each in ours] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-3)
    assert any(ours[0].tokens not in [tuple(each.tokens) for each in theirs[:3]]
               for ours, theirs in zip(heavy, plain, strict=True))  # fmt: skip
    (alone,) = pipeline.caption_batch(batch[3:4])
    assert alone[0].text == heavy[3][0].text and alone[0].score == pytest.approx(heavy[3][0].score, abs=1e-4)


def test_sampled_and_diverse_captions_keep_their_order(fitted, data):
    batch = stack([data.image(row) for row in data.indices("val").tolist()])
    for settings, sampling in (
        ({"beam_size": 4, "num_captions": 4, "diverse_groups": 2}, None),
        ({"num_captions": 3}, SamplingConfig()),
    ):
        ours, theirs = (
            CaptionPipeline.load(
                fitted, search=SearchConfig(rerank_weight=weight, **settings), sampling=sampling
            ).caption_batch(batch)
            for weight in (50.0, 0.0)
        )
        assert [[each.text for each in x] for x in ours] == [[each.text for each in x] for x in theirs]
        assert all("consensus" in each.ratings for captions in ours for each in captions)


def test_an_ensemble_has_no_guides(fitted, data):
    pipeline = CaptionPipeline.load([fitted, fitted])
    ((first, *_),) = pipeline.caption_batch(stack([data.image(0)]))
    assert not pipeline.guides and not first.ratings


def test_confidence_reads_the_rating(fitted, data):
    assert fit.main(["confidence", str(fitted), "--data", str(data.path)]) == 0
    curve = checkpoint.load(fitted).guides["confidence"]
    (caption,) = CaptionPipeline.load(fitted).caption_batch(stack([data.image(0)]))[0]
    assert curve.ratings["consensus"]
    assert caption.confidence == curve.probability(caption.mean_log_prob, caption.ratings)
    assert caption.confidence != curve.probability(caption.mean_log_prob)


def test_the_confidence_of_two_causes_has_the_maximum_likelihood():
    random = np.random.default_rng(0)
    x, c = random.normal(-1, 0.5, 40_000), random.random(40_000)
    good = random.random(40_000) < 1 / (1 + np.exp(-(3 * x + 4 * c + 1)))
    found = fit_confidence(x, good, {"consensus": c})
    assert (found.slope, found.ratings["consensus"], found.intercept) == pytest.approx((3, 4, 1), abs=0.12)


def test_a_map_of_more_channels_than_images():
    features, captions = examples(images=3)
    found = fit_consensus(features, captions, 9, rank=256, ridge=1.0)
    assert isinstance(found, ConsensusPredictor) and found.rank == 3
