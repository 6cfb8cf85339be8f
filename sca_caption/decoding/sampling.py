"""Captions drawn at random from the words that a model finds likely enough."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.decoding.rules import Rules, repeats
from sca_caption.decoding.stepper import Hypothesis, State, Stepper
from sca_caption.vocab import BOS, EOS


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


def truncated(scores: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logarithms of the probabilities that words are drawn by: scores (rows, V), -inf where none may be -> (rows, V).

    temperature: the scores are divided by it first. top_k: of the k likeliest only (Fan et al. 2018, arXiv
    1805.04833); 0: of all. top_p: of the fewest words whose probabilities sum to p (the nucleus of Holtzman et al.
    2020, arXiv 1904.09751), after the other two.
    """
    scores = scores / temperature
    if 0 < top_k < scores.shape[1]:
        best, words = scores.topk(top_k)
        scores = torch.full_like(scores, -torch.inf).scatter(1, words, best)
    if top_p < 1:
        probability, words = scores.softmax(1).sort(dim=1, descending=True, stable=True)
        before = probability.cumsum(1) - probability
        beyond = torch.zeros_like(before, dtype=torch.bool).scatter(1, words, before >= top_p)
        scores = scores.masked_fill(beyond, -torch.inf)
    return scores.log_softmax(1)


@torch.inference_mode()
def draw(
    model: Stepper,
    state: State,
    *,
    num_captions: int = 1,
    temperature: float = SamplingConfig.temperature,
    top_k: int = SamplingConfig.top_k,
    top_p: float = SamplingConfig.top_p,
    length_penalty: float = SearchConfig.length_penalty,
    block_ngrams: int = 0,
    generator: torch.Generator | None = None,
    **rules,
) -> list[list[Hypothesis]]:
    """`num_captions` captions drawn for each row of `state`, best score first; the same one may be drawn again.

    See `truncated`, `decode.Rules` for `rules`, and `decode.beam_search` for the others. log_prob and score are the
    model's, as if the caption had been found by a search.
    """
    images = torch.arange(len(state), device=state.device)
    rule = partial(truncated, temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = sample(
        model,
        state.select(images.repeat_interleave(num_captions)),
        rule=rule,
        block_ngrams=block_ngrams,
        generator=generator,
        **rules,
    )
    found = [
        Hypothesis(tokens, log_prob, log_prob / (len(tokens) + finished) ** length_penalty, finished)
        for tokens, log_prob, finished in zip(
            drawn.tokens, drawn.likelihood.tolist(), drawn.finished, strict=True
        )
    ]
    groups = [found[i * num_captions :][:num_captions] for i in range(len(images))]
    return [sorted(group, key=lambda hypothesis: -hypothesis.score) for group in groups]
