"""Sampling: captions drawn at random from the words that a model finds probable enough."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.decoding.rules import Rules, repeated_ngrams
from sca_caption.decoding.stepper import Hypothesis, State, Stepper, WordMask, log_probs
from sca_caption.vocab import BOS, EOS


@dataclass
class Sampled:
    """Sampled captions, one per row: word ids without BOS and EOS.

    log_prob: (rows,) of all words, and of the end word if there is one, under the distribution that they were drawn from;
    carries gradients. likelihood: (rows,) the same under the model, without gradients (see `stepper`).
    """

    tokens: list[list[int]]
    finished: list[bool]
    log_prob: Tensor
    likelihood: Tensor


def log_softmax(scores: Tensor) -> Tensor:
    return scores.log_softmax(1)


def sample(
    model: Stepper,
    state: State,
    *,
    rule: Callable[[Tensor], Tensor] = log_softmax,
    block_ngrams: int = 0,
    mask: WordMask | None = None,
    generator: torch.Generator | None = None,
    **rules: Any,
) -> Sampled:
    """Draw every next word from the model's distribution over the words that are allowed, for each row of `state`.

    rule: turns the logits (rows, V), -inf for words that are not allowed, into the log-probabilities to draw from.
    The other arguments are those of `beam_search.beam_search`. Keeps gradients, for training on sampled captions.
    """
    allowed = Rules(**rules)
    rows = len(state)
    active = torch.arange(rows, device=state.device)
    words = torch.full((rows, allowed.max_length), EOS, device=state.device)
    log_prob = torch.zeros(rows, device=state.device)
    likelihood = torch.zeros(rows, device=state.device)
    last = torch.full((rows,), BOS, device=state.device)
    for length in range(1, allowed.max_length + 1):
        logits, state = model.step(last, state)
        scores = allowed.apply(logits.float().clone(), last, length)
        if mask is not None:
            scores = scores.masked_fill(mask(last, state), -torch.inf)
        if block_ngrams:
            repeated = repeated_ngrams(words[active, None, : length - 1], block_ngrams, scores.shape[1])
            scores = scores.masked_fill(repeated[:, 0], -torch.inf)
        drawn_from = rule(scores)
        last = torch.multinomial(drawn_from.detach().exp(), 1, generator=generator)  # (rows still live, 1)
        log_prob = log_prob.index_add(0, active, drawn_from.gather(1, last).squeeze(1))
        likelihood[active] += log_probs(logits.detach()).gather(1, last).squeeze(1)
        last = last.squeeze(1)
        words[active, length - 1] = last
        live = (last != EOS).nonzero().squeeze(1)
        if not len(live):
            break
        active, last, state = active[live], last[live], state.select(live)
    tokens = words.tolist()
    finished = [EOS in row for row in tokens]
    tokens = [row[: row.index(EOS)] if EOS in row else row for row in tokens]
    return Sampled(tokens, finished, log_prob, likelihood)


def truncated(scores: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Log-probabilities to draw words from: scores (rows, V), -inf for words that are not allowed -> (rows, V).

    temperature: divides the scores. top_k: keep the k most probable words (Fan et al. 2018, arXiv 1805.04833); 0: all.
    top_p: keep the fewest words whose probabilities sum to p (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751),
    after the other two.
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
    **options: Any,
) -> list[list[Hypothesis]]:
    """Sample `num_captions` captions for each row of `state`, best score first; a caption may be drawn more than once.

    See `truncated`, and `sample` for `options`. log_prob and score are those of the model, as if a search had found the
    caption.
    """
    images = torch.arange(len(state), device=state.device)
    rule = partial(truncated, temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = sample(model, state.select(images.repeat_interleave(num_captions)), rule=rule, **options)
    found = [
        Hypothesis(tokens, log_prob, log_prob / (len(tokens) + finished) ** length_penalty, finished)
        for tokens, log_prob, finished in zip(
            drawn.tokens, drawn.likelihood.tolist(), drawn.finished, strict=True
        )
    ]
    groups = [found[i * num_captions :][:num_captions] for i in range(len(images))]
    return [sorted(group, key=lambda hypothesis: -hypothesis.score) for group in groups]
