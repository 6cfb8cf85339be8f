"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions against reference captions, with bootstrap intervals.

All scores are in the 0-100 form (1.0 of CIDEr is 100.0), computed on the words of `ptb_tokenize`, and equal to the scores
of pycocoevalcap with its Java tokenizer. `bleu`, `rouge` and `cider` are pure Python, which needs less time and works
without Java; METEOR and SPICE are pycocoevalcap's Java programs. METEOR runs in parallel with the other metrics.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from sca_caption.evaluation.bleu import bleu, bleu_statistics
from sca_caption.evaluation.cider import cider
from sca_caption.evaluation.meteor_spice import Meteor, MetricUnavailable, meteor, pycocoevalcap_folder, spice
from sca_caption.evaluation.ngrams import count_ngrams
from sca_caption.evaluation.nltk_bleu import nltk_bleu
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.evaluation.rouge import rouge_l

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
CONFIDENCE = 95  # per cent
Key = TypeVar("Key", bound=Hashable)  # identifies an image


@dataclass
class Scores:
    """The result of `evaluate`. `metrics` and `confidence` (low, high) are None for each metric in `missing`."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    confidence: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # metric -> the reason, in one line
    images: dict[Hashable, dict[str, float]] = field(default_factory=dict)  # image -> metric -> score


@dataclass(frozen=True)
class MetricStatistics:
    """Sufficient statistics of a metric: the corpus score is a function of the sum of the images' statistics."""

    statistics: np.ndarray  # (N, k)
    corpus_score: Callable[[np.ndarray], np.ndarray]  # sums (..., k) -> scores (...), 0 to 100
    image_scores: np.ndarray  # (N,), 0 to 100


def evaluate(
    candidates: Mapping[Key, str],
    references: Mapping[Key, Sequence[str]],
    *,
    with_spice: bool = False,
    with_nltk: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score one caption per image against the references of the image. All captions are raw text.

    candidates, references: by image. Each candidate needs at least one reference; references of other images are ignored.
    The confidence intervals are bootstrap intervals: `resamples` times, as many images as there are are drawn with
    replacement and the corpus is scored again. All metrics use the same draws. The document frequencies of CIDEr are
    counted over all images in every draw. with_nltk: add BLEU as nltk computes it, without intervals.

    Raises UserError if pycocoevalcap is not installed, and ValueError for an image without references or for no images.
    """
    pycocoevalcap_folder()
    without_references = [image for image in candidates if not references.get(image)]
    if without_references or not candidates:
        reason = (
            f"no references for {without_references[:5]}" if without_references else "no captions to score"
        )
        raise ValueError(reason)
    scores = Scores()
    texts, reference_texts = tokenize_captions(candidates, references)
    with Meteor(texts, reference_texts) as programs:
        computed = python_metrics(texts, reference_texts)
        java_metrics = {"METEOR": lambda: meteor_metric(programs.statistics())}
        if with_spice:
            java_metrics["SPICE"] = lambda: mean_metric(100 * spice(texts, reference_texts))
        for name, compute in java_metrics.items():
            try:
                computed[name] = compute()
            except MetricUnavailable as reason:
                scores.missing[name] = str(reason)
    computed = {name: computed[name] for name in METRICS if name in computed}
    for name in METRICS:
        if name in computed or name in scores.missing:
            metric = computed.get(name)
            scores.metrics[name] = float(metric.corpus_score(metric.statistics.sum(0))) if metric else None
    intervals = bootstrap(computed, resamples, seed)
    scores.confidence = {name: intervals.get(name) for name in scores.metrics}
    if with_nltk:
        scores.metrics |= nltk_bleu(list(candidates.values()), [references[image] for image in candidates])
    for row, image in enumerate(candidates):
        scores.images[image] = {name: float(metric.image_scores[row]) for name, metric in computed.items()}
    return scores


def bootstrap(
    metrics: Mapping[str, MetricStatistics], resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """The central 95 % interval of each metric's corpus score over `resamples` draws of images with replacement."""
    images = len(next(iter(metrics.values())).image_scores)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, 100):  # in blocks, because a draw has one number per image
        size = min(100, resamples - start)
        counts = rng.multinomial(images, np.full(images, 1 / images), size=size).astype(float)  # (size, N)
        for name, metric in metrics.items():
            draws[name].append(metric.corpus_score(counts @ metric.statistics))
    ends = ((100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2)
    return {name: tuple(np.percentile(np.concatenate(parts), ends).tolist()) for name, parts in draws.items()}


def tokenize_captions(
    candidates: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Tokenize candidates and the references of their images. Each caption becomes words joined by spaces."""
    texts = [" ".join(ptb_tokenize(caption)) for caption in candidates.values()]
    return texts, [[" ".join(ptb_tokenize(text)) for text in references[image]] for image in candidates]


def count_all_ngrams(
    texts: list[str], reference_texts: list[list[str]]
) -> tuple[list[Counter], list[list[Counter]]]:
    """N-gram counts of tokenized candidates and references."""
    references = [[count_ngrams(sentence.split()) for sentence in image] for image in reference_texts]
    return [count_ngrams(text.split()) for text in texts], references


def python_metrics(texts: list[str], reference_texts: list[list[str]]) -> dict[str, MetricStatistics]:
    """BLEU, ROUGE-L and CIDEr of tokenized captions. BLEU and CIDEr share the n-gram counts."""
    candidates, references = count_all_ngrams(texts, reference_texts)
    bleu_1_to_4 = bleu_metrics(candidates, references)
    return {
        **{f"BLEU-{n}": metric for n, metric in enumerate(bleu_1_to_4, 1)},
        "ROUGE-L": mean_metric([100 * rouge_l(*pair) for pair in zip(texts, reference_texts, strict=True)]),
        "CIDEr": mean_metric(cider(candidates, references)[1]),
    }


def bleu_metrics(candidates: list[Counter], references: list[list[Counter]]) -> list[MetricStatistics]:
    """BLEU-1 to BLEU-4 of n-gram counts."""
    statistics = bleu_statistics(candidates, references)
    images = bleu(statistics)

    def corpus_bleu(n: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: bleu(sums)[..., n]

    return [MetricStatistics(statistics, corpus_bleu(n), images[:, n]) for n in range(4)]


def meteor_metric(statistics: np.ndarray) -> MetricStatistics:
    """METEOR of the counts (N, 23) of `Meteor.statistics`."""
    return MetricStatistics(statistics, lambda sums: 100 * meteor(sums), 100 * meteor(statistics))


def mean_metric(image_scores: Sequence[float] | np.ndarray) -> MetricStatistics:
    """A metric whose corpus score is the mean of the image scores."""
    scores = np.asarray(image_scores, dtype=float)
    statistics = np.stack([scores, np.ones_like(scores)], 1)
    return MetricStatistics(statistics, lambda sums: sums[..., 0] / sums[..., 1], scores)
