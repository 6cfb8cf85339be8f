"""How good captions are: BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions against reference captions.

All are in the field's 0-100 form (CIDEr's 1.0 is 100.0), computed on the words of `ptb_tokenize`, and equal
to what pycocoevalcap and its Java tokenizer give. `Cider` is pure Python, so that training can validate by it
where pycocoevalcap and Java are absent, and so are BLEU and ROUGE-L, which need less time so; METEOR and
SPICE are pycocoevalcap's Java programs. METEOR's works beside everything else.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from sca_caption.evaluation.meteor_spice import Meteor, Unavailable, meteor, pycocoevalcap, spice
from sca_caption.evaluation.nltk_bleu import nltk_bleu
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
CONFIDENCE = 95  # per cent
LONGEST = 4  # words of the n-grams of BLEU and CIDEr
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
    with_nltk: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score one caption an image against the image's reference captions, all as users read them.

    candidates, references: by image. References may hold more images, which do not count; every candidate
    needs at least one. The confidence interval of a metric is the bootstrap's: `resamples` times, as many
    images are drawn as there are, with replacement, and the corpus is scored again; all metrics see the same
    draws, and CIDEr's document frequencies are always counted over all images. Raises UserError where pycocoevalcap is
    not installed, ValueError for an image without references and for no images at all.
    """
    pycocoevalcap()
    bare = [image for image in candidates if not references.get(image)]
    if bare or not candidates:
        raise ValueError(f"no references for {bare[:5]}" if bare else "no captions to score")
    scores = Scores()
    texts, answers = tokenized(candidates, references)
    with Meteor(texts, answers) as program:
        found = measure_in_python(texts, answers)
        measures = {"METEOR": lambda: measure_meteor(program.statistics())}
        if with_spice:
            measures["SPICE"] = lambda: mean_of(100 * spice(texts, answers))
        for name, measure in measures.items():
            try:
                found[name] = measure()
            except Unavailable as reason:
                scores.missing[name] = str(reason)
    found = {name: found[name] for name in METRICS if name in found}
    for name in METRICS:
        if name in found or name in scores.missing:
            known = found.get(name)
            scores.metrics[name] = float(known.corpus(known.statistics.sum(0))) if known else None
    intervals = bootstrap(found, resamples, seed)
    scores.confidence = {name: intervals.get(name) for name in scores.metrics}
    if with_nltk:
        scores.metrics |= nltk_bleu(list(candidates.values()), [references[image] for image in candidates])
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


def tokenized(candidates: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]):
    """(texts, answers) of the images that have a candidate."""
    texts = [" ".join(ptb_tokenize(caption)) for caption in candidates.values()]
    return texts, [[" ".join(ptb_tokenize(text)) for text in references[image]] for image in candidates]


def counted(texts: list[str], answers: list[list[str]]) -> tuple[list[Counter], list[list[Counter]]]:
    """The n-grams of both."""
    references = [[ngrams_of(sentence.split()) for sentence in sentences] for sentences in answers]
    return [ngrams_of(text.split()) for text in texts], references


def measure_in_python(texts: list[str], answers: list[list[str]]) -> dict[str, Measured]:
    """BLEU, ROUGE-L and CIDEr. N-grams are counted once for BLEU and CIDEr."""
    candidates, references = counted(texts, answers)
    bleu_1_to_4 = measure_bleu(candidates, references)
    return {
        **{f"BLEU-{n}": measured for n, measured in enumerate(bleu_1_to_4, 1)},
        "ROUGE-L": mean_of([100 * rouge_l(*pair) for pair in zip(texts, answers, strict=True)]),
        "CIDEr": mean_of(cider(candidates, references)[1]),
    }


def measure_bleu(candidates: list[Counter], references: list[list[Counter]]) -> list[Measured]:
    """BLEU-1 to 4, of sentences' n-grams."""
    statistics = np.zeros((len(candidates), 10))
    for row, candidate, sentences in zip(statistics, candidates, references, strict=True):
        for ngram, count in candidate.items():
            row[len(ngram) - 1] += min(count, max([sentence.get(ngram, 0) for sentence in sentences]))
            row[len(ngram) + 3] += count
        row[8] = row[4]
        row[9] = min((abs(length - row[4]), length) for length in map(length_of, sentences))[1]
    images = bleu(statistics)
    return [Measured(statistics, lambda sums, n=n: bleu(sums)[..., n], images[:, n]) for n in range(4)]


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


def rouge_l(text: str, sentences: list[str]) -> float:
    """ROUGE-L (Lin 2004) as pycocoevalcap has it, 0 to 1: of the best recall and the best precision."""
    words, beta = text.split(" "), 1.2
    places = Counter()  # word -> the bits of its places in the candidate
    for place, word in enumerate(words):
        places[word] |= 1 << place
    recall = precision = 0.0
    for sentence in sentences:
        others = sentence.split(" ")
        common = common_words(places, len(words), others)
        recall, precision = max(recall, common / len(others)), max(precision, common / len(words))
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if recall else 0.0


def common_words(places: Mapping[str, int], length: int, others: Sequence[str]) -> int:
    """Length of the longest common subsequence of `others` and the `length` words whose places' bits are given.

    A row of the usual table is a bit vector, which is 0 where the row rises; the next row is a sum (Crochemore et al.,
    "A fast and practical bit-vector algorithm for the longest common subsequence problem", 2001).
    """
    row = everywhere = (1 << length) - 1
    for word in others:
        if found := row & places.get(word, 0):
            row = row + found | row - found
    return length - (row & everywhere).bit_count()


def measure_meteor(statistics: np.ndarray) -> Measured:
    return Measured(statistics, lambda sums: 100 * meteor(sums), 100 * meteor(statistics))


def mean_of(images: Sequence[float]) -> Measured:
    """A metric whose corpus score is the mean of the images'."""
    images = np.asarray(images, dtype=float)
    statistics = np.stack([images, np.ones_like(images)], 1)
    return Measured(statistics, lambda sums: sums[..., 0] / sums[..., 1], images)


class Cider:
    """CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015, arXiv 1411.5726) against references prepared once.

    The n-grams (1 to 4) of a sentence are weighted by tf-idf, the document frequency being the number of the
    given images with the n-gram in one of their references. The score of a candidate against a reference
    is the cosine of their weights, for each n, with the candidate's clipped to the reference's (so that
    repeating a word does not pay) and a Gaussian penalty on the difference of lengths; then the mean over n
    and over references. Same numbers as pycocoevalcap's `Cider`, in the 0-100 form: its 1.0 is 100.0 here
    (a perfect caption, 10 there, is 1000).
    """

    SIGMA = 6.0  # of the length penalty, in words

    def __init__(self, references: Sequence[Sequence[Tokens | Counter]]):
        """`references`: for each image, its reference sentences (one or more), each a list of words or its n-grams."""
        if not all(references):
            raise ValueError("CIDEr needs at least one reference for every image")
        counts = [[ngrams_of(sentence) for sentence in sentences] for sentences in references]
        frequency = Counter(chain.from_iterable(set().union(*image) for image in counts))
        self.unseen = math.log(len(references)) if references else 0.0  # idf of an n-gram in no reference
        self.idf = {ngram: self.unseen - math.log(images) for ngram, images in frequency.items()}
        self.references = [[self.measure(sentence) for sentence in image] for image in counts]

    def measure(self, counts: Counter) -> tuple[Counter, list[float], int]:
        """The n-grams, the norm of their tf-idf weights for each n, and the number of bigrams: the length."""
        squares, bigrams = [0.0] * LONGEST, 0
        for ngram, count in counts.items():
            weight = count * self.idf.get(ngram, self.unseen)
            squares[len(ngram) - 1] += weight * weight
            bigrams += count if len(ngram) == 2 else 0
        return counts, [math.sqrt(square) for square in squares], bigrams

    def score(self, candidates: Sequence[Tokens | Counter]) -> tuple[float, list[float]]:
        """`candidates`: a sentence an image, in the references' order. Returns (mean, a score an image)."""
        if len(candidates) != len(self.references):
            raise ValueError(f"{len(candidates)} candidates for references of {len(self.references)} images")
        scores = [self.score_image(*pair) for pair in zip(candidates, self.references, strict=True)]
        return (sum(scores) / len(scores) if scores else 0.0), scores

    def score_image(self, candidate: Tokens | Counter, references: list) -> float:
        counts, norms, bigrams = self.measure(ngrams_of(candidate))
        total = 0.0
        for reference_counts, reference_norms, reference_bigrams in references:
            products = [0.0] * LONGEST
            for ngram, count in counts.items():
                if theirs := reference_counts.get(ngram):
                    idf = self.idf[ngram]
                    products[len(ngram) - 1] += (min(count, theirs) * idf) * (theirs * idf)
            cosines = sum(
                product / (ours * theirs)
                for product, ours, theirs in zip(products, norms, reference_norms, strict=True)
                if ours and theirs
            )
            total += cosines * math.exp(-((bigrams - reference_bigrams) ** 2) / (2 * self.SIGMA**2))
        return 1000.0 * total / (LONGEST * len(references))


def cider(
    candidates: Sequence[Tokens | Counter], references: Sequence[Sequence[Tokens | Counter]]
) -> tuple[float, list[float]]:
    """CIDEr-D of one candidate an image: (mean over images, one score an image), 0-100 form; see `Cider`."""
    return Cider(references).score(candidates)


def ngrams_of(words: Tokens | Counter) -> Counter:
    """How often each run of 1 to LONGEST words occurs; what is counted already is left as it is."""
    if isinstance(words, Counter):
        return words
    shifted = [words[start:] for start in range(LONGEST)]
    return Counter(chain.from_iterable(zip(*shifted[:n], strict=False) for n in range(1, LONGEST + 1)))


def length_of(counts: Counter) -> int:
    """Words of a sentence, of its n-grams."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)
