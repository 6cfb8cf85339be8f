"""Captions of everyday photographs: scores, the main noun, and mistakes that readers notice.

One row per way of captioning: with all guides of the model; with --by-guide also without any, with each alone, and with
all but each. Columns:

CIDEr, BLEU-4, METEOR: as evaluate.py computes them. CIDEr's document frequencies are those of the images' own references.

main noun: share of captions, in per cent, whose main noun is the same noun as a word of a reference.

people, dogs, other animals invented: images whose caption mentions them and whose references do not, as CHAIR counts
hallucinated objects (Rohrbach et al. 2018, arXiv 1809.02156). The words for people, dogs and other animals are those of
`guidance.groups`, for people also those of `evaluation.caption_errors`, singular or plural; references also mention
people by hands, arms and fingers. A reference must mention the same animal, by any of its words, or "animal"; any
animal permits "animal". A hot dog is no dog, a teddy bear no bear.

wrong colour, number, gender: images whose caption contradicts its references, as `evaluation.caption_errors` defines
it. It also defines the main noun and which nouns are the same.
"""

import sys
from collections import Counter
from collections.abc import Collection, Sequence, Set
from functools import cache
from pathlib import Path

from sca_caption.cli.evaluate import open_data
from sca_caption.cli.parser import Parser, program
from sca_caption.datasets.hdf5_reader import SPLITS
from sca_caption.evaluation import caption_errors as errors
from sca_caption.evaluation.caption_metrics import Scores, evaluate
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance import groups
from sca_caption.inference.batching import reader
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.everyday --data data/everyday.h5
  python -m sca_caption.benchmarks.everyday --data data/everyday.h5 --checkpoint best.pt --by-guide
  python -m sca_caption.benchmarks.everyday --data data/everyday.h5 --without words --captions
"""
METRICS = ("CIDEr", "BLEU-4", "METEOR")
MISTAKES = ("people", "dogs", "animals", "colour", "number", "gender")
INVENTED = ("people invented", "dogs invented", "other animals invented")
HEADS = (*METRICS, "main noun, %", *INVENTED, "wrong colour", "wrong number", "wrong gender")
PEOPLE = groups.PEOPLE | errors.EVERYONE
PEOPLE_IN_REFERENCES = PEOPLE | {"hand", "arm", "finger"}
ANIMAL = frozenset(("animal", "animals"))
NOT_ALWAYS_ANIMALS = frozenset(
    ("crane", "ray", "rays", "shell", "shells", "seashell", "seashells", "coral", "corals", "reef")
)


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.everyday", description=__doc__, epilog=EPILOG)
    p.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="see preprocess.py")
    p.add_argument("--split", choices=SPLITS, default="val", help="(default: %(default)s)")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="(default: the model that ships)")
    p.add_argument("--without", nargs="+", default=[], metavar="GUIDE", help="leave these guides out")
    p.add_argument("--by-guide", action="store_true", help="also no guide, each guide alone, all but each")
    p.add_argument("--captions", action="store_true", help="print every caption and its mistakes as well")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    data, rows = open_data(arguments)
    pipeline = CaptionPipeline.load(arguments.checkpoint)
    for name in arguments.without:
        pipeline = without(pipeline, name)
    read = reader(data, pipeline.networks, pipeline.transform)
    references = [data.references(row) for row in rows]
    table = [["guides", *HEADS], ["---", *["---:"] * len(HEADS)]]
    missing: dict[str, str] = {}
    for way, kept in ways([guide.name for guide in pipeline.guides], arguments.by_guide).items():
        captions = []
        for result in with_guides(pipeline, kept).stream(rows, read):
            if result.error:
                raise result.error
            captions.append(result.captions[0].text)
        scores, named, found = measure(captions, references)
        missing |= scores.missing
        table.append([way, *cells(scores, named, found)])
        if arguments.captions:
            for row, caption, mistakes in zip(rows, captions, found, strict=True):
                print(f"{way}\t{data.file_name(row)}\t{caption}\t{' '.join(mistakes)}")
    for name, reason in missing.items():
        print(f"{name} is missing: {reason}", file=sys.stderr)
    print(f"{len(rows)} images of {data.path.name}, {arguments.split}\n")
    print("\n".join("| " + " | ".join(row) + " |" for row in table))
    return 0


def ways(guides: Sequence[str], by_guide: bool) -> dict[str, tuple[str, ...]]:
    """Names of ways of captioning, and the guides of each. Every set of guides occurs once."""
    found = {", ".join(guides) or "none": tuple(guides)}
    if by_guide:
        found["none"] = ()
        found |= {name: (name,) for name in guides}
        if len(guides) > 2:
            found |= {f"all but {name}": tuple(each for each in guides if each != name) for name in guides}
    return found


def without(pipeline: CaptionPipeline, name: str) -> CaptionPipeline:
    """Copy the pipeline without the guide `name`. Raises UserError if there is no such guide."""
    guides = [guide for guide in pipeline.guides if guide.name != name]
    if len(guides) == len(pipeline.guides):
        raise UserError(f"this model has no guide {name!r}; python -m sca_caption fit adds one")
    return CaptionPipeline(pipeline.model, guides, search=pipeline.search, batch_size=pipeline.batch_size)


def with_guides(pipeline: CaptionPipeline, names: Sequence[str]) -> CaptionPipeline:
    """Copy the pipeline with these of its guides."""
    for guide in pipeline.guides:
        if guide.name not in names:
            pipeline = without(pipeline, guide.name)
    return pipeline


def measure(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Scores, list[bool], list[list[str]]]:
    """Scores of one caption per image, whether it has the main noun, and its MISTAKES. All captions are raw text."""
    scores = evaluate(dict(enumerate(captions)), dict(enumerate(references)), resamples=1)
    words = [split(caption) for caption in captions]
    others = [[split(text) for text in texts] for texts in references]
    pairs = list(zip(words, others, strict=True))
    return scores, [errors.names_main_noun(*pair) for pair in pairs], [mistakes(*pair) for pair in pairs]


def cells(scores: Scores, named: Sequence[bool], found: Sequence[Sequence[str]]) -> list[str]:
    """A row of the table, without its name."""
    totals = Counter(mistake for several in found for mistake in several)
    metrics = [scores.metrics[name] for name in METRICS]
    return [
        *("-" if score is None else f"{score:.1f}" for score in metrics),
        f"{100 * sum(named) / len(named):.1f}",
        *(str(totals[mistake]) for mistake in MISTAKES),
    ]


def split(caption: str) -> list[str]:
    return errors.join_compounds(ptb_tokenize(caption))


def mistakes(caption: list[str], references: list[list[str]]) -> list[str]:
    """Which of MISTAKES the caption of an image makes, all captions as words."""
    mentioned: set[str] = set().union(*references)
    found = {
        "people": has_noun(caption, PEOPLE) and not has_noun(mentioned, PEOPLE_IN_REFERENCES),
        "dogs": not groups.DOGS.isdisjoint(caption) and groups.DOGS.isdisjoint(mentioned),
        "animals": any(mentioned.isdisjoint(same_animal(word)) for word in caption if same_animal(word)),
        "colour": errors.wrong_colour(caption, references, groups.COLOURS),
        "number": errors.wrong_number(caption, references),
        "gender": errors.wrong_gender(caption, references),
    }
    return [name for name in MISTAKES if found[name]]


def has_noun(words: Collection[str], nouns: Set[str]) -> bool:
    """Whether one of the words is one of the nouns, or its plural."""
    return any(word in nouns or errors.singular(word) in nouns for word in words)


@cache
def same_animal(word: str) -> frozenset[str]:
    """Words of which a reference must have one if a caption has `word`; none if `word` is no animal except dogs."""
    animals = groups.animals().values()
    if word in ANIMAL:
        return ANIMAL.union(groups.DOGS, *animals)
    if word in groups.DOGS | NOT_ALWAYS_ANIMALS:
        return frozenset()
    same = [words for words in animals if word in words]
    return ANIMAL.union(*same) if same else frozenset()


if __name__ == "__main__":
    raise SystemExit(main())
