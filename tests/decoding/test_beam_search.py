"""Greedy and beam search against enumeration of every caption, on tiny models that remember their words."""

import itertools

import pytest
import torch

from sca_caption.config import SearchConfig
from sca_caption.decoding.beam_search import beam_search, best_reachable_score, greedy
from sca_caption.decoding.rules import repeated_ngrams
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.vocab import BOS, EOS, PAD, UNK
from tests.helpers.toy_decoder import EVERYTHING, ToyRNN, has_repeat, log_prob_of, made_images, same


def enumerate_captions(model, image, max_length, length_penalty, block_ngrams=0):
    """Every finished caption that search may return, best first: 1 to max_length - 1 words and the end."""
    words = [word for word in range(model.vocabulary) if word not in (PAD, BOS, EOS, UNK)]
    found = []
    for count in range(1, max_length):
        for tokens in itertools.product(words, repeat=count):
            if block_ngrams and has_repeat(tokens, block_ngrams):
                continue
            log_prob = log_prob_of(model, image, tokens, ended=True)
            found.append((log_prob / (count + 1) ** length_penalty, log_prob, list(tokens)))
    return sorted(found, key=lambda item: -item[0])


@pytest.mark.parametrize("early_exit", [True, False])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("block_ngrams", [0, 1, 2])
def test_a_wide_beam_finds_what_enumeration_finds(length_penalty, block_ngrams, early_exit):
    model, images = ToyRNN(), made_images(2)
    found = beam_search(
        model,
        model.start(images),
        beam_size=EVERYTHING,
        max_length=5,
        length_penalty=length_penalty,
        block_ngrams=block_ngrams,
        num_captions=6,
        early_exit=early_exit,
    )
    for image, hypotheses in zip(images, found, strict=True):
        best = enumerate_captions(model, image, 5, length_penalty, block_ngrams)[:6]
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, _, tokens in best]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx(
            [s for s, _, _ in best], abs=1e-4
        )
        assert [hypothesis.log_prob for hypothesis in hypotheses] == pytest.approx(
            [p for _, p, _ in best], abs=1e-4
        )
        assert all(hypothesis.finished for hypothesis in hypotheses)


def test_masks_leave_log_probabilities_alone():
    """Excluded words never come, and the others keep their probabilities."""
    model, images = ToyRNN(1), made_images(2)

    def mask(last, state):
        banned = torch.zeros(len(last), model.vocabulary, dtype=torch.bool)
        banned[last == BOS, 5] = banned[last == 4, 6] = True
        return banned

    def allowed(tokens):
        return tokens[0] != 5 and (4, 6) not in itertools.pairwise(tokens)

    found = beam_search(
        model, model.start(images), beam_size=EVERYTHING, num_captions=6, max_length=5,
        length_penalty=0.7, mask=mask,
    )  # fmt: skip
    for image, hypotheses in zip(images, found, strict=True):
        best = []
        for count in range(1, 5):
            for tokens in filter(allowed, itertools.product((4, 5, 6), repeat=count)):
                log_prob = log_prob_of(model, image, tokens, True)
                best.append(Hypothesis(list(tokens), log_prob, log_prob / (count + 1) ** 0.7, True))
        same(hypotheses, sorted(best, key=lambda each: -each.score)[:6])


def slow_beam_search(model, image, beam_size, max_length, length_penalty, block_ngrams, num_captions):
    """The documented rule for one image, with lists, each caption scored from its first word."""
    live, finished = [([], 0.0)], []
    for length in range(1, max_length + 1):
        options = []
        for tokens, log_prob in live:
            state = model.start(image[None])
            for word in [BOS, *tokens]:
                logits, state = model.step(torch.tensor([word]), state)
            gains = logits.float().log_softmax(1)[0].tolist()
            for word, gain in enumerate(gains):
                first_end = word == EOS and not tokens
                repeat = block_ngrams and word != EOS and has_repeat([*tokens, word], block_ngrams)
                if word not in (PAD, BOS, UNK) and not first_end and not repeat:
                    options.append(([*tokens, word], log_prob + gain))
        options.sort(key=lambda option: -option[1])
        for tokens, log_prob in options[:beam_size]:
            if tokens[-1] == EOS:
                finished.append((log_prob / length**length_penalty, log_prob, tokens[:-1]))
        live = [option for option in options if option[0][-1] != EOS][:beam_size]
        if len(finished) >= max(beam_size, num_captions) or not live:
            break
    finished.sort(key=lambda item: -item[0])
    result = [Hypothesis(tokens, log_prob, score, True) for score, log_prob, tokens in finished]
    rest = [Hypothesis(tokens, p, p / len(tokens) ** length_penalty, False) for tokens, p in live]
    return (result + rest)[:num_captions]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("block_ngrams", [0, 2])
@pytest.mark.parametrize("beam_size, num_captions", [(2, 2), (5, 5), (1, 4), (3, 7)])
def test_a_narrow_beam_follows_the_rule_for_each_image(
    seed, length_penalty, block_ngrams, beam_size, num_captions
):
    model, images = ToyRNN(seed, vocabulary=12, end_bias=seed - 2.0), made_images(7, seed)
    options = {
        "beam_size": beam_size,
        "max_length": 8,
        "length_penalty": length_penalty,
        "block_ngrams": block_ngrams,
        "num_captions": num_captions,
    }
    for image, found in zip(images, beam_search(model, model.start(images), **options), strict=True):
        same(found, slow_beam_search(model, image, **options))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_one_beam_is_greedy_search(seed, length_penalty):
    model, images = ToyRNN(seed, vocabulary=15, end_bias=1.0), made_images(20, seed)
    found = beam_search(model, model.start(images), beam_size=1, max_length=9, length_penalty=length_penalty)
    expected = greedy(model, model.start(images), max_length=9)
    assert {hypothesis.finished for hypothesis in expected} == {True, False} or seed
    for (hypothesis,), other in zip(found, expected, strict=True):
        assert (hypothesis.tokens, hypothesis.finished) == (other.tokens, other.finished)
        assert hypothesis.log_prob == pytest.approx(other.log_prob, abs=1e-5)


def test_greedy_takes_the_likeliest_allowed_word_at_every_step():
    model, images = ToyRNN(3, vocabulary=15, end_bias=1.0), made_images(10)
    for image, hypothesis in zip(images, greedy(model, model.start(images), max_length=9), strict=True):
        state, word, tokens = model.start(image[None]), BOS, []
        while word != EOS and len(tokens) < 9:
            logits, state = model.step(torch.tensor([word]), state)
            logits[:, [PAD, BOS, UNK] + [EOS] * (not tokens)] = -torch.inf
            word = int(logits.argmax())
            tokens += [word] * (word != EOS)
        assert (hypothesis.tokens, hypothesis.finished) == (tokens, word == EOS)
        assert hypothesis.log_prob == pytest.approx(log_prob_of(model, image, tokens, word == EOS), abs=1e-4)


def test_a_batch_is_its_images_alone_and_in_any_order():
    model, images = ToyRNN(1, vocabulary=20, end_bias=1.5), made_images(9)
    options = {"beam_size": 4, "max_length": 10, "num_captions": 3, "block_ngrams": 2}
    together = beam_search(model, model.start(images), **options)
    assert len({len(hypotheses[0].tokens) for hypotheses in together}) > 1, (
        "images should end at different steps"
    )
    for image, hypotheses in zip(images, together, strict=True):
        same(hypotheses, beam_search(model, model.start(image[None]), **options)[0])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    for position, hypotheses in zip(
        order, beam_search(model, model.start(images[order]), **options), strict=True
    ):
        same(hypotheses, together[position])


def test_the_state_follows_its_beam():
    """Each hypothesis has the log-probability of its own words: a swapped state would change it."""
    model, images = ToyRNN(2, vocabulary=10), made_images(6)
    found = beam_search(model, model.start(images), beam_size=6, max_length=7, num_captions=6)
    for image, hypotheses in zip(images, found, strict=True):
        for hypothesis in hypotheses:
            expected = log_prob_of(model, image, hypothesis.tokens, hypothesis.finished)
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-4)


def test_what_the_model_reads_is_what_the_beam_holds():
    model = ToyRNN(
        4, vocabulary=10, end_bias=-100.0
    )  # no caption ends, so that all beams go on to the last step
    reads = []
    step = model.step

    def recording(tokens, state):
        logits, state = step(tokens, state)
        reads.append(state.read)
        return logits, state

    model.step = recording
    found = beam_search(model, model.start(made_images(3)), beam_size=4, max_length=6, num_captions=4)
    prefixes = {(row // 4, *tokens[1:]) for row, tokens in enumerate(reads[-1].tolist())}
    for image, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            assert (image, *hypothesis.tokens[:-1]) in prefixes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("num_captions", [1, 3])
def test_early_exit_changes_nothing_but_the_time(seed, length_penalty, num_captions):
    model, images = ToyRNN(seed, vocabulary=12, end_bias=2.0), made_images(8, seed)
    options = {
        "beam_size": 5,
        "max_length": 12,
        "length_penalty": length_penalty,
        "num_captions": num_captions,
    }
    early = beam_search(model, model.start(images), **options)
    early_rows, model.rows_seen = sum(model.rows_seen), []
    late = beam_search(model, model.start(images), early_exit=False, **options)
    assert early_rows <= sum(model.rows_seen)
    if length_penalty == 0 and num_captions == 1:
        assert early_rows < sum(model.rows_seen)
    for found, expected in zip(early, late, strict=True):
        same(found, expected)


@pytest.mark.parametrize("length_penalty", [-2.0, -0.5, 0.0, 0.7, 1.0, 3.0])
def test_the_bound_is_never_below_a_descendant(length_penalty):
    live, length, max_length = torch.tensor([-0.1, -3.0, 0.0]), 4, 9
    bound = best_reachable_score(live, length, max_length, length_penalty)
    scores = [
        (live - loss) / total**length_penalty
        for loss in (0.0, 0.3, 5.0)
        for total in range(length + 1, max_length + 1)
    ]
    assert torch.equal(bound, torch.stack(scores).amax(0)), "an upper bound, and the least one"


def test_finished_images_leave_the_batch():
    model = ToyRNN(1, vocabulary=12, end_bias=2.0)
    beam_search(model, model.start(made_images(16)), beam_size=3, max_length=15, length_penalty=0.0)
    assert model.rows_seen[0] == 16, "one row an image for the first word"
    assert model.rows_seen[1] == 48
    assert model.rows_seen[-1] < 48
    assert all(rows % 3 == 0 for rows in model.rows_seen[1:])
    model.rows_seen = []
    greedy(model, model.start(made_images(16)), max_length=15)
    assert model.rows_seen == sorted(model.rows_seen, reverse=True)
    assert model.rows_seen[-1] < model.rows_seen[0]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_repeats_marks_the_words_that_complete_a_second_ngram_and_the_last_one(n):
    tokens = torch.randint(0, 3, (4, 5, 9), generator=torch.Generator().manual_seed(n))
    for words in range(10):
        mask = repeated_ngrams(tokens[:, :, :words], n, 5)
        for image, beam, word in itertools.product(range(4), range(5), range(5)):
            caption = tokens[image, beam, :words].tolist()
            new = tuple([*caption, word][-n:]) if words >= n - 1 else None
            expected = (
                new in [tuple(caption[i : i + n]) for i in range(words - n + 1)] or [word] == caption[-1:]
            )
            assert mask[image, beam, word] == expected, (caption, word)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_no_caption_repeats_a_blocked_ngram(seed):
    model, images = ToyRNN(seed, vocabulary=7, end_bias=-1.0), made_images(8)
    free = beam_search(model, model.start(images), beam_size=3, max_length=12)
    assert any(has_repeat(h.tokens, 2) for (h,) in free), "the model should repeat itself when it may"
    blocked = beam_search(
        model, model.start(images), beam_size=3, max_length=12, block_ngrams=2, num_captions=3
    )
    assert not any(has_repeat(h.tokens, 2) for hypotheses in blocked for h in hypotheses)


@pytest.mark.parametrize("favourite", [PAD, BOS, UNK, EOS])
def test_forbidden_words_never_come_and_no_caption_is_empty(favourite):
    model, images = ToyRNN(0, vocabulary=9), made_images(5)
    step = model.step

    def biased(tokens, state):
        logits, state = step(tokens, state)
        logits[:, favourite] += 50
        return logits, state

    model.step = biased
    captions = greedy(model, model.start(images), max_length=6)
    captions += [
        h for found in beam_search(model, model.start(images), beam_size=4, num_captions=4) for h in found
    ]
    for hypothesis in captions:
        assert hypothesis.tokens
        assert not set(hypothesis.tokens) & {PAD, BOS, EOS, UNK}
    banned = beam_search(model, model.start(images), forbidden=(PAD, BOS, UNK, 4, 5), max_length=6)
    assert all(not {4, 5} & set(hypothesis.tokens) for (hypothesis,) in banned)


@pytest.mark.parametrize("max_length", [1, 2, 7])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_model_that_never_ends_gives_unfinished_captions_of_max_length(max_length, beam_size):
    model, images = ToyRNN(0, vocabulary=9, end_bias=-torch.inf), made_images(4)
    for hypotheses in beam_search(
        model, model.start(images), beam_size=beam_size, max_length=max_length, num_captions=beam_size
    ):
        assert len(hypotheses) == beam_size
        for hypothesis in hypotheses:
            assert len(hypothesis.tokens) == max_length
            assert not hypothesis.finished
            assert hypothesis.score == pytest.approx(
                hypothesis.log_prob / max_length**SearchConfig.length_penalty
            )
        assert [h.log_prob for h in hypotheses] == sorted((h.log_prob for h in hypotheses), reverse=True)
    for hypothesis in greedy(model, model.start(images), max_length=max_length):
        assert (len(hypothesis.tokens), hypothesis.finished) == (max_length, False)


def test_finished_captions_come_before_unfinished_ones():
    model, images = ToyRNN(5, vocabulary=9, end_bias=-3.0), made_images(12)
    found = beam_search(model, model.start(images), beam_size=4, max_length=6, num_captions=4)
    assert {hypothesis.finished for hypotheses in found for hypothesis in hypotheses} == {True, False}
    for hypotheses in found:
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == len(hypotheses) == 4
        finished = [hypothesis.score for hypothesis in hypotheses if hypothesis.finished]
        assert finished == sorted(finished, reverse=True)
        assert [h.finished for h in hypotheses] == sorted((h.finished for h in hypotheses), reverse=True)


def test_where_nothing_can_follow_the_words_so_far_are_returned():
    """Three words, none twice, and a model that cannot end: there is no fourth word."""
    model = ToyRNN(0, end_bias=-torch.inf)
    for (hypothesis,) in beam_search(
        model, model.start(made_images(3)), beam_size=2, max_length=9, block_ngrams=1
    ):
        assert sorted(hypothesis.tokens) == [4, 5, 6]
        assert not hypothesis.finished


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [[], [[5]], [[4, 5], [6]]], ids=str)
@pytest.mark.parametrize("max_length, min_length", [(1, 1), (2, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("block_ngrams, bad_endings", [(0, (4,)), (1, ()), (1, (5,)), (2, (4, 6))])
def test_no_caption_breaks_a_rule_where_all_beams_die(
    seed, groups, max_length, min_length, block_ngrams, bad_endings
):
    """Enumeration: finished captions, then those cut off at max_length, and nothing besides."""
    model, images = ToyRNN(seed), made_images(2, seed)
    rules = {"max_length": max_length, "min_length": min_length, "bad_endings": bad_endings}
    found = beam_search(
        model, model.start(images), beam_size=EVERYTHING, num_captions=EVERYTHING, length_penalty=0.7,
        block_ngrams=block_ngrams, force_words=[groups] * 2, **rules,
    )  # fmt: skip
    for image, hypotheses in zip(images, found, strict=True):
        valid = []
        for count in range(1, max_length + 1):
            for tokens in map(list, itertools.product((4, 5, 6), repeat=count)):
                if tokens[-1] in bad_endings or (block_ngrams and has_repeat(tokens, block_ngrams)):
                    continue
                ended = count < max_length
                if ended and count < min_length:
                    continue
                log_prob = log_prob_of(model, image, tokens, ended)
                valid.append(Hypothesis(tokens, log_prob, log_prob / (count + ended) ** 0.7, ended))

        def order(each):
            return -sum(bool({*group} & {*each.tokens}) for group in groups), not each.finished, -each.score

        assert valid or all(not each.finished for each in hypotheses)
        if valid:
            same(hypotheses, sorted(valid, key=order))


def test_logits_that_are_not_numbers_are_an_error():
    model = ToyRNN(0, end_bias=0.0)
    model.output[:] = torch.nan
    with pytest.raises(ValueError, match="no word can start a caption"):
        beam_search(model, model.start(made_images(2)))


def test_an_empty_batch_has_no_captions():
    model = ToyRNN()
    assert beam_search(model, model.start(made_images(0))) == []
    assert greedy(model, model.start(made_images(0))) == []


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 0},
        {"max_length": 0},
        {"num_captions": 0},
        {"beam_size": 2, "diverse_groups": 2, "num_captions": 3},
    ],
)
def test_sizes_that_make_no_sense_are_refused(options):
    model = ToyRNN()
    with pytest.raises(ValueError, match=next(reversed(options))):
        beam_search(model, model.start(made_images(1)), **options)
