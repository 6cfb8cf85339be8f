"""Rules for where captions may end: against enumeration of every caption on tiny models."""

import itertools

import pytest
import torch

from sca_caption.decoding.beam_search import beam_search, greedy
from sca_caption.decoding.rules import BAD_ENDINGS, Rules, bad_endings, conjunctions
from sca_caption.decoding.sampling import sample
from sca_caption.vocab import EOS, Vocabulary
from tests.helpers.toy_decoder import EVERYTHING, ToyRNN, log_prob_of, made_images

RULES = [
    {"bad_endings": (5,)},
    {"bad_endings": (4, 6)},
    {"min_length": 3},
    {"min_length": 2, "bad_endings": (4,)},
]


def echoes(tokens) -> bool:
    """Whether word 5 joins a word with itself."""
    return any(tokens[i] == 5 and tokens[i - 1] == tokens[i + 1] for i in range(1, len(tokens) - 1))


def test_the_ids_are_those_of_the_words_that_the_vocabulary_has():
    vocabulary = Vocabulary(["dog", "with", "a", "on", "looks", "the"])
    assert [vocabulary.words[i] for i in bad_endings(vocabulary)] == ["with", "a", "the"]
    vocabulary = Vocabulary(["and", "dog"])
    assert [vocabulary.words[i] for i in conjunctions(vocabulary)] == ["and"]
    assert not BAD_ENDINGS & {
        "on",
        "by",
        "up",
        "down",
        "off",
        "out",
        "around",
        "behind",
        "outside",
        "her",
        "it",
    }


@pytest.mark.parametrize(
    "rules", [*RULES, {"conjunctions": (5,)}, {"conjunctions": (5,), "bad_endings": (4,)}], ids=str
)
def test_a_wide_beam_finds_the_best_of_the_captions_that_may_be(rules):
    model, images = ToyRNN(1), made_images(2)
    found = beam_search(
        model,
        model.start(images),
        beam_size=EVERYTHING,
        num_captions=5,
        length_penalty=0.7,
        max_length=5,
        **rules,
    )
    for image, hypotheses in zip(images, found, strict=True):
        best = [
            (log_prob_of(model, image, tokens, ended=True) / (len(tokens) + 1) ** 0.7, list(tokens))
            for count in range(rules.get("min_length", 1), 5)
            for tokens in itertools.product((4, 5, 6), repeat=count)
            if tokens[-1] not in rules.get("bad_endings", ())
            and not ("conjunctions" in rules and echoes(tokens))
        ]
        best.sort(reverse=True)
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens in best[:5]]
        assert [h.score for h in hypotheses] == pytest.approx([score for score, _ in best[:5]], abs=1e-4)


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("end_bias", [-torch.inf, 0.0, 3.0])
def test_all_searches_obey(rules, end_bias):
    model, images = ToyRNN(2, end_bias=end_bias), made_images(12)
    one = greedy(model, model.start(images), max_length=4, **rules)
    beams = beam_search(model, model.start(images), beam_size=1, max_length=4, **rules)
    assert [h.tokens for h in one] == [found[0].tokens for found in beams]
    several = beam_search(model, model.start(images), beam_size=3, num_captions=3, max_length=4, **rules)
    captions = [h.tokens for found in (one, *several) for h in found]
    torch.manual_seed(0)
    captions += sample(model, model.start(images), max_length=4, **rules).tokens
    assert all(len(tokens) >= rules.get("min_length", 1) for tokens in captions)
    assert all(tokens[-1] not in rules.get("bad_endings", ()) for tokens in captions)


def test_rules_leave_the_other_scores_as_they_are():
    scores = torch.randn(3, 8)
    rules = Rules(forbidden=(0,), bad_endings=(5, 6), max_length=9)
    found = rules.apply(scores.clone(), torch.tensor([5, 4, 6]), 2)
    barred = torch.zeros(3, 8, dtype=torch.bool)
    barred[:, 0] = barred[[0, 2], EOS] = True
    assert torch.equal(found, scores.masked_fill(barred, -torch.inf))
    barred[:, [5, 6]] = True
    assert torch.equal(
        rules.apply(scores.clone(), torch.tensor([5, 4, 6]), 9), scores.masked_fill(barred, -torch.inf)
    )


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="min_length=5 is more than max_length=4"):
        Rules(min_length=5, max_length=4)
