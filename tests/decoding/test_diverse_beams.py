"""Groups of beams that differ: against the documented rule for one image with lists."""

import pytest
import torch

from sca_caption.decoding.beam_search import Beams, Finished, _hypotheses, beam_search
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.vocab import BOS, EOS, PAD, UNK
from tests.helpers.toy_decoder import ToyRNN, made_images, same


def slow_search(model, image, groups, size, diversity, max_length, length_penalty):
    """The best captions of each group: the rule for one image, each caption scored from its first word."""
    live, finished = [[([], 0.0)] for _ in range(groups)], [[] for _ in range(groups)]
    for length in range(1, max_length + 1):
        said = []
        for group in range(groups):
            options = []
            for tokens, log_prob in live[group]:
                state = model.start(image[None])
                for word in [BOS, *tokens]:
                    logits, state = model.step(torch.tensor([word]), state)
                for word, gain in enumerate(logits.float().log_softmax(1)[0].tolist()):
                    if word not in (PAD, BOS, UNK) and not (word == EOS and not tokens):
                        cost = diversity * said.count(word)
                        options.append((log_prob + gain - cost, [*tokens, word], log_prob + gain))
            options.sort(key=lambda option: -option[0])
            for _, tokens, log_prob in options[:size]:
                if tokens[-1] == EOS:
                    finished[group].append(
                        Hypothesis(tokens[:-1], log_prob, log_prob / length**length_penalty, True)
                    )
            live[group] = [(t, p) for _, t, p in options if t[-1] != EOS][:size]
            said += [tokens[-1] for tokens, _ in live[group]]
        if all(len(found) >= size for found in finished):
            break
    return [sorted(found, key=lambda hypothesis: -hypothesis.score)[:size] for found in finished]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("diversity", [0.0, 0.6, 5.0])
@pytest.mark.parametrize(("groups", "size"), [(3, 1), (2, 2)])
def test_groups_follow_the_rule(seed, diversity, groups, size):
    model, images = ToyRNN(seed, vocabulary=12, end_bias=2.0), made_images(5, seed)
    found = beam_search(
        model, model.start(images), beam_size=groups * size, diverse_groups=groups, diversity=diversity,
        num_captions=groups, max_length=12, length_penalty=0.7,
    )  # fmt: skip
    for image, hypotheses in zip(images, found, strict=True):
        by_group = slow_search(model, image, groups, size, diversity, 12, 0.7)
        expected = []
        for place in range(size):
            each = [captions[place] for captions in by_group if len(captions) > place]
            for hypothesis in sorted(each, key=lambda h: -h.score):
                if hypothesis.tokens not in [h.tokens for h in expected]:
                    expected.append(hypothesis)
        same([hypothesis for hypothesis in hypotheses if hypothesis.finished], expected[:groups])


def test_the_first_words_of_groups_differ_where_that_costs_enough():
    model, images = ToyRNN(0, vocabulary=12, end_bias=1.0), made_images(6)
    options = {"beam_size": 4, "num_captions": 4, "max_length": 8, "diverse_groups": 4}
    apart = beam_search(model, model.start(images), diversity=100.0, **options)
    first = [[h.tokens[0] for h in found if h.finished] for found in apart]  # of each image, one a group
    assert all(len(set(words)) == len(words) for words in first) and max(map(len, first)) == 4
    together = beam_search(model, model.start(images), diversity=0.0, **options)
    assert all(sum(h.finished for h in found) <= 1 for found in together), "all groups find the same"


def test_one_group_is_beam_search():
    model, images = ToyRNN(1, vocabulary=12, end_bias=1.0), made_images(6)
    options = {"beam_size": 4, "num_captions": 4, "max_length": 8}
    one = beam_search(model, model.start(images), diverse_groups=1, diversity=3.0, **options)
    assert one == beam_search(model, model.start(images), **options)


def test_groups_that_make_no_sense_are_refused():
    model = ToyRNN()
    with pytest.raises(ValueError, match="diverse_groups=2 does not divide beam_size=7"):
        beam_search(model, model.start(made_images(1)), diverse_groups=2)


def test_a_caption_that_two_groups_found_stands_at_its_first_place():
    captions = [[[5], [6]], [[7], [5]], [[8], [9]]]  # of three groups, best first
    log_prob = torch.tensor([[[-1.0, -4.0], [-0.5, -1.0], [-0.3, -0.9]]])
    tokens = torch.tensor([[[[word, EOS] for (word,) in group] for group in captions]])
    finished = Finished(tokens, log_prob, torch.full_like(log_prob, 2, dtype=torch.long), log_prob.clone())
    none = Beams(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0))
    (found,) = _hypotheses(finished, [none], 5, 0.0, diverse=True)
    assert [hypothesis.tokens for hypothesis in found] == [[8], [7], [5], [9], [6]]
