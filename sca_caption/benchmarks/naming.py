"""How many captions name the object of a photograph by an everyday noun, for photographs in folders named by class.

For classes of Caltech-101 that one of the nouns (see `nouns`) names rightly: a caption counts when it has one of the
words below, or its plural, as a whole word. The classes with even numbers, in alphabetical order, are for choosing
settings; what is reported are the others. Without objects means: as `caption.py --no-objects`.
"""

import random
import re
from pathlib import Path

from sca_caption import images
from sca_caption.cli.parser import Parser, program
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.naming 101_ObjectCategories/
  python -m sca_caption.benchmarks.naming 101_ObjectCategories/ --checkpoint named.safetensors --photographs 30
"""
# What people call each; other classes of Caltech-101 are not among ImageNet's.
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
    p = Parser(prog="python -m sca_caption.benchmarks.naming", description=__doc__, epilog=EPILOG)
    p.add_argument("folder", type=Path, metavar="FOLDER", help="of folders, as Caltech-101's")
    p.add_argument("--checkpoint", metavar="FILE", help="(default: the model that ships)")
    p.add_argument(
        "--photographs", type=int, default=10, metavar="N", help="of each class (default: %(default)s)"
    )
    p.add_argument("--captions", action="store_true", help="print every caption too")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    photographs = photographs_of(arguments.folder, arguments.photographs)
    paths = [path for several in photographs.values() for path in several]
    captions = {}
    for objects in (False, True):
        pipeline = CaptionPipeline(arguments.checkpoint, objects=objects)
        found = [result.captions[0].text for result in pipeline.stream(paths)]
        captions[objects] = dict(zip(paths, found, strict=True))
    if pipeline.namer is None:
        raise UserError(
            "this model has no part that names objects; python -m sca_caption.checkpoint --objects adds it"
        )
    rows = []
    for name, several in photographs.items():
        named = [[names(name, captions[objects][path]) for path in several] for objects in (False, True)]
        rows.append((name, *(100 * sum(each) / len(each) for each in named)))
        if arguments.captions:
            for path in several:
                print(f"{name}/{path.name}\t{captions[False][path]}\t{captions[True][path]}")
    print("| class | without objects, % | with them, % |\n| --- | ---: | ---: |")
    for name, without, with_them in rows:
        print(f"| {name} | {without:.0f} | {with_them:.0f} |")
    for what, part in (("chosen on", rows[::2]), ("reported", rows[1::2])):
        without, with_them = (sum(row[column] for row in part) / max(1, len(part)) for column in (1, 2))
        print(f"| **{len(part)} classes, {what}** | {without:.1f} | {with_them:.1f} |")
    return 0


def photographs_of(folder: Path, count: int) -> dict[str, list[Path]]:
    """Of each class at most `count`, drawn at random, the same at every call."""
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


if __name__ == "__main__":
    raise SystemExit(main())
