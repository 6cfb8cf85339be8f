"""Time of scoring captions: `caption_metrics.evaluate` compared with pycocoevalcap's scorers.

pycocoevalcap's scorers run one after the other, as its COCOEvalCap calls them, without SPICE: both tokenizations, then
BLEU, METEOR, ROUGE-L and CIDEr; METEOR and the tokenizer start Java. `evaluate` runs as a whole and also draws 1000
bootstrap samples for confidence intervals, which pycocoevalcap does not. Times are measured in turn in one run; each
ratio is the median over rounds.

The second table is for the last number of images. It times our parts alone, although METEOR's program runs
in parallel with the others in `evaluate`. Its last column is the greatest difference between the two programs' scores of
an image or of the corpus, in pycocoevalcap's units.

The captions are synthetic by default: words of the shipped model's vocabulary, by Zipf's law; the captions of one image
have most words in common. With --dataset they come from a data set, and the first caption of each image is the candidate.
"""

import argparse
import contextlib
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sca_caption.checkpoint import load
from sca_caption.cli.parser import Parser, program
from sca_caption.config import require
from sca_caption.datasets import sources
from sca_caption.evaluation.caption_metrics import (
    Scores,
    bleu_metrics,
    bootstrap,
    count_all_ngrams,
    evaluate,
    meteor_metric,
    python_metrics,
    tokenize_captions,
)
from sca_caption.evaluation.cider import cider
from sca_caption.evaluation.meteor_spice import Meteor, MetricUnavailable, find_java, pycocoevalcap_folder
from sca_caption.evaluation.rouge import rouge_l
from sca_caption.runtime.devices import usable_cores
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS

# Of synthetic captions: references per image, words per caption on average, share of words that are drawn per caption.
REFERENCES, WORDS, CHANGED = 5, 11, 0.4
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.evaluation --images 5000
  python -m sca_caption.benchmarks.evaluation --images 1000 5000 20000 --rounds 1
  python -m sca_caption.benchmarks.evaluation --images 5000 --dataset flickr8k --root ~/Downloads
"""
Captions = tuple[dict[int, str], dict[int, list[str]]]  # image -> its candidate, image -> its references
Result = TypeVar("Result")
TheirScores = dict[str, tuple[float, Sequence[float]]]  # metric -> its scores of the corpus and of each image


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.evaluation", description=__doc__, epilog=EPILOG)
    p.add_argument("--images", type=int, nargs="+", default=[5000], metavar="N", help="(default: 5000)")
    p.add_argument(
        "--dataset",
        metavar="NAME",
        help="score the captions of a data set that preprocess.py knows (default: synthetic)",
    )
    p.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder (default: data)")
    p.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="timings of each (default: %(default)s)"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    require(arguments, "images", min(arguments.images) >= 2, "at least 2")
    require(arguments, "rounds", arguments.rounds >= 1, "at least 1")
    pycocoevalcap_folder()
    try:
        folder = str(find_java().parent)
    except MetricUnavailable as error:
        raise UserError(f"METEOR cannot be timed: {error}") from error
    os.environ["PATH"] = folder + os.pathsep + os.environ.get("PATH", "")  # pycocoevalcap starts `java`
    captions = (
        captions_of_dataset(arguments) if arguments.dataset else synthetic_captions(max(arguments.images))
    )
    print(
        f"captions: {arguments.dataset or 'synthetic'}; {usable_cores()} cores, {arguments.rounds} rounds\n"
    )
    print("| images | pycocoevalcap | evaluate | ratio |\n| ---: | ---: | ---: | ---: |")
    for images in arguments.images:
        some = (
            dict(itertools.islice(captions[0].items(), images)),
            dict(itertools.islice(captions[1].items(), images)),
        )
        rounds = []
        for _ in range(arguments.rounds):
            seconds, theirs = run_pycocoevalcap(some)
            began = time.perf_counter()
            ours = evaluate(*some)
            rounds.append((seconds, time.perf_counter() - began))
            for name, reason in ours.missing.items():
                raise UserError(f"{name} cannot be timed: {reason}")
        olds, news = [sum(seconds.values()) for seconds, _ in rounds], [second for _, second in rounds]
        ratio = statistics.median(old / new for old, new in zip(olds, news, strict=True))
        old, new = statistics.median(olds), statistics.median(news)
        print(f"| {len(some[0]):,} | {old:.1f} s | {new:.1f} s | {ratio:.1f} |", flush=True)
    print("\n| | pycocoevalcap | alone | greatest difference |\n| --- | ---: | ---: | ---: |")
    greatest, parts = differences(theirs, ours), time_parts(some)
    for part, new in parts.items():
        olds = [seconds[part] for seconds, _ in rounds if part in seconds]
        cells = f"{statistics.median(olds):.2f} s" if olds else "-", f"{new:.2f} s"
        print(f"| {part} | {' | '.join(cells)} | {f'{greatest[part]:.0e}' if part in greatest else '-'} |")
    return 0


def synthetic_captions(images: int) -> Captions:
    """A candidate and five references per image, deterministic in the number of images."""
    rng = random.Random(0)
    vocabulary = load().vocabulary
    assert vocabulary, "a captioner's"
    words = vocabulary.words[len(SPECIALS) :]  # most frequent first
    weights = list(itertools.accumulate(1 / rank for rank in range(3, len(words) + 3)))  # Zipf's law

    def caption(common: list[str]) -> str:
        text = [rng.choices(words, cum_weights=weights)[0] if rng.random() < CHANGED else w for w in common]
        return " ".join(text[: rng.randint(WORDS - 3, WORDS + 3)]).capitalize() + " ."

    candidates, references = {}, {}
    for image in range(images):
        common = rng.choices(words, cum_weights=weights, k=WORDS + 3)
        candidates[image], *references[image] = (caption(common) for _ in range(1 + REFERENCES))
    return candidates, references


def captions_of_dataset(arguments: argparse.Namespace) -> Captions:
    """Images of a data set: the first caption of each as the candidate, the others as references."""
    options = {"root": arguments.root} if arguments.root else {}
    records = [record for record in sources.find(arguments.dataset, **options).records if record.captions[1:]]
    most = max(arguments.images)
    if len(records) < most:
        raise UserError(
            f"--images {most}: {arguments.dataset} has {len(records)} images with two or more captions; give fewer"
        )
    captions = [record.captions for record in records]
    return {i: each[0] for i, each in enumerate(captions)}, {
        i: [*each[1:]] for i, each in enumerate(captions)
    }


def run_pycocoevalcap(captions: Captions) -> tuple[dict[str, float], TheirScores]:
    """Seconds of each part of pycocoevalcap, and its scores."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor as TheirMeteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    seconds: dict[str, float] = {}
    scores: dict[str, Any] = {}
    results = {image: [{"caption": caption}] for image, caption in captions[0].items()}
    truth = {image: [{"caption": text} for text in texts] for image, texts in captions[1].items()}

    def score(scorer: Callable[[], Any]) -> tuple[Any, Any]:
        return scorer().compute_score(truth, results)

    with quiet():
        tokenizer = PTBTokenizer()
        seconds["tokenizer"], (truth, results) = timed(
            lambda: (tokenizer.tokenize(truth), tokenizer.tokenize(results))
        )
        scorers: dict[str, Callable[[], Any]] = {
            "BLEU": lambda: Bleu(4),
            "METEOR": TheirMeteor,
            "ROUGE-L": Rouge,
            "CIDEr": Cider,
        }
        for name, scorer in scorers.items():
            seconds[name], scores[name] = timed(partial(score, scorer))
    corpus, images = scores.pop("BLEU")
    return seconds, scores | {f"BLEU-{n + 1}": (corpus[n], images[n]) for n in range(4)}


def time_parts(captions: Captions) -> dict[str, float]:
    """Seconds of each part of `evaluate`, run one after the other."""
    seconds: dict[str, float] = {}

    def part(name: str, work: Callable[[], Result]) -> Result:
        seconds[name], result = timed(work)
        return result

    texts, answers = part("tokenizer", lambda: tokenize_captions(*captions))
    candidates, references = part("n-grams", lambda: count_all_ngrams(texts, answers))
    part("BLEU", lambda: bleu_metrics(candidates, references))
    statistics = part("METEOR", lambda: meteor_statistics(texts, answers))
    part("ROUGE-L", lambda: [rouge_l(*pair) for pair in zip(texts, answers, strict=True)])
    part("CIDEr", lambda: cider(candidates, references))
    found = python_metrics(texts, answers) | {"METEOR": meteor_metric(statistics)}
    part("intervals", lambda: bootstrap(found, 1000, 0))
    return seconds


def meteor_statistics(texts: list[str], answers: list[list[str]]) -> np.ndarray:
    with Meteor(texts, answers) as program:
        return program.statistics()


def differences(theirs: TheirScores, ours: Scores) -> dict[str, float]:
    """The greatest difference per metric, over the scores of all images and of the corpus."""
    greatest = {}
    for name, (corpus, images) in theirs.items():
        mine = [ours.metrics[name], *(scores[name] for scores in ours.images.values())]
        greatest[name] = float(np.abs(np.array(mine) / 100 - [corpus, *images]).max())
    bleus = [greatest.pop(f"BLEU-{n}") for n in range(1, 5)]
    return greatest | {"BLEU": max(bleus)}


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of pycocoevalcap and its Java programs."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


if __name__ == "__main__":
    raise SystemExit(main())
