"""Captions that must mention words: against enumeration, and against the documented rule for one image with lists."""

import itertools

import pytest
import torch

from sca_caption.decoding.beam_search import beam_search
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.vocab import BOS, EOS, PAD, UNK
from tests.helpers.toy_decoder import EVERYTHING, ToyRNN, has_repeat, log_prob_of, made_images, same


def mentioned(tokens, groups):
    """The set of beams that a caption belongs to: bit g for group g."""
    return sum(1 << g for g, group in enumerate(groups) if set(group) & set(tokens))


GROUPS = [[[5]], [[4], [6]], [[4, 5], [6]], [[4], [5], [6]], [[4, 6], [6], [5, 6]]]


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("early_exit", [True, False])
@pytest.mark.parametrize("block_ngrams", [0, 1])
def test_a_wide_beam_finds_the_best_captions_that_mention_all(groups, early_exit, block_ngrams):
    model, images = ToyRNN(1), made_images(3)
    options = {"beam_size": EVERYTHING, "max_length": 5, "num_captions": 4, "block_ngrams": block_ngrams}
    found = beam_search(
        model,
        model.start(images),
        **options,
        length_penalty=0.7,
        force_words=[groups] * 3,
        early_exit=early_exit,
    )
    for image, hypotheses in zip(images, found, strict=True):
        best = []
        for count in range(1, 5):
            for tokens in map(list, itertools.product((4, 5, 6), repeat=count)):
                if mentioned(tokens, groups) + 1 == 2 ** len(groups) and not (
                    block_ngrams and has_repeat(tokens, block_ngrams)
                ):
                    log_prob = log_prob_of(model, image, tokens, ended=True)
                    best.append(Hypothesis(tokens, log_prob, log_prob / (count + 1) ** 0.7, True))
        best.sort(key=lambda hypothesis: -hypothesis.score)
        assert len(best) >= 4
        same(hypotheses, best[:4])


def slow_search(model, image, groups, beam_size, max_length, length_penalty, num_captions):
    """The rule of `beam_search` for one image, set by set, each caption scored from its first word."""
    everything = 2 ** len(groups) - 1
    live, finished = {0: [([], 0.0)]}, {group: [] for group in range(everything + 1)}
    for length in range(1, max_length + 1):
        options = {group: [] for group in range(everything + 1)}
        for tokens, log_prob in itertools.chain(*live.values()):
            state = model.start(image[None])
            for word in [BOS, *tokens]:
                logits, state = model.step(torch.tensor([word]), state)
            for word, gain in enumerate(logits.float().log_softmax(1)[0].tolist()):
                if word not in (PAD, BOS, UNK) and not (word == EOS and not tokens):
                    options[mentioned([*tokens, word], groups)].append(([*tokens, word], log_prob + gain))
        for group, each in options.items():
            each.sort(key=lambda option: -option[1])
            for tokens, log_prob in each[:beam_size]:
                if tokens[-1] == EOS:
                    finished[group].append((log_prob / length**length_penalty, log_prob, tokens[:-1]))
            live[group] = [option for option in each if option[0][-1] != EOS][:beam_size]
    found = []
    for group in range(everything + 1):
        finished[group].sort(key=lambda item: -item[0])
        found += [
            (group, Hypothesis(t, p, s, True)) for s, p, t in finished[group][: max(beam_size, num_captions)]
        ]
        unended = [(t, p, p / len(t) ** length_penalty) for t, p in live.get(group, [])]
        found += [(group, Hypothesis(*each, False)) for each in unended]
    found.sort(key=lambda item: (-item[0].bit_count(), not item[1].finished, -item[1].score))
    return [hypothesis for _, hypothesis in found][:num_captions]


MIXED = [
    [],
    [[7]],
    [[8, 9], [10]],
    [],
    [[4], [5, 6, 7], [11]],
    [[11]],
    [[4, 5], [5, 6]],
    [[4, 8], [8], [8, 9, 10]],
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("beam_size, num_captions", [(1, 1), (3, 3), (2, 5)])
def test_a_narrow_beam_follows_the_rule_for_each_image(seed, length_penalty, beam_size, num_captions):
    model, images = ToyRNN(seed, vocabulary=12, end_bias=seed - 1.0), made_images(8, seed)
    options = {
        "beam_size": beam_size,
        "max_length": 7,
        "length_penalty": length_penalty,
        "num_captions": num_captions,
    }
    found = beam_search(model, model.start(images), force_words=MIXED, **options)
    for image, groups, hypotheses in zip(images, MIXED, found, strict=True):
        same(hypotheses, slow_search(model, image, groups, **options))
    assert any(mentioned(h[0].tokens, groups) for h, groups in zip(found, MIXED, strict=True))


@pytest.mark.parametrize("mentions", [None, [], [[]] * 6])
def test_images_without_words_to_mention_cost_what_they_did(mentions):
    model, images = ToyRNN(1, vocabulary=20, end_bias=1.5), made_images(6)
    options = {"beam_size": 4, "max_length": 10, "num_captions": 3, "block_ngrams": 2}
    plain = beam_search(model, model.start(images), **options)
    rows, model.rows_seen = model.rows_seen, []
    assert beam_search(model, model.start(images), force_words=mentions, **options) == plain
    assert model.rows_seen == rows


def test_the_others_of_a_batch_keep_their_captions():
    model, images = ToyRNN(1, vocabulary=20, end_bias=1.5), made_images(6)
    options = {"beam_size": 4, "max_length": 10, "num_captions": 3, "block_ngrams": 2}
    plain = beam_search(model, model.start(images), **options)
    mixed = beam_search(
        model, model.start(images), force_words=[[], [[9]], [], [[9, 10], [11]], [], []], **options
    )
    for row, (found, expected) in enumerate(zip(mixed, plain, strict=True)):
        if row in (1, 3):
            assert 9 in found[0].tokens or 10 in found[0].tokens
        else:
            same(found, expected)


def test_where_not_all_can_be_mentioned_as_many_as_can_are():
    model, images = ToyRNN(1, vocabulary=12), made_images(5)
    groups = [[7], [8], [9]]
    options = {"beam_size": 4, "num_captions": 4}
    for hypotheses in beam_search(
        model, model.start(images), force_words=[groups] * 5, max_length=2, **options
    ):
        assert all(mentioned(h.tokens, groups).bit_count() == 2 and not h.finished for h in hypotheses)
    never = [[7], [UNK + 1]]
    found = beam_search(
        model, model.start(images), force_words=[never] * 5, forbidden=(PAD, BOS, UNK, UNK + 1), max_length=6
    )
    assert all(7 in hypothesis.tokens for (hypothesis,) in found)


@pytest.mark.parametrize("groups", [[[4], []], [[EOS]], [[4, UNK]], [[4]] * 4])
def test_groups_that_make_no_sense_are_refused(groups):
    model = ToyRNN()
    with pytest.raises(ValueError, match="to force"):
        beam_search(model, model.start(made_images(1)), force_words=[groups])
