"""Captions and what becomes of an item that is captioned."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sca_caption.models.attention_trace import Trace
from sca_caption.runtime.errors import UserError


@dataclass(frozen=True)
class Caption:
    """A caption in words.

    Attributes:
        log_prob: natural logarithm of its probability under the captioner (see `decoding.stepper`).
        score: what captions are ranked by: log_prob / length^a, plus `rerank_weight` times the ratings of guides.
        finished: False if the search stopped at max_length before the model ended the caption.
        mean_log_prob: log_prob per word, the end word included.
        confidence: probability that the caption is better than the median, if a guide gives it.
        tokens: ids of the words in `CaptionPipeline.vocabulary`.
        ratings: what each guide that rates captions gave it, by the guide's name.
        missing_words: the entries of `force_words` of which it contains no word.
    """

    text: str
    log_prob: float
    score: float
    finished: bool
    mean_log_prob: float
    confidence: float | None = None
    tokens: tuple[int, ...] = ()
    ratings: Mapping[str, float] = field(default_factory=dict)
    missing_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The captions of one item, best first, or the reason why there are none.

    trace: the attention at every word of the best caption, if it was asked for.
    """

    item: Any
    captions: tuple[Caption, ...] = ()
    error: UserError | None = None
    trace: Trace | None = None
