"""Greedy and beam search over a whole batch of images at once.

The search knows of a captioner only its step (the `Stepper` protocol) and the ids of the special words:

    state = model.start(encoded)                 # one row an image; opaque but for len() and select()
    logits, state = model.step(tokens, state)    # tokens (rows,) -> logits (rows, V)

Shapes: n images in the search, S sets of beams an image, B slots for live beams an image in all of them, K = beam_size,
V words, t words so far, T = max_length.

A caption's log-probability is the sum of its words' (and of the end word's, if it ended) log-probabilities
under the model; forbidding words does not renormalise the others. Its score is log_prob / length**a, where
length counts the words and the end word and a is the length penalty (Wu et al., arXiv 1609.08144, without
their constants): 0 compares probabilities, 1 the mean per word; more favours longer captions.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor

from sca_caption.beams import Beams, Finished, Hypothesis, hypotheses_of, rows_of, store
from sca_caption.constraints import Mentions, by_groups
from sca_caption.diverse import Diverse
from sca_caption.search import SearchConfig
from sca_caption.vocab import BOS, EOS, PAD, UNK

NEVER = (PAD, BOS, UNK)


class State(Protocol):
    """What a decoder remembers between two words, a row for each caption in the making."""

    device: torch.device

    def __len__(self) -> int: ...

    def select(self, rows: Tensor) -> Self:
        """Row i of the result is row rows[i] of this state: reorders, repeats and drops rows."""


class Stepper(Protocol):
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]: ...


@dataclass(frozen=True)
class Rules:
    """Which words may come where. Raises ValueError for sizes that make no sense.

    At least min_length and at most max_length words, never one of `forbidden`, and none of `never_last` at the end.
    """

    max_length: int = SearchConfig.max_length
    min_length: int = SearchConfig.min_length
    forbidden: Sequence[int] = NEVER
    never_last: Sequence[int] = ()

    def __post_init__(self):
        check(max_length=self.max_length, min_length=self.min_length)
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} is more than max_length={self.max_length}")

    def apply(self, scores: Tensor, last: Tensor, length: int) -> Tensor:
        """Set to -inf, in place, what may not be the word number `length` after the words `last` (rows,): (rows, V)."""
        scores[:, list(self.forbidden) + [EOS] * (length <= self.min_length)] = -torch.inf
        if self.never_last:
            never_last = torch.tensor(self.never_last, device=last.device)
            scores[torch.isin(last, never_last), EOS] = -torch.inf
            if length == self.max_length:
                scores[:, never_last] = -torch.inf
        return scores


@torch.inference_mode()
def greedy(model: Stepper, state: State, **rules) -> list[Hypothesis]:
    """The likeliest next word at every step; one hypothesis for each row of `state`, in order.

    rules: see `Rules`. The score is the log-probability (no length penalty).
    """
    rules = Rules(**rules)
    max_length = rules.max_length
    images = len(state)
    if not images:
        return []
    active = torch.arange(images, device=state.device)
    words = torch.full((images, max_length), EOS, device=state.device)
    log_prob = torch.zeros(images, device=state.device)
    last = torch.full((images,), BOS, device=state.device)
    for length in range(1, max_length + 1):
        logits, state = model.step(last, state)
        gained, last = rules.apply(logits.float().log_softmax(1), last, length).max(1)
        log_prob[active] += gained
        words[active, length - 1] = last
        going = (last != EOS).nonzero().squeeze(1)
        if not len(going) or length == max_length:
            break
        if len(going) < len(active):
            active, last, state = active[going], last[going], state.select(going)
    hypotheses = []
    for tokens, total in zip(words.tolist(), log_prob.tolist(), strict=True):
        finished = EOS in tokens
        tokens = tokens[: tokens.index(EOS)] if finished else tokens
        hypotheses.append(Hypothesis(tokens, total, total, finished))
    return hypotheses


def log_softmax(scores: Tensor) -> Tensor:
    return scores.log_softmax(1)


@dataclass
class Sampled:
    """Captions drawn at random, a row each: ids without BOS and EOS, log-probabilities that carry gradients."""

    tokens: list[list[int]]
    finished: list[bool]
    log_prob: (
        Tensor  # (rows,), of all words and of the end word if there is one, under what they were drawn from
    )
    likelihood: Tensor | None = None  # (rows,) the same under the model, without gradients


def sample(
    model: Stepper,
    state: State,
    *,
    rule: Callable[[Tensor], Tensor] = log_softmax,
    block_ngrams: int = 0,
    generator: torch.Generator | None = None,
    **rules,
) -> Sampled:
    """Draw each next word from the model's distribution over the words that are allowed, for every row of `state`.

    rule: makes log-probabilities of the scores of the words, (rows, V), -inf for those that are not allowed.
    rules: see `Rules`; block_ngrams: as in `beam_search`. Keeps gradients, for training on what the model says itself.
    """
    rules = Rules(**rules)
    rows = len(state)
    active = torch.arange(rows, device=state.device)
    words = torch.full((rows, rules.max_length), EOS, device=state.device)
    log_prob = torch.zeros(rows, device=state.device)
    likelihood = torch.zeros(rows, device=state.device)
    last = torch.full((rows,), BOS, device=state.device)
    for length in range(1, rules.max_length + 1):
        logits, state = model.step(last, state)
        scores = rules.apply(logits.float().clone(), last, length)
        if block_ngrams:
            said = repeats(words[active, None, : length - 1], block_ngrams, scores.shape[1])
            scores = scores.masked_fill(said[:, 0], -torch.inf)
        each = rule(scores)
        last = torch.multinomial(each.detach().exp(), 1, generator=generator)  # (rows still going, 1)
        log_prob = log_prob.index_add(0, active, each.gather(1, last).squeeze(1))
        likelihood[active] += logits.detach().float().log_softmax(1).gather(1, last).squeeze(1)
        last = last.squeeze(1)
        words[active, length - 1] = last
        going = (last != EOS).nonzero().squeeze(1)
        if not len(going):
            break
        active, last, state = active[going], last[going], state.select(going)
    tokens = words.tolist()
    finished = [EOS in row for row in tokens]
    tokens = [row[: row.index(EOS)] if EOS in row else row for row in tokens]
    return Sampled(tokens, finished, log_prob, likelihood)


@torch.inference_mode()
def beam_search(
    model: Stepper,
    state: State,
    *,
    beam_size: int = SearchConfig.beam_size,
    length_penalty: float = SearchConfig.length_penalty,
    block_ngrams: int = 0,
    joining: Collection[int] = (),
    num_captions: int = SearchConfig.num_captions,
    mentions: Sequence[Sequence[Collection[int]]] | None = None,
    diverse_groups: int = 1,
    diversity: float = SearchConfig.diversity,
    early_exit: bool = True,
    **rules,
) -> list[list[Hypothesis]]:
    """The `num_captions` best captions of each row of `state`, in order, best score first.

    First come, first served (Kasai et al., arXiv 2204.05424): at every step the K best continuations of an
    image's live beams are looked at; those that end the caption are kept as finished, and K that do not end
    go on, so the beam stays full. The image is done when K captions have finished, or `num_captions` where that is
    more, or when no live beam can still enter the `num_captions` best (`early_exit`: the same result, sooner; see
    `out_of_reach`), and then leaves the batch. With one beam and one caption this is greedy search.

    Captions obey `rules` (see `Rules`), and with block_ngrams = n > 0 no n words in a row twice, and none right after
    itself; a word of `joining` ("and") never stands between a word and itself ("white and white"). Finished captions come
    first; where fewer than `num_captions` finished within max_length, the best unfinished ones follow. There is always at
    least one; there are fewer than `num_captions` only where the vocabulary has no more.

    mentions: for each image at most three groups of word ids; its captions shall have a word of each group.
    An image with G > 0 groups has K beams in each of 2^G sets (see `constraints`), each of which goes on as above,
    but is done only when no live beam can still enter the best that mention all: the first to finish force the
    word in anyhow, where later ones find a place for it. Captions that mention more groups come before all others,
    so the first ones mention all if any can.

    diverse_groups: that many sets of beams, of beam_size / diverse_groups each, which differ in their words (see
    `diverse`), for images without mentions. The best caption of each group comes first, then the second best; the
    image is done when every group is, and no caption comes twice, so that there may be fewer.
    """
    check(beam_size=beam_size, num_captions=num_captions)
    if diverse_groups > 1 and num_captions > beam_size:
        raise ValueError(f"num_captions={num_captions} is more than beam_size={beam_size}; raise beam_size")
    if diverse_groups < 1 or beam_size % diverse_groups:
        raise ValueError(f"diverse_groups={diverse_groups} does not divide beam_size={beam_size}")
    groups = Diverse(diverse_groups, diversity) if diverse_groups > 1 else None
    search = partial(
        search_in_sets,
        model,
        rules=Rules(**rules),
        length_penalty=length_penalty,
        block_ngrams=block_ngrams,
        joining=torch.tensor(sorted(joining), device=state.device),
        num_captions=num_captions,
        early_exit=early_exit,
    )
    if not mentions or not any(mentions):
        return search(state, groups, beam_size=beam_size // diverse_groups)
    captions: list[list[Hypothesis]] = [[]] * len(state)
    for rows, words in by_groups(mentions, state.device):
        part = state.select(torch.tensor(rows, device=state.device))
        size = beam_size if words else beam_size // diverse_groups
        for row, found in zip(rows, search(part, words or groups, beam_size=size), strict=True):
            captions[row] = found
    return captions


def search_in_sets(
    model: Stepper,
    state: State,
    kind: Mentions | Diverse | None = None,
    *,
    rules: Rules,
    beam_size: int,
    length_penalty: float,
    block_ngrams: int,
    joining: Tensor,
    num_captions: int,
    early_exit: bool,
) -> list[list[Hypothesis]]:
    """`beam_search` over S sets of beams an image, B = S * K slots; `kind` says what the sets are, None: there is one."""
    images, device, max_length = len(state), state.device, rules.max_length
    if not images:
        return []
    sets, diverse = kind.sets if kind else 1, isinstance(kind, Diverse)
    active = torch.arange(images, device=device)  # (n,) the image that each row of the search belongs to
    start = torch.full((images, sets), -torch.inf, device=device)
    start[:, : sets if diverse else 1] = 0  # with nothing said, nothing is mentioned
    live = Beams(torch.empty(images, sets, 0, dtype=torch.long, device=device), start)
    if sets > 1:
        state = state.select(active.repeat_interleave(sets))
    kept = beam_size if diverse else max(beam_size, num_captions)
    finished = Finished.none(images, sets, kept, max_length, device)
    results, unfinished = Finished.none(images, sets, kept, max_length, device), [None] * images
    last = torch.full((images * sets,), BOS, device=device)

    for length in range(1, max_length + 1):
        logits, state = model.step(last, state)
        log_prob = rules.apply(logits.float().log_softmax(1), last, length)
        log_prob = log_prob.view(*live.log_prob.shape, -1)  # (n, B, V)
        if block_ngrams:
            log_prob = log_prob.masked_fill(repeats(live.tokens, block_ngrams, log_prob.shape[2]), -torch.inf)
        if len(joining):
            log_prob = log_prob.masked_fill(echoes(live.tokens, joining, log_prob.shape[2]), -torch.inf)
        total = live.log_prob[:, :, None] + log_prob

        # Of a set's 2K best at most K end a caption, one for each of its beams: K that go on are always among them.
        rank, choice = best_of(total, kind, 2 * beam_size)  # (n, S, 2K)
        total = total.flatten(1).gather(1, choice.flatten(1)).view_as(rank)
        total = total.masked_fill(rank == -torch.inf, -torch.inf)
        parent, word = choice // log_prob.shape[2], choice % log_prob.shape[2]
        ends = word == EOS
        finished = finished.merge(
            rows_of(live.tokens, parent[..., :beam_size]),
            total[..., :beam_size].masked_fill(~ends[..., :beam_size], -torch.inf),
            length_penalty,
        )
        going_on = (
            rank.masked_fill(ends, -torch.inf).topk(min(beam_size, total.shape[2])).indices
        )  # (n, S, B / S)
        onward = total.masked_fill(ends, -torch.inf).gather(2, going_on)
        parent, word = parent.gather(2, going_on).flatten(1), word.gather(2, going_on).flatten(1)  # (n, B)
        before = live
        live = Beams(torch.cat([rows_of(live.tokens, parent), word[:, :, None]], 2), onward.flatten(1))

        done = finished.score[:, :, -1].isfinite().all(1) & (sets == 1 or diverse)
        likeliest = onward[:, :, 0].amax(1)  # (n,)
        dead = ~likeliest.isfinite()  # nothing can follow, or the logits are not numbers
        if length == 1 and dead.any():
            raise ValueError("no word can start a caption: logits not finite, or all words forbidden")
        if length == max_length:
            for rows, said in ((~dead, live), (dead, before)):
                store(results, unfinished, active[rows], finished.of(rows), said.of(rows))
            break
        if early_exit and not diverse:
            reach = out_of_reach(likeliest, length, max_length, length_penalty)
            done |= reach <= finished.score[:, -1, num_captions - 1]
        done |= dead
        first_row = torch.arange(len(active), device=device)[:, None] * before.log_prob.shape[1]  # (n, 1)
        rows = first_row + parent  # (n, B)
        if done.any():
            nothing = dead & ~finished.score[:, :, 0].isfinite().any(1)
            before.log_prob[~nothing] = -torch.inf
            store(results, unfinished, active[done], finished.of(done), before.of(done))
            going = ~done
            active, live, finished = active[going], live.of(going), finished.of(going)
            kind = kind and kind.of(going)
            word, rows = word[going], rows[going]
            if not len(active):
                break
        last, state = word.flatten(), state.select(rows.flatten())
    return hypotheses_of(results, unfinished, num_captions, length_penalty, diverse)


def best_of(total: Tensor, kind: Mentions | Diverse | None, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best continuations in each set: total (n, B, V) -> (n, S, count) twice, what they rank by, which is
    -inf where there are none, and where in B * V they are."""
    if kind:
        return kind.best(total, count)
    total = total.flatten(1)[:, None]
    return total.topk(min(count, total.shape[2]))


def out_of_reach(log_prob: Tensor, length: int, max_length: int, length_penalty: float) -> Tensor:
    """An upper bound on the score of whatever can grow from live captions of `length` words, (n,) -> (n,).

    A finished descendant has a log-probability l <= log_prob <= 0, as every word adds at most 0, and a length
    m from length + 1 to max_length. l / m**a <= log_prob / m**a as m**a > 0, and as log_prob <= 0 that is
    largest where m**a is: at max_length for a >= 0, at length + 1 for a < 0. So a caption that reaches the
    bound cannot be beaten by the descendants.
    """
    return log_prob / max((length + 1) ** length_penalty, max_length**length_penalty)


def repeats(tokens: Tensor, n: int, vocabulary_size: int) -> Tensor:
    """True for words that would complete an n-gram the caption has, and for its last: (n, B, t) -> bool (n, B, V)."""
    images, beams, words = tokens.shape
    mask = torch.zeros(images, beams, vocabulary_size + 1, dtype=torch.bool, device=tokens.device)
    if words >= n:
        windows = tokens.unfold(2, n, 1)  # (n, B, t - n + 1, n)
        seen = (windows[..., :-1] == tokens[:, :, None, words - n + 1 :]).all(-1)
        # The windows that do not match mark a word past the vocabulary, which is cut off.
        mask.scatter_(2, torch.where(seen, windows[..., -1], vocabulary_size), True)
    mask.scatter_(2, tokens[..., -1:], True)
    return mask[..., :vocabulary_size]


def echoes(tokens: Tensor, joining: Tensor, vocabulary_size: int) -> Tensor:
    """True for the word before the last where the last is one of `joining` (ids): (n, B, t) -> bool (n, B, V)."""
    mask = torch.zeros(*tokens.shape[:2], vocabulary_size + 1, dtype=torch.bool, device=tokens.device)
    if tokens.shape[2] >= 2:
        joined = torch.isin(tokens[..., -1:], joining)
        mask.scatter_(2, torch.where(joined, tokens[..., -2:-1], vocabulary_size), True)
    return mask[..., :vocabulary_size]


def check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")
