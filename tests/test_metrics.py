import random

import pytest

from sca_caption.metrics import Cider, cider

WORDS = ["a", "the", "man", "dog", "cat", "in", "on", "park", "runs", "sits", "big", "red", "blue", "and"]


def random_corpus(seed, images=30, references=5):
    rng = random.Random(seed)

    def sentence():
        return rng.choices(WORDS, k=rng.randint(1, 12))

    return [sentence() for _ in range(images)], [
        [sentence() for _ in range(rng.randint(1, references))] for _ in range(images)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_cider_equals_pycocoevalcap(seed):
    theirs = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    candidates, references = random_corpus(seed)
    candidates[0], candidates[1] = [], references[1][0]  # an empty one and a perfect one
    corpus, images = theirs.compute_score(
        {i: [" ".join(sentence) for sentence in sentences] for i, sentences in enumerate(references)},
        {i: [" ".join(sentence)] for i, sentence in enumerate(candidates)},
    )
    ours_corpus, ours_images = cider(candidates, references)
    assert ours_corpus == pytest.approx(100 * corpus, abs=1e-9)
    assert ours_images == pytest.approx(100 * images, abs=1e-9)
    assert Cider(references).score(candidates) == (ours_corpus, ours_images)


def test_cider_of_the_only_reference_itself_is_the_maximum():
    sentences = [list("abcde"), list("fghij")]
    assert cider(sentences, [[sentence] for sentence in sentences]) == (1000.0, [1000.0, 1000.0])
