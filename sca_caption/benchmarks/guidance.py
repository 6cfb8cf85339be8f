"""Effect of guidance on captions.

objects: how many captions name the object of a photograph by an everyday noun, for folders of photographs named by
class, as Caltech-101's. It counts the classes that one of the inserted nouns (see `guidance.object_nouns`) names
correctly: a caption counts if it has one of the words below, or its plural, as a whole word. Classes with even
numbers, in alphabetical order, are for choosing settings; the others are reported.

hallucination: people, dogs and colours in captions of images without them. An image is without a subject if none of its
references mentions it (as CHAIR counts objects, Rohrbach et al. 2018, arXiv 1809.02156). CIDEr's document frequencies are
those of the images' own references.

Both compare the model with one kind of guide off and on.
"""

import random
import re
import statistics
from pathlib import Path

from sca_caption import images
from sca_caption.cli.parser import Parser, program
from sca_caption.datasets.hdf5_reader import SPLITS, CaptionDataset
from sca_caption.evaluation.cider import cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.hallucination import SUBJECTS, PresenceClassifier
from sca_caption.inference.batching import reader
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.runtime.errors import UserError

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.guidance objects 101_ObjectCategories/
  python -m sca_caption.benchmarks.guidance objects 101_ObjectCategories/ --checkpoint best.pt --photographs 30
  python -m sca_caption.benchmarks.guidance hallucination --data data/flickr8k.h5
  python -m sca_caption.benchmarks.guidance hallucination --data data/coco.h5 --split train val test
"""
# Accepted words per class; "/" separates forms that take no plural ending. Other classes are not among ImageNet's.
ACCEPTED = {
    "Leopards": "leopard jaguar",
    "Motorbikes": "motorcycle motorbike bike scooter moped",
    "accordion": "accordion",
    "airplanes": "airplane plane jet aircraft",
    "ant": "ant insect bug",
    "barrel": "barrel",
    "bass": "fish bass",
    "beaver": "beaver",
    "binocular": "binocular",
    "brontosaurus": "dinosaur",
    "butterfly": "butterfly/butterflies",
    "camera": "camera",
    "cannon": "cannon",
    "car_side": "car/automobile/vehicle/suv/sedan",
    "ceiling_fan": "fan",
    "cellphone": "phone/cellphone/telephone",
    "chair": "chair",
    "cougar_body": "cougar/puma",
    "cougar_face": "cougar/puma",
    "crab": "crab",
    "crayfish": "crayfish lobster",
    "crocodile": "crocodile alligator",
    "crocodile_head": "crocodile alligator",
    "cup": "cup mug coffee tea",
    "dalmatian": "dog dalmatian",
    "dragonfly": "dragonfly/dragonflies insect bug",
    "electric_guitar": "guitar",
    "elephant": "elephant",
    "emu": "bird emu",
    "ewer": "pitcher jug vase",
    "ferry": "ferry/ferries boat ship",
    "flamingo": "flamingo",
    "flamingo_head": "flamingo",
    "gerenuk": "antelope gazelle deer",
    "grand_piano": "piano",
    "hawksbill": "turtle tortoise",
    "ibis": "bird ibis",
    "kangaroo": "kangaroo wallaby/wallabies",
    "ketch": "boat sailboat ship",
    "lamp": "lamp",
    "laptop": "laptop computer",
    "llama": "llama alpaca",
    "lobster": "lobster",
    "lotus": "flower lotus",
    "mayfly": "insect bug mayfly",
    "nautilus": "shell seashell nautilus",
    "panda": "panda",
    "pigeon": "bird pigeon dove",
    "pizza": "pizza",
    "platypus": "platypus",
    "revolver": "gun revolver pistol",
    "rooster": "rooster chicken hen cock",
    "saxophone": "saxophone",
    "schooner": "boat sailboat ship schooner",
    "scorpion": "scorpion",
    "soccer_ball": "ball football",
    "starfish": "starfish",
    "stegosaurus": "dinosaur",
    "stop_sign": "sign",
    "strawberry": "strawberry/strawberries",
    "sunflower": "flower sunflower",
    "tick": "tick insect bug",
    "trilobite": "fossil trilobite",
    "umbrella": "umbrella parasol",
    "watch": "watch wristwatch",
    "water_lilly": "flower lily/lilies",
    "wild_cat": "cat wildcat",
    "windsor_chair": "chair",
}


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.guidance", description=__doc__, epilog=EPILOG)
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    one = kinds.add_parser("objects", help="captions that name the object", add_help=True)
    one.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of one folder per class")
    one.add_argument(
        "--photographs", type=int, default=10, metavar="N", help="per class (default: %(default)s)"
    )
    one.add_argument("--captions", action="store_true", help="print every caption as well")
    two = kinds.add_parser("hallucination", help="captions that mention what is absent", add_help=True)
    two.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="see preprocess.py")
    two.add_argument("--split", nargs="+", choices=SPLITS, default=["val"], help="(default: val)")
    for each in (one, two):
        each.add_argument("--checkpoint", type=Path, metavar="FILE", help="(default: the model that ships)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.kind == "objects":
        report_objects(arguments.folder, arguments.checkpoint, arguments.photographs, arguments.captions)
    else:
        report_hallucination(arguments.data, arguments.checkpoint, arguments.split)
    return 0


def without(pipeline: CaptionPipeline, name: str) -> CaptionPipeline:
    """Copy the pipeline without the guide `name`. Raises UserError if there is no such guide."""
    guides = [guide for guide in pipeline.guides if guide.name != name]
    if len(guides) == len(pipeline.guides):
        raise UserError(f"this model has no guide {name!r}; python -m sca_caption fit or average adds one")
    return CaptionPipeline(pipeline.model, guides, search=pipeline.search, batch_size=pipeline.batch_size)


def report_objects(folder: Path, checkpoint: Path | None, count: int, show: bool) -> None:
    photographs = photographs_of(folder, count)
    paths = [path for several in photographs.values() for path in several]
    pipeline = CaptionPipeline.load(checkpoint)
    without(pipeline, "objects")
    captions = []
    for way in (pipeline.with_search(pipeline.search, objects=False), pipeline):
        found = [result.captions[0].text for result in way.stream(paths)]
        captions.append(dict(zip(paths, found, strict=True)))
    rows: list[tuple[str, float, float]] = []
    for name, several in photographs.items():
        off, on = (statistics.mean(100 * names(name, way[path]) for path in several) for way in captions)
        rows.append((name, off, on))
        if show:
            for path in several:
                print(f"{name}/{path.name}\t{captions[0][path]}\t{captions[1][path]}")
    print("| class | without objects, % | with them, % |\n| --- | ---: | ---: |")
    for name, off, on in rows:
        print(f"| {name} | {off:.0f} | {on:.0f} |")
    for what, part in (("chosen on", rows[::2]), ("reported", rows[1::2])):
        classes = max(1, len(part))
        off, on = sum(row[1] for row in part) / classes, sum(row[2] for row in part) / classes
        print(f"| **{len(part)} classes, {what}** | {off:.1f} | {on:.1f} |")


def photographs_of(folder: Path, count: int) -> dict[str, list[Path]]:
    """At most `count` photographs of each class, drawn at random with a fixed seed."""
    found = {}
    for name in sorted(ACCEPTED):
        if (folder / name).is_dir():
            several = images.find_images([folder / name])
            found[name] = random.Random(0).sample(several, min(count, len(several)))
    if not any(found.values()):
        raise UserError(
            f"{folder} has none of the folders {', '.join(list(ACCEPTED)[:3])}, ...; give Caltech-101's"
        )
    return found


def names(name: str, caption: str) -> bool:
    """Whether a caption has an accepted word: "fish bass" means fish, fishes, bass or basses."""
    words = re.split(r"[ /]", ACCEPTED[name])
    return re.search(rf"(?<![\w-])(?:{'|'.join(words)})(?:e?s)?(?![\w-])", caption) is not None


def report_hallucination(path: Path, checkpoint: Path | None, splits: list[str]) -> None:
    data, pipeline = CaptionDataset(path), CaptionPipeline.load(checkpoint)
    free = without(pipeline, "presence")
    assert isinstance(pipeline.model, TorchCaptioner)
    trained = pipeline.model.trained["presence"]
    assert isinstance(trained, PresenceClassifier)
    rows = [row for split in splits for row in data.indices(split).tolist()]
    references = [[ptb_tokenize(text) for text in data.references(row)] for row in rows]
    scores, found = [], []
    for way in (free, pipeline):
        results = way.stream(rows, reader(data, way.networks, way.transform))
        captions = [ptb_tokenize(result.captions[0].text) for result in results]
        scores.append(cider(captions, references)[0])
        found.append([counts(captions, references, SUBJECTS[name].words) for name in trained.names])
    print(f"{len(rows)} images, CIDEr {scores[0]:.1f} without the mask and {scores[1]:.1f} with it\n")
    print("| | hallucinated without | with | missed without | with |\n| --- | ---: | ---: | ---: | ---: |")
    for name, before, after in zip(trained.names, *found, strict=True):
        print(f"| {name} | {before[0]} | {after[0]} | {before[1]} | {after[1]} |")


def counts(
    captions: list[list[str]], references: list[list[list[str]]], words: frozenset[str]
) -> tuple[int, int]:
    """Images of which only the caption, and only the references, contain one of the words."""
    invented = left_out = 0
    for caption, several in zip(captions, references, strict=True):
        mentioned, present = (
            not words.isdisjoint(each) for each in (caption, [word for one in several for word in one])
        )
        invented, left_out = invented + (mentioned and not present), left_out + (present and not mentioned)
    return invented, left_out


if __name__ == "__main__":
    raise SystemExit(main())
