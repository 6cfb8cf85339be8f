"""How good captions are: BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions against reference captions.

All are in the field's 0-100 form (CIDEr's 1.0 is 100.0), computed on the words of `ptb_tokenize`, and equal
to what pycocoevalcap and its Java tokenizer give. `Cider` is pure Python, so that training can validate by it
where pycocoevalcap and Java are absent; BLEU and ROUGE-L are pycocoevalcap's, METEOR and SPICE its Java
programs.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sca_caption.java_metrics import Unavailable, meteor, meteor_statistics, pycocoevalcap, spice
from sca_caption.ptb import ptb_tokenize

CONFIDENCE = 95  # per cent
Tokens = Sequence[str]


@dataclass
class Scores:
    """What `evaluate` found; `metrics` and `confidence` (low, high) hold None for what is in `missing`."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    confidence: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # metric -> the reason, in one line
    images: dict[Hashable, dict[str, float]] = field(default_factory=dict)  # image -> metric -> score


@dataclass(frozen=True)
class Measured:
    """A metric as numbers that add up: a corpus's score is a function of its images' summed statistics."""

    statistics: np.ndarray  # (N, k)
    corpus: Callable[[np.ndarray], np.ndarray]  # sums (..., k) -> scores (...), 0 to 100
    images: np.ndarray  # (N,) each image's own score, 0 to 100


def evaluate(
    candidates: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    *,
    with_spice: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score one caption an image against the image's reference captions, all as users read them.

    candidates, references: by image. References may hold more images, which do not count; every candidate
    needs at least one. The confidence interval of a metric is the bootstrap's: `resamples` times, as many
    images are drawn as there are, with replacement, and the corpus is scored again; all metrics see the same
    draws, and CIDEr's document frequencies stay those of all images. Raises UserError where pycocoevalcap is
    not installed, ValueError for an image without references and for no images at all.
    """
    pycocoevalcap()
    bare = [image for image in candidates if not references.get(image)]
    if bare or not candidates:
        raise ValueError(f"no references for {bare[:5]}" if bare else "no captions to score")
    texts = [" ".join(ptb_tokenize(caption)) for caption in candidates.values()]
    answers = [[" ".join(ptb_tokenize(text)) for text in references[image]] for image in candidates]
    found: dict[str, Measured] = {}
    scores = Scores()
    for names, measure in MEASURES.items():
        if names == ("SPICE",) and not with_spice:
            continue
        try:
            found |= zip(names, measure(texts, answers), strict=True)
        except Unavailable as reason:
            scores.missing |= dict.fromkeys(names, str(reason))
        for name in names:
            known = found.get(name)
            scores.metrics[name] = float(known.corpus(known.statistics.sum(0))) if known else None
    intervals = bootstrap(found, resamples, seed)
    scores.confidence = {name: intervals.get(name) for name in scores.metrics}
    for row, image in enumerate(candidates):
        scores.images[image] = {name: float(measured.images[row]) for name, measured in found.items()}
    return scores


def bootstrap(found: Mapping[str, Measured], resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """The central 95% of each metric's corpus score over `resamples` redrawings of the images."""
    images = len(next(iter(found.values())).images)
    draws, rng = {name: [] for name in found}, np.random.default_rng(seed)
    for start in range(0, resamples, 100):  # some at a time: a draw is a number for every image
        size = min(100, resamples - start)
        times = rng.multinomial(images, np.full(images, 1 / images), size=size).astype(float)  # (size, N)
        for name, measured in found.items():
            draws[name].append(measured.corpus(times @ measured.statistics))
    ends = ((100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2)
    return {name: tuple(np.percentile(np.concatenate(parts), ends).tolist()) for name, parts in draws.items()}


# Texts are candidates, answers each one's references: words joined by spaces.


def measure_bleu(texts: list[str], answers: list[list[str]]) -> list[Measured]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for text, sentences in zip(texts, answers, strict=True):
        scorer += (text, sentences)
    statistics = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        closest = min((abs(reference - length), reference) for reference in counts["reflen"])[1]
        statistics.append([*counts["correct"], *counts["guess"], length, closest])
    _, images = scorer.compute_score(option="closest")
    statistics, images = np.array(statistics, dtype=float), 100 * np.array(images)
    return [Measured(statistics, lambda sums, n=n: bleu(sums)[..., n], images[n]) for n in range(4)]


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4 (Papineni et al. 2002) as pycocoevalcap has them: sums (..., 10) -> (..., 4), 0 to 100.

    Columns: n-grams of the candidates that are in a reference (clipped), for n = 1 to 4; all n-grams of the
    candidates, likewise; length of the candidates; length of the references, of each image the closest.
    """
    small, tiny = 1e-9, 1e-15  # theirs, against division by zero
    precisions = (sums[..., 0:4] + tiny) / (sums[..., 4:8] + small)
    means = np.exp(np.cumsum(np.log(precisions), -1) / np.arange(1, 5))
    ratio = (sums[..., 8:9] + tiny) / (sums[..., 9:10] + small)
    return 100 * means * np.exp(np.minimum(0, 1 - 1 / ratio))


def measure_meteor(texts: list[str], answers: list[list[str]]) -> list[Measured]:
    statistics = meteor_statistics(texts, answers)
    return [Measured(statistics, lambda sums: 100 * meteor(sums), 100 * meteor(statistics))]


def measure_rouge_l(texts: list[str], answers: list[list[str]]) -> list[Measured]:
    from pycocoevalcap.rouge.rouge import Rouge

    score = Rouge().calc_score
    return mean_of([100 * score([text], sentences) for text, sentences in zip(texts, answers, strict=True)])


def measure_cider(texts: list[str], answers: list[list[str]]) -> list[Measured]:
    words = [[sentence.split() for sentence in sentences] for sentences in answers]
    return mean_of(cider([text.split() for text in texts], words)[1])


def measure_spice(texts: list[str], answers: list[list[str]]) -> list[Measured]:
    return mean_of(100 * spice(texts, answers))


def mean_of(images: Sequence[float]) -> list[Measured]:
    """A metric whose corpus score is the mean of the images'."""
    images = np.asarray(images, dtype=float)
    statistics = np.stack([images, np.ones_like(images)], 1)
    return [Measured(statistics, lambda sums: sums[..., 0] / sums[..., 1], images)]


MEASURES: dict[tuple[str, ...], Callable[[list[str], list[list[str]]], list[Measured]]] = {
    ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"): measure_bleu,
    ("METEOR",): measure_meteor,
    ("ROUGE-L",): measure_rouge_l,
    ("CIDEr",): measure_cider,
    ("SPICE",): measure_spice,
}


class Cider:
    """CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015, arXiv 1411.5726) against references prepared once.

    The n-grams (1 to 4) of a sentence are weighted by tf-idf, the document frequency being the number of the
    given images with the n-gram in one of their references. The score of a candidate against a reference
    is the cosine of their weights, for each n, with the candidate's clipped to the reference's (so that
    repeating a word does not pay) and a Gaussian penalty on the difference of lengths; then the mean over n
    and over references. Same numbers as pycocoevalcap's `Cider`, in the 0-100 form: its 1.0 is 100.0 here
    (a perfect caption, 10 there, is 1000).
    """

    N = 4
    SIGMA = 6.0  # of the length penalty, in words

    def __init__(self, references: Sequence[Sequence[Tokens]]):
        """`references`: for each image, its reference sentences (one or more), each a list of words."""
        if not all(references):
            raise ValueError("CIDEr needs at least one reference for every image")
        counts = [[ngrams_of(sentence, self.N) for sentence in sentences] for sentences in references]
        frequency = Counter(ngram for image in counts for ngram in set().union(*image))
        self.unseen = math.log(len(references)) if references else 0.0  # idf of an n-gram in no reference
        self.idf = {ngram: self.unseen - math.log(images) for ngram, images in frequency.items()}
        self.references = [[self.weigh(sentence) for sentence in image] for image in counts]

    def weigh(self, counts: Counter) -> tuple[dict, list[float], int]:
        """tf-idf weight of each n-gram, their norm for each n, and the number of bigrams: the length."""
        weights, squares, bigrams = {}, [0.0] * self.N, 0
        for ngram, count in counts.items():
            weights[ngram] = weight = count * self.idf.get(ngram, self.unseen)
            squares[len(ngram) - 1] += weight * weight
            bigrams += count if len(ngram) == 2 else 0
        return weights, [math.sqrt(square) for square in squares], bigrams

    def score(self, candidates: Sequence[Tokens]) -> tuple[float, list[float]]:
        """`candidates`: a sentence an image, in the references' order. Returns (mean, a score an image)."""
        if len(candidates) != len(self.references):
            raise ValueError(f"{len(candidates)} candidates for references of {len(self.references)} images")
        scores = [self.score_image(*pair) for pair in zip(candidates, self.references, strict=True)]
        return (sum(scores) / len(scores) if scores else 0.0), scores

    def score_image(self, candidate: Tokens, references: list) -> float:
        weights, norms, bigrams = self.weigh(ngrams_of(candidate, self.N))
        total = 0.0
        for reference_weights, reference_norms, reference_bigrams in references:
            products = [0.0] * self.N
            for ngram, weight in weights.items():
                theirs = reference_weights.get(ngram)
                if theirs:
                    products[len(ngram) - 1] += min(weight, theirs) * theirs
            cosines = sum(
                product / (ours * theirs)
                for product, ours, theirs in zip(products, norms, reference_norms, strict=True)
                if ours and theirs
            )
            total += cosines * math.exp(-((bigrams - reference_bigrams) ** 2) / (2 * self.SIGMA**2))
        return 1000.0 * total / (self.N * len(references))


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, list[float]]:
    """CIDEr-D of one candidate an image: (mean over images, one score an image), 0-100 form; see `Cider`."""
    return Cider(references).score(candidates)


def ngrams_of(words: Tokens, longest: int) -> Counter:
    """How often each run of 1 to `longest` words occurs."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)
    )
