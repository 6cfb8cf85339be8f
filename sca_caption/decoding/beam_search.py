"""Greedy and beam search over a batch of images at once.

The search knows a captioner by the protocols of `stepper` alone. A caption's score is log_prob / length^a, where length
counts the words and the end word, and a is the length penalty (Wu et al., arXiv 1609.08144, without their constants):
0 ranks by probability, 1 by the mean log-probability per word; larger values favour longer captions.

Shapes: n images in the search, S sets of beams per image, B live beams per image over all sets, K = beam_size, F finished
captions kept per set, V words, t words so far, T = max_length.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sca_caption.config import SearchConfig
from sca_caption.decoding.caption_grammar import CaptionGrammar
from sca_caption.decoding.diverse_beams import DiverseBeams
from sca_caption.decoding.lexical_constraints import LexicalConstraints, by_group_count
from sca_caption.decoding.rules import Rules, repeated_conjuncts, repeated_ngrams, require_positive
from sca_caption.decoding.stepper import Hypothesis, State, Stepper, WordMask, log_probs
from sca_caption.vocab import BOS, EOS, PAD


@dataclass
class Beams:
    """Live captions; log_prob is -inf where a slot holds none."""

    tokens: Tensor  # (n, B, t)
    log_prob: Tensor  # (n, B)

    def select(self, images: Tensor) -> "Beams":
        return Beams(self.tokens[images], self.log_prob[images])


@dataclass
class Finished:
    """The F best finished captions of each set of each image, best first; tokens are padded to T."""

    tokens: Tensor  # (n, S, F, T)
    log_prob: Tensor  # (n, S, F)
    length: Tensor  # (n, S, F), end word included
    score: Tensor  # (n, S, F); -inf where a slot holds none

    @classmethod
    def none(cls, images: int, sets: int, size: int, max_length: int, device: torch.device) -> "Finished":
        nothing = torch.full((images, sets, size), -torch.inf, device=device)
        tokens = torch.full((images, sets, size, max_length), PAD, device=device)
        return cls(tokens, nothing, torch.zeros_like(nothing, dtype=torch.long), nothing.clone())

    def select(self, images: Tensor) -> "Finished":
        return Finished(self.tokens[images], self.log_prob[images], self.length[images], self.score[images])

    def put(self, images: Tensor, other: "Finished") -> None:
        """Replace the rows of `images` by those of `other`."""
        for name in ("tokens", "log_prob", "length", "score"):
            getattr(self, name)[images] = getattr(other, name)

    def merge(self, tokens: Tensor, log_prob: Tensor, length_penalty: float) -> "Finished":
        """The F best of these and of tokens (n, S, F', t), log_prob (n, S, F'); at equal scores, the older first."""
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


@torch.inference_mode()
def greedy(model: Stepper, state: State, **rules: Any) -> list[Hypothesis]:
    """Choose the most probable word at every step; one hypothesis per row of `state`, in order.

    rules: see `Rules`. The score is the log-probability, without a length penalty.
    """
    allowed = Rules(**rules)
    max_length = allowed.max_length
    images = len(state)
    if not images:
        return []
    active = torch.arange(images, device=state.device)
    words = torch.full((images, max_length), EOS, device=state.device)
    log_prob = torch.zeros(images, device=state.device)
    last = torch.full((images,), BOS, device=state.device)
    for length in range(1, max_length + 1):
        logits, state = model.step(last, state)
        gained, last = allowed.apply(log_probs(logits), last, length).max(1)
        log_prob[active] += gained
        words[active, length - 1] = last
        live = (last != EOS).nonzero().squeeze(1)
        if not len(live) or length == max_length:
            break
        if len(live) < len(active):
            active, last, state = active[live], last[live], state.select(live)
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
    conjunctions: Collection[int] = (),
    num_captions: int = SearchConfig.num_captions,
    force_words: Sequence[Sequence[Collection[int]]] | None = None,
    grammar: CaptionGrammar | None = None,
    mask: WordMask | None = None,
    diverse_groups: int = 1,
    diversity: float = SearchConfig.diversity,
    early_exit: bool = True,
    **rules: Any,
) -> list[list[Hypothesis]]:
    """The `num_captions` best captions of each row of `state`, best score first.

    The search is first come, first served (Kasai et al., arXiv 2204.05424). At every step it looks at the K best
    continuations of an image's live beams. Those that end the caption are kept as finished, and K that do not end it
    continue, so the beam stays full. An image is done when K captions (or `num_captions`, if larger) have finished, or
    when no live beam can still enter the `num_captions` best (`early_exit`: the same result, sooner; see
    `best_reachable_score`), and then leaves the batch. With one beam and one caption this is greedy search.

    Finished captions come first. If fewer than `num_captions` finished within max_length, the best unfinished ones of
    max_length words follow. Shorter captions that no word may follow break the rules, so they are returned only if
    there is no other caption. There is always at least one; there are fewer than `num_captions` only if rules and
    vocabulary allow no more.

    Args:
        block_ngrams: exclude n words in a row that a caption already has, and the same word twice in a row; 0: off.
        conjunctions: ids of words that must not join a word with itself ("white and white").
        mask: excludes words per image (see `stepper.WordMask`).
        force_words: per image up to three groups of word ids; captions shall contain one word of each group. An image
            with G > 0 groups has K beams in each of 2^G sets (see `lexical_constraints`). It is done only when no live
            beam can enter the best captions that contain all groups: the first to finish contain a word at any cost,
            and later ones find a better place for it. Captions that contain more groups come first.
        grammar: refuses captions with forced words that are ungrammatical; captions without them are not checked.
        diverse_groups: this many groups of beam_size / diverse_groups beams, which differ in their words (see
            `diverse_beams`), for images without forced words. The best caption of each group comes first, then the second
            best of each; an image is done when every group is. No caption comes twice, so there may be fewer.
        rules: see `Rules`.

    Raises ValueError for sizes that contradict each other, and if no word can start a caption.
    """
    require_positive(beam_size=beam_size, num_captions=num_captions)
    if diverse_groups > 1 and num_captions > beam_size:
        raise ValueError(f"num_captions={num_captions} is more than beam_size={beam_size}; raise beam_size")
    if diverse_groups < 1 or beam_size % diverse_groups:
        raise ValueError(f"diverse_groups={diverse_groups} does not divide beam_size={beam_size}")
    groups = DiverseBeams(diverse_groups, diversity) if diverse_groups > 1 else None
    search = partial(
        _search_in_sets,
        model,
        rules=Rules(**rules),
        length_penalty=length_penalty,
        block_ngrams=block_ngrams,
        conjunctions=torch.tensor(sorted(conjunctions), device=state.device),
        mask=mask,
        grammar=grammar,
        num_captions=num_captions,
        early_exit=early_exit,
    )
    if not force_words or not any(force_words):
        return search(state, groups, beam_size=beam_size // diverse_groups)
    captions: list[list[Hypothesis]] = [[]] * len(state)
    for rows, words in by_group_count(force_words, state.device):
        part = state.select(torch.tensor(rows, device=state.device))
        size = beam_size if words else beam_size // diverse_groups
        for row, found in zip(rows, search(part, words or groups, beam_size=size), strict=True):
            captions[row] = found
    return captions


def _search_in_sets(
    model: Stepper,
    state: State,
    kind: LexicalConstraints | DiverseBeams | None = None,
    *,
    rules: Rules,
    beam_size: int,
    length_penalty: float,
    block_ngrams: int,
    conjunctions: Tensor,
    mask: WordMask | None,
    grammar: CaptionGrammar | None,
    num_captions: int,
    early_exit: bool,
) -> list[list[Hypothesis]]:
    """`beam_search` over S sets of K beams per image (B = S * K). kind: what the sets are; None if there is one."""
    images, device, max_length = len(state), state.device, rules.max_length
    if not images:
        return []
    sets, diverse = kind.sets if kind else 1, isinstance(kind, DiverseBeams)
    active = torch.arange(images, device=device)  # (n,) the image that each row of the search belongs to
    start = torch.full((images, sets), -torch.inf, device=device)
    start[:, : sets if diverse else 1] = 0  # a caption without words contains no forced word
    live = Beams(torch.empty(images, sets, 0, dtype=torch.long, device=device), start)
    if sets > 1:
        state = state.select(active.repeat_interleave(sets))
    kept = beam_size if diverse else max(beam_size, num_captions)
    finished = Finished.none(images, sets, kept, max_length, device)
    results = Finished.none(images, sets, kept, max_length, device)
    unfinished = [live.select(active[:0])] * images  # replaced for every image before the search returns
    last = torch.full((images * sets,), BOS, device=device)

    for length in range(1, max_length + 1):
        logits, state = model.step(last, state)
        log_prob = rules.apply(log_probs(logits), last, length)
        if mask is not None:
            log_prob = log_prob.masked_fill(mask(last, state), -torch.inf)
        log_prob = log_prob.view(*live.log_prob.shape, -1)  # (n, B, V)
        if block_ngrams:
            log_prob = log_prob.masked_fill(
                repeated_ngrams(live.tokens, block_ngrams, log_prob.shape[2]), -torch.inf
            )
        if len(conjunctions):
            log_prob = log_prob.masked_fill(
                repeated_conjuncts(live.tokens, conjunctions, log_prob.shape[2]), -torch.inf
            )
        if grammar and isinstance(kind, LexicalConstraints):
            ungrammatical = grammar.excluded(live.tokens, length == max_length)
            log_prob = log_prob.masked_fill(kind.with_forced_words(ungrammatical), -torch.inf)
        total = live.log_prob[:, :, None] + log_prob

        # At most K of a set's 2K best continuations end a caption, one per beam, so K that continue are among them.
        rank, choice = _best_continuations(total, kind, 2 * beam_size)  # (n, S, 2K)
        total = total.flatten(1).gather(1, choice.flatten(1)).view_as(rank)
        total = total.masked_fill(rank == -torch.inf, -torch.inf)
        parent, word = choice // log_prob.shape[2], choice % log_prob.shape[2]
        ends = word == EOS
        finished = finished.merge(
            select_beams(live.tokens, parent[..., :beam_size]),
            total[..., :beam_size].masked_fill(~ends[..., :beam_size], -torch.inf),
            length_penalty,
        )
        count = min(beam_size, total.shape[2])
        going_on = rank.masked_fill(ends, -torch.inf).topk(count).indices  # (n, S, B / S)
        onward = total.masked_fill(ends, -torch.inf).gather(2, going_on)
        parent, word = parent.gather(2, going_on).flatten(1), word.gather(2, going_on).flatten(1)  # (n, B)
        before = live
        live = Beams(torch.cat([select_beams(live.tokens, parent), word[:, :, None]], 2), onward.flatten(1))

        done = finished.score[:, :, -1].isfinite().all(1) & (sets == 1 or diverse)
        likeliest = onward[:, :, 0].amax(1)  # (n,)
        dead = ~likeliest.isfinite()  # no word can follow, or the logits are not numbers
        if length == 1 and dead.any():
            raise ValueError("no word can start a caption: logits not finite, or all words forbidden")
        # The last words of captions that cannot go on stand in only where no caption is valid.
        before.log_prob[~dead | finished.score[:, :, 0].isfinite().any(1)] = -torch.inf
        if length == max_length:
            for rows, beams in ((~dead, live), (dead, before)):
                _keep(results, unfinished, active[rows], finished.select(rows), beams.select(rows))
            break
        if early_exit and not diverse:
            reach = best_reachable_score(likeliest, length, max_length, length_penalty)
            done |= reach <= finished.score[:, -1, num_captions - 1]
        done |= dead
        first_row = torch.arange(len(active), device=device)[:, None] * before.log_prob.shape[1]  # (n, 1)
        rows = first_row + parent  # (n, B)
        if done.any():
            _keep(results, unfinished, active[done], finished.select(done), before.select(done))
            going = ~done
            active, live, finished = active[going], live.select(going), finished.select(going)
            kind = kind and kind.select(going)
            word, rows = word[going], rows[going]
            if not len(active):
                break
        last, state = word.flatten(), state.select(rows.flatten())
    return _hypotheses(results, unfinished, num_captions, length_penalty, diverse)


def _best_continuations(
    total: Tensor, kind: LexicalConstraints | DiverseBeams | None, count: int
) -> tuple[Tensor, Tensor]:
    """The `count` best continuations of each set.

    total: scores (n, B, V) -> what they rank by (-inf where there are none), and indices into B * V, both (n, S, count).
    """
    if kind:
        return kind.best(total, count)
    total = total.flatten(1)[:, None]
    return total.topk(min(count, total.shape[2]))


def best_reachable_score(log_prob: Tensor, length: int, max_length: int, length_penalty: float) -> Tensor:
    """Upper bound on the score of every caption that can grow from live captions of `length` words, (n,) -> (n,).

    A finished descendant has a log-probability l <= log_prob <= 0, because every word adds at most 0, and a length m from
    length + 1 to max_length. l / m^a <= log_prob / m^a because m^a > 0, and because log_prob <= 0 the bound is largest
    where m^a is largest: at max_length for a >= 0, at length + 1 for a < 0.
    """
    return log_prob / max((length + 1) ** length_penalty, max_length**length_penalty)


def select_beams(tokens: Tensor, beams: Tensor) -> Tensor:
    """tokens (n, B, t), beams (n, ...) -> (n, ..., t): reorders the beams of each image."""
    return tokens[torch.arange(len(tokens), device=tokens.device).view(-1, *[1] * (beams.dim() - 1)), beams]


def _keep(
    results: Finished, unfinished: list[Beams], images: Tensor, finished: Finished, live: Beams
) -> None:
    """Keep the result of the search for `images`; `live` beams fill up where too few captions have finished."""
    results.put(images, finished)
    for row, image in enumerate(images.tolist()):
        unfinished[image] = Beams(live.tokens[row], live.log_prob[row])


def _hypotheses(
    results: Finished,
    unfinished: list[Beams],
    num_captions: int,
    length_penalty: float,
    diverse: bool = False,
) -> list[list[Hypothesis]]:
    """The captions of each image: those with more forced words first, then the finished ones, then by score.

    diverse: the sets are groups; the best finished caption of each group comes first, and no caption comes twice.
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
                unfinished_one = Hypothesis(tokens, log_prob, log_prob / words**length_penalty, False)
                found.append((beams if diverse else -group.bit_count(), unfinished_one))
        found.sort(key=lambda item: (item[0], not item[1].finished, -item[1].score))
        distinct: dict[tuple[int, ...], Hypothesis] = {}
        for _, hypothesis in found:
            distinct.setdefault(tuple(hypothesis.tokens), hypothesis)
        captions.append([*distinct.values()][:num_captions])
    return captions
