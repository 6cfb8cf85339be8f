"""People, dogs and colours in captions of images that have none, with and without `subjects`.

An image has none where not one of its references speaks of them (as CHAIR counts objects, Rohrbach et al. 2018, arXiv
1809.02156); left out are those that the references speak of and the caption does not. CIDEr's document frequencies are
those of the images' own references.
"""

import copy
from pathlib import Path

from sca_caption.cli.parser import Parser, program
from sca_caption.datasets.hdf5_reader import SPLITS, CaptionDataset
from sca_caption.evaluation.caption_metrics import cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.hallucination import SUBJECTS
from sca_caption.inference.batching import reader
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.invented --data data/flickr8k.h5
  python -m sca_caption.benchmarks.invented --data data/coco.h5 --split train val test
"""


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.invented", description=__doc__, epilog=EPILOG)
    p.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="see preprocess.py")
    p.add_argument("--split", nargs="+", choices=SPLITS, default=["val"], help="(default: val)")
    p.add_argument("--checkpoint", metavar="FILE", help="(default: the model that ships)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    data, pipeline = CaptionDataset(arguments.data), CaptionPipeline(arguments.checkpoint)
    if pipeline.subjects is None:
        raise UserError(
            f"{arguments.checkpoint} keeps from nothing; run python -m sca_caption fit presence first"
        )
    rows = [row for split in arguments.split for row in data.indices(split).tolist()]
    references = [[ptb_tokenize(text) for text in data.references(row)] for row in rows]
    free = copy.copy(pipeline)
    free.subjects = None
    scores, found = [], []
    for way in (free, pipeline):
        results = way.stream(rows, reader(data, way.models, way.transform))
        captions = [ptb_tokenize(result.captions[0].text) for result in results]
        scores.append(cider(captions, references)[0])
        found.append([counts(captions, references, SUBJECTS[name].words) for name in pipeline.subjects.names])
    print(f"{len(rows)} images, CIDEr {scores[0]:.1f} without subjects and {scores[1]:.1f} with them\n")
    print("| | invented without | with | left out without | with |\n| --- | ---: | ---: | ---: | ---: |")
    for name, before, after in zip(pipeline.subjects.names, *found, strict=True):
        print(f"| {name} | {before[0]} | {after[0]} | {before[1]} | {after[1]} |")
    return 0


def counts(
    captions: list[list[str]], references: list[list[list[str]]], words: frozenset[str]
) -> tuple[int, int]:
    """Of how many images only the caption has one of the words, and of how many only the references."""
    invented = left_out = 0
    for caption, several in zip(captions, references, strict=True):
        said, there = (
            not words.isdisjoint(each) for each in (caption, [word for one in several for word in one])
        )
        invented, left_out = invented + (said and not there), left_out + (there and not said)
    return invented, left_out


if __name__ == "__main__":
    raise SystemExit(main())
