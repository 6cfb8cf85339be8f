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

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sca_caption.config import SearchConfig
from sca_caption.decoding.diverse_beams import Diverse
from sca_caption.decoding.lexical_constraints import Mentions, by_groups
from sca_caption.decoding.rules import Rules, check, echoes, repeats
from sca_caption.decoding.stepper import Hypothesis, State, Stepper
from sca_caption.vocab import BOS, EOS, PAD


@dataclass
class Beams:
    """Captions in the making, (n, B) of them; log_prob is -inf in the slots that hold none."""

    tokens: Tensor  # (n, B, t)
    log_prob: Tensor  # (n, B)

    def of(self, images: Tensor) -> "Beams":
        return Beams(self.tokens[images], self.log_prob[images])


@dataclass
class Finished:
    """The F best ended captions of each of S sets of each image, best first; their tokens are padded to T."""

    tokens: Tensor  # (n, S, F, T)
    log_prob: Tensor  # (n, S, F)
    length: Tensor  # (n, S, F) with the end word
    score: Tensor  # (n, S, F); -inf in the slots that hold none

    @classmethod
    def none(cls, images: int, sets: int, size: int, max_length: int, device: torch.device) -> "Finished":
        nothing = torch.full((images, sets, size), -torch.inf, device=device)
        tokens = torch.full((images, sets, size, max_length), PAD, device=device)
        return cls(tokens, nothing, torch.zeros_like(nothing, dtype=torch.long), nothing.clone())

    def of(self, images: Tensor) -> "Finished":
        return Finished(self.tokens[images], self.log_prob[images], self.length[images], self.score[images])

    def put(self, images: Tensor, other: "Finished") -> None:
        """Store the rows of `other` as those of `images`."""
        for name in ("tokens", "log_prob", "length", "score"):
            getattr(self, name)[images] = getattr(other, name)

    def merge(self, tokens: Tensor, log_prob: Tensor, length_penalty: float) -> "Finished":
        """The F best of these and of tokens (n, S, F', t), log_prob (n, S, F'); at equal scores the older."""
        size, max_length = self.tokens.shape[2:]
        words = tokens.shape[3]
        length = torch.full_like(log_prob, words + 1, dtype=torch.long)
        padded = torch.nn.functional.pad(tokens, (0, max_length - words), value=PAD)
        score = torch.cat([self.score, log_prob / (words + 1) ** length_penalty], 2)
        score, best = score.sort(dim=2, descending=True, stable=True)
        score, best = score[:, :, :size], best[:, :, :size]
        return Finished(
            torch.cat([self.tokens, padded], 2).gather(2, best[..., None].expand(-1, -1, -1, max_length)),
            torch.cat([self.log_prob, log_prob], 2).gather(2, best),
            torch.cat([self.length, length], 2).gather(2, best),
            score,
        )


def rows_of(tokens: Tensor, beams: Tensor) -> Tensor:
    """tokens (n, B, t), beams (n, ...) -> (n, ..., t): each image's beams reordered."""
    return tokens[torch.arange(len(tokens), device=tokens.device).view(-1, *[1] * (beams.dim() - 1)), beams]


def store(
    results: Finished, unfinished: list[Beams | None], images: Tensor, finished: Finished, live: Beams
) -> None:
    """File what the search ends with for `images`; `live` stands in where too few captions have finished."""
    results.put(images, finished)
    for row, image in enumerate(images.tolist()):
        unfinished[image] = Beams(live.tokens[row], live.log_prob[row])


def hypotheses_of(
    results: Finished,
    unfinished: list[Beams],
    num_captions: int,
    length_penalty: float,
    diverse: bool = False,
) -> list[list[Hypothesis]]:
    """Those that mention more groups first, of these the finished ones, best score first.

    diverse: the sets are groups; of the finished ones the best of each group come first, and no caption twice.
    """
    captions = []
    columns = (results.tokens, results.log_prob, results.length, results.score)
    for image, sets in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        found = [
            (
                place if diverse else -group.bit_count(),
                Hypothesis(tokens[: length - 1], log_prob, score, True),
            )
            for group, rows in enumerate(zip(*sets, strict=True))
            for place, (tokens, log_prob, length, score) in enumerate(zip(*rows, strict=True))
            if score > -torch.inf
        ]
        live = unfinished[image]
        beams, words = live.tokens.shape
        for slot, (tokens, log_prob) in enumerate(
            zip(live.tokens.tolist(), live.log_prob.tolist(), strict=True)
        ):
            if log_prob > -torch.inf:
                group = slot * results.score.shape[1] // beams
                unended = Hypothesis(tokens, log_prob, log_prob / words**length_penalty, False)
                found.append((beams if diverse else -group.bit_count(), unended))
        found.sort(key=lambda item: (item[0], not item[1].finished, -item[1].score))
        distinct: dict[tuple[int, ...], Hypothesis] = {}
        for _, hypothesis in found:
            distinct.setdefault(tuple(hypothesis.tokens), hypothesis)
        captions.append([*distinct.values()][:num_captions])
    return captions


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
