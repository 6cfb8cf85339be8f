"""Scoring captions: `caption_metrics.evaluate` beside pycocoevalcap's scorers, one after the other.

Theirs are called as their own COCOEvalCap calls them (without SPICE): both tokenizations, then BLEU, METEOR, ROUGE-L and
CIDEr, each with its own start of Java where it has one. Ours is the whole of `evaluate`, with 1000 draws for intervals,
which theirs lacks. Times alternate in one run; each ratio is the median over rounds. The second table, of the last size,
times our parts alone, though METEOR's program really works beside the others; its last column is the greatest difference
of any image's score or of the corpus's, in pycocoevalcap's units.

The captions are made: words of the shipped model's vocabulary, frequent ones more often; those of an image are alike in
order and differ in some words. Or they are those of a data set, the first of each image as the candidate.
"""

import contextlib
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sca_caption.checkpoint import load
from sca_caption.cli.parser import Parser, program
from sca_caption.config import require
from sca_caption.datasets import sources
from sca_caption.evaluation.caption_metrics import (
    Scores,
    bootstrap,
    cider,
    counted,
    evaluate,
    measure_bleu,
    measure_in_python,
    measure_meteor,
    rouge_l,
    tokenized,
)
from sca_caption.evaluation.meteor_spice import Meteor, Unavailable, find_java, pycocoevalcap
from sca_caption.runtime.devices import usable_cores
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS

REFERENCES, WORDS, CHANGED = (
    5,
    11,
    0.4,
)  # of a made image; of a caption, about; share of its words that are its own
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.evaluation --images 5000
  python -m sca_caption.benchmarks.evaluation --images 1000 5000 20000 --rounds 1
  python -m sca_caption.benchmarks.evaluation --images 5000 --dataset flickr8k --root ~/Downloads
"""
Captions = tuple[dict[int, str], dict[int, list[str]]]  # of each image its candidate, its references
Found = dict[str, tuple[float, Sequence[float]]]  # metric -> score of the corpus, of each image, 1.0 for 100


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.evaluation", description=__doc__, epilog=EPILOG)
    p.add_argument("--images", type=int, nargs="+", default=[5000], metavar="N", help="(default: 5000)")
    p.add_argument(
        "--dataset", metavar="NAME", help="take its captions, as preprocess.py does (default: made)"
    )
    p.add_argument("--root", type=Path, metavar="DIR", help="where the data set is (default: data)")
    p.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="timings of each (default: %(default)s)"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    require(arguments, "images", min(arguments.images) >= 2, "at least 2")
    require(arguments, "rounds", arguments.rounds >= 1, "at least 1")
    pycocoevalcap()
    try:
        folder = str(find_java().parent)
    except Unavailable as reason:
        raise UserError(f"METEOR cannot be timed: {reason}") from reason
    os.environ["PATH"] = folder + os.pathsep + os.environ.get("PATH", "")  # theirs starts `java`
    captions = of_dataset(arguments) if arguments.dataset else made(max(arguments.images))
    print(f"captions: {arguments.dataset or 'made'}; {usable_cores()} cores, {arguments.rounds} rounds\n")
    print("| images | pycocoevalcap | evaluate | ratio |\n| ---: | ---: | ---: | ---: |")
    for images in arguments.images:
        some = tuple(dict(itertools.islice(part.items(), images)) for part in captions)
        rounds = []
        for _ in range(arguments.rounds):
            seconds, theirs = pycocoevalcaps(some)
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
    found, parts = differences(theirs, ours), alone(some)
    for part, new in parts.items():
        old = [seconds[part] for seconds, _ in rounds if part in seconds]
        cells = f"{statistics.median(old):.2f} s" if old else "-", f"{new:.2f} s"
        print(f"| {part} | {' | '.join(cells)} | {f'{found[part]:.0e}' if part in found else '-'} |")
    return 0


def made(images: int) -> Captions:
    """A candidate and five references of each image, the same for a number of images at every call."""
    rng = random.Random(0)
    words = load().vocabulary.words[len(SPECIALS) :]  # the frequent ones first
    weights = list(itertools.accumulate(1 / rank for rank in range(3, len(words) + 3)))  # Zipf's law

    def caption(common: list[str]) -> str:
        text = [rng.choices(words, cum_weights=weights)[0] if rng.random() < CHANGED else w for w in common]
        return " ".join(text[: rng.randint(WORDS - 3, WORDS + 3)]).capitalize() + " ."

    candidates, references = {}, {}
    for image in range(images):
        common = rng.choices(words, cum_weights=weights, k=WORDS + 3)
        candidates[image], *references[image] = (caption(common) for _ in range(1 + REFERENCES))
    return candidates, references


def of_dataset(arguments) -> Captions:
    """The first caption of each image of a data set, and its others."""
    options = {"root": arguments.root} if arguments.root else {}
    records = [record for record in sources.find(arguments.dataset, **options).records if record.captions[1:]]
    most = max(arguments.images)
    if len(records) < most:
        raise UserError(
            f"--images {most}: {arguments.dataset} has {len(records)} with two captions; take fewer"
        )
    captions = [record.captions for record in records]
    return {i: each[0] for i, each in enumerate(captions)}, {
        i: [*each[1:]] for i, each in enumerate(captions)
    }


def pycocoevalcaps(captions: Captions) -> tuple[dict[str, float], Found]:
    """Seconds of each of pycocoevalcap's parts, and what they found."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor as TheirMeteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    seconds, found = {}, {}
    results = {image: [{"caption": caption}] for image, caption in captions[0].items()}
    truth = {image: [{"caption": text} for text in texts] for image, texts in captions[1].items()}
    with quiet():
        tokenizer = PTBTokenizer()
        seconds["tokenizer"], (truth, results) = timed(
            lambda: (tokenizer.tokenize(truth), tokenizer.tokenize(results))
        )
        scorers = {"BLEU": lambda: Bleu(4), "METEOR": TheirMeteor, "ROUGE-L": Rouge, "CIDEr": Cider}
        for name, scorer in scorers.items():
            seconds[name], found[name] = timed(lambda s=scorer: s().compute_score(truth, results))
    scores, images = found.pop("BLEU")
    return seconds, found | {f"BLEU-{n + 1}": (scores[n], images[n]) for n in range(4)}


def alone(captions: Captions) -> dict[str, float]:
    """Seconds of each of our parts when nothing else runs."""
    seconds = {}

    def part(name: str, work: Callable):
        seconds[name], result = timed(work)
        return result

    texts, answers = part("tokenizer", lambda: tokenized(*captions))
    candidates, references = part("n-grams", lambda: counted(texts, answers))
    part("BLEU", lambda: measure_bleu(candidates, references))
    statistics = part("METEOR", lambda: meteor_statistics(texts, answers))
    part("ROUGE-L", lambda: [rouge_l(*pair) for pair in zip(texts, answers, strict=True)])
    part("CIDEr", lambda: cider(candidates, references))
    found = measure_in_python(texts, answers) | {"METEOR": measure_meteor(statistics)}
    part("intervals", lambda: bootstrap(found, 1000, 0))
    return seconds


def meteor_statistics(texts: list[str], answers: list[list[str]]) -> np.ndarray:
    with Meteor(texts, answers) as program:
        return program.statistics()


def differences(theirs: Found, ours: Scores) -> dict[str, float]:
    """Of each metric, the greatest of any image's scores and of the corpus's."""
    found = {}
    for name, (corpus, images) in theirs.items():
        mine = [ours.metrics[name], *(scores[name] for scores in ours.images.values())]
        found[name] = float(np.abs(np.array(mine) / 100 - [corpus, *images]).max())
    bleus = [found.pop(f"BLEU-{n}") for n in range(1, 5)]
    return found | {"BLEU": max(bleus)}


def timed(work: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what pycocoevalcap and its Java programs print about themselves."""
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
