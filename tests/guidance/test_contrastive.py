"""The contrastive map: the minimum of its loss in closed form, its samples, and a comparison with regression."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from sca_caption.guidance import contrastive
from sca_caption.guidance.consensus import fit_consensus, mean_tfidf
from sca_caption.guidance.contrastive import fit_infonce, sample_caption_vectors

ONES = torch.ones(6)


@pytest.fixture
def plain(monkeypatch):
    """Training without dropout and weight decay, until it converges."""
    for name, value in (("DROPOUT", 0.0), ("WEIGHT_DECAY", 0.0), ("EPOCHS", 1000), ("LEARNING_RATE", 0.01)):
        monkeypatch.setattr(contrastive, name, value)


def test_the_minimum_is_that_of_smoothed_cross_entropy(plain):
    """n images with a word of their own each: the own one's chance is 1 - s + s / n, every other's s / n."""
    n = 3
    torch.manual_seed(0)
    down, up = 0.1 * torch.randn(n, n), 0.1 * torch.randn(n, 6)
    found = fit_infonce(torch.eye(n), [[[3]], [[4]], [[5]]], ONES, down, up)[:, 3:]
    other = contrastive.LABEL_SMOOTHING / n
    gap = math.log((1 - contrastive.LABEL_SMOOTHING + other) / other)
    for logits in (found, found.T):
        assert_close(logits.diagonal()[:, None] - logits, gap * (1 - torch.eye(n)), rtol=0.02, atol=0.02)


def test_a_drawn_caption_is_one_of_the_images_as_the_metrics_weigh_it(monkeypatch):
    generator, idf = torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0, 1.5])
    captions = [[[1, 2, 2], [4]], [[5, 3]]]
    monkeypatch.setattr(contrastive, "DROPOUT", 0.0)
    wanted = [[mean_tfidf([caption], idf) for caption in each] for each in captions]
    seen = set()
    for _ in range(20):
        first, second = sample_caption_vectors(torch.tensor([0, 1]), captions, idf, generator)
        which = [i for i, vector in enumerate(wanted[0]) if torch.allclose(first, vector)]
        seen.update(which)
        assert len(which) == 1
        assert_close(second, wanted[1][0])
    assert seen == {0, 1}


def test_words_and_features_are_left_out_at_their_share():
    generator = torch.Generator().manual_seed(0)
    kept = (contrastive.dropout(torch.ones(100_000), generator) > 0).float().mean()
    assert kept == pytest.approx(1 - contrastive.DROPOUT, abs=0.01)
    assert not sample_caption_vectors(
        torch.tensor([0]), [[[]]], ONES, generator
    ).any()  # a caption without known words


def crowd(images: int = 300):
    """Photographs of which nearly all have the strong features' words, and each a weak feature's word of its own kind."""
    torch.manual_seed(0)
    common, rare = torch.randint(0, 2, (images, 2)), torch.randint(0, 12, (images,))
    features = torch.cat([3 * common, 0.6 * torch.nn.functional.one_hot(rare, 12)], 1) + 0.3 * torch.rand(
        images, 14
    )
    words = [[int(word) for word in 4 + 2 * torch.arange(2) + each] for each in common]
    return features, [
        [[*each, 8 + int(kind)], [8 + int(kind), each[0]]] for each, kind in zip(words, rare, strict=True)
    ]


def own_found(consensus, features, captions) -> float:
    """The share of captions for which, of all images, none with other captions fits better."""
    expected = consensus(SimpleNamespace(features=features**2))
    vectors = torch.stack([mean_tfidf(each[:1], consensus.idf) for each in captions])
    best = (vectors @ expected.T).argmax(1).tolist()
    return sum(captions[i] == captions[row] for row, i in enumerate(best)) / len(best)


def test_more_captions_find_their_image_than_by_regression(monkeypatch):
    # Few images, so few steps an epoch; few features, so few to hide.
    for name, value in (("WARMUP", 1), ("EPOCHS", 300), ("LEARNING_RATE", 0.02), ("DROPOUT", 0.3)):
        monkeypatch.setattr(contrastive, name, value)
    features, captions = crowd()
    held_out, others = crowd(400)
    held_out, others = held_out[300:], others[300:]
    regression, both = (
        fit_consensus(features, captions, 20, rank=6, ridge=1.0, contrast=x) for x in (0.0, 0.05)
    )
    assert own_found(both, held_out, others) > own_found(regression, held_out, others) + 0.1


def test_it_is_added_to_the_regression():
    features, captions = crowd(40)
    state = SimpleNamespace(features=features**2)
    regression, both = (
        fit_consensus(features, captions, 20, rank=99, ridge=1.0, contrast=x) for x in (0.0, 0.5)
    )
    inputs = torch.nn.functional.normalize(features - regression.center, dim=1)
    inputs = inputs - inputs.mean(0)
    apart = fit_infonce(inputs, captions, regression.idf, regression.down.weight.T, regression.up.weight.T)
    assert_close(both(state) - regression(state), 0.5 * inputs @ apart, rtol=1e-2, atol=1e-3)
    assert_close(both.idf, regression.idf)
