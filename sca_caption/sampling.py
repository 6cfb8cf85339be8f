"""Captions drawn at random from the words that a model finds likely enough."""

from functools import partial

import torch
from torch import Tensor

from sca_caption import decode
from sca_caption.beams import Hypothesis
from sca_caption.decode import State, Stepper
from sca_caption.search import SamplingConfig, SearchConfig


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
    drawn = decode.sample(
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
