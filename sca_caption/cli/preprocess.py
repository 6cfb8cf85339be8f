"""Create the data file for training: images at model size, captions as word ids, and the vocabulary."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.cli.parser import Parser, program
from sca_caption.config import ModelConfig, require
from sca_caption.datasets.hdf5_reader import ENCODINGS
from sca_caption.datasets.sources import SOURCES, find
from sca_caption.images import MODES, Transform
from sca_caption.runtime.errors import UserError, warn

if TYPE_CHECKING:
    import numpy as np

    from sca_caption.datasets.sources.records import Record
    from sca_caption.datasets.sources.texts import Texts
    from sca_caption.vocab import Vocabulary

LEAST_COVERED = 0.9  # fraction of the words in train; 5 occurrences cover 98% of Flickr8k's
MAX_SHOWN = 20  # skipped images, and notes on captions, that are printed
SHAPES_SIZE = 96  # pixels, as the generated images are drawn; a fifth of the computation of 224
REQUIRES = {  # flag -> the flag and value without which it has no effect; None stands for any value
    "restval": ("dataset", "coco"),
    "year": ("dataset", "coco"),
    "ids": ("dataset", "coco"),
    "count": ("dataset", "shapes"),
    "seed": ("dataset", "shapes"),
    "quality": ("encoding", "jpeg"),
    "backbone": ("encoding", "features"),
    "layers": ("encoding", "features"),
    "backbone_weights": ("encoding", "features"),
    "device": ("encoding", "features"),
    "min_count_texts": ("texts", None),
    "held_out": ("texts", None),
}
EPILOG = """\
examples:
  python preprocess.py --dataset shapes                          # generated images, no download
  python preprocess.py --dataset flickr8k --root ~/Downloads     # zips or unpacked folders
  python preprocess.py --dataset csv --root photos/captions.csv --output data/photos.h5
  python preprocess.py --dataset coco --ids everyday --texts captions_train2017.json
  python preprocess.py --dataset coco --encoding features --backbone resnet152    # for a frozen backbone

data/README.md tells where to download each data set and which files are needed.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="preprocess.py",
        usage="preprocess.py --dataset NAME [options]",
        description=__doc__,
        epilog=EPILOG,
    )
    add = p.add_argument
    add("--dataset", required=True, metavar="NAME", help=", ".join(SOURCES))
    add("--root", type=Path, metavar="DIR", help="location of the data set: a folder, a zip or, for "
        "csv, the table (default: data/NAME if it exists, otherwise data)")  # fmt: skip
    add("--output", type=Path, metavar="FILE.h5", help="data file to write; an existing one is replaced "
        "when the new one is complete (default: data/NAME.h5)")  # fmt: skip
    add("--restval", choices=("train", "omit"), help="coco: add the validation images outside val and "
        "test to train, or omit them (default: train)")  # fmt: skip
    add("--year", choices=("2014", "2017"), help="coco: read the official captions of this year (default: "
        "dataset_coco.json by Karpathy if it exists, otherwise the more complete year)")  # fmt: skip
    add("--ids", metavar="FILE", help="coco: take the photographs of this CSV of id,split; 'everyday' is a packaged "
        "list (default: all)")  # fmt: skip
    add("--count", type=int, metavar="N", help="shapes: number of images to generate (default: 800)")
    add("--seed", type=int, metavar="N", help="shapes: random seed (default: 0)")

    add = p.add_argument_group("images").add_argument
    add("--image-size", type=int, metavar="PIXELS", help="side of the square image (default: "
        f"{Transform.size}; shapes: {SHAPES_SIZE})")  # fmt: skip
    add("--resize-mode", choices=MODES, default="resize", help="resize ignores the aspect ratio; crop keeps it and "
        "crops the centre (default: resize)")  # fmt: skip
    add("--encoding", choices=ENCODINGS, default="jpeg", help="store JPEG files (about 15 kB per image), raw "
        "pixels (150 kB) or float16 features of a frozen backbone (default: jpeg)")  # fmt: skip
    add("--quality", type=int, metavar="1..95", help="JPEG quality; an upright RGB JPEG of the right size is "
        "stored unchanged (default: 90)")  # fmt: skip
    add("--max-skipped", type=int, default=100, metavar="N", help="largest accepted number of missing or damaged "
        "images (default: 100)")  # fmt: skip
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read and resize images (default: one per core)",
    )
    add("--quiet", action="store_true", help="hide the progress bar and notes on captions")

    add = p.add_argument_group("words").add_argument
    add("--min-count", type=int, default=5, metavar="N", help="least number of occurrences in train of a word of "
        "the vocabulary (default: 5)")  # fmt: skip
    add("--vocabulary", type=Path, metavar="FILE", help="use the vocabulary of this data file or "
        "checkpoint, for train.py --init (default: the words of the data set)")  # fmt: skip

    add = p.add_argument_group("texts").add_argument
    add("--texts", type=Path, nargs="+", metavar="FILE", help="captions without photographs: CSVs with a column caption, "
        "COCO's captions JSON, Flickr30k's token file (default: none)")  # fmt: skip
    add("--min-count-texts", type=int, metavar="N", help="least number of occurrences in the texts of a further "
        "word of the vocabulary (default: 50)")  # fmt: skip
    add("--held-out", type=Path, nargs="+", metavar="FILE.h5", help="leave out the texts of val and test images of these "
        "files too (default: none)")  # fmt: skip

    add = p.add_argument_group(
        "features", "for --encoding features; train with the same --backbone and --layers"
    ).add_argument
    add("--backbone", metavar="NAME", help="a classifier of torchvision, or efficientnet_lite0, 1 or 2 (default: "
        f"{ModelConfig.backbone})")  # fmt: skip
    add("--layers", nargs="+", metavar="LAYER", help="attended layers: names, lowest first, or the number of "
        f"last layers (default: {' '.join(ModelConfig.layers)})")  # fmt: skip
    add("--backbone-weights", metavar="FILE", help="ImageNet weights as a torchvision state dict, or "
        "'none' for random weights (default: torchvision's download)")  # fmt: skip
    add("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda if available)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    check(arguments)
    name = arguments.dataset
    root = arguments.root or (Path("data", name) if Path("data", name).is_dir() else Path("data"))
    output = arguments.output or Path("data", f"{name}.h5")
    size = arguments.image_size
    if size is None:
        size = SHAPES_SIZE if name == "shapes" else Transform.size
    source = find(name, root, **given(arguments, ("restval", "year", "ids", "count", "seed")))
    texts = load_texts(arguments, source.records) if arguments.texts else None
    encoder = make_encoder(arguments) if arguments.encoding == "features" else {}

    from tqdm import tqdm

    from sca_caption.datasets.hdf5_writer import write

    skipped = 0

    def report_skipped(item: str, reason: str) -> None:
        nonlocal skipped
        skipped += 1
        if skipped <= MAX_SHOWN:
            tqdm.write(f"skipped: {item}: {reason}", file=sys.stderr)

    report = write(
        source,
        output,
        transform=Transform(size, arguments.resize_mode),
        encoding=arguments.encoding,
        min_count=arguments.min_count,
        vocabulary=load_vocabulary(arguments.vocabulary),
        texts=texts,
        workers=arguments.workers,
        max_skipped=arguments.max_skipped,
        on_skip=report_skipped,
        quiet=arguments.quiet,
        **given(arguments, ("quality", "min_count_texts")),
        **encoder,
    )
    notes = [] if arguments.quiet else report.problems
    for item, reason in notes[:MAX_SHOWN]:
        print(f"note: {item}: {reason}", file=sys.stderr)
    if max(skipped, len(notes)) > MAX_SHOWN:
        print(f"and more; the attribute 'skipped' of {output} has the complete list", file=sys.stderr)
    print(report)
    if report.coverage.get("train", 1) < LEAST_COVERED:
        remedy = "lower --min-count" if report.min_count > 1 else "use another --vocabulary, or none"
        warn(
            f"the vocabulary of {report.vocabulary} words covers {report.coverage['train']:.0%} of the words in train, "
            f"and captions have no others; {remedy}"
        )
    return 0


def load_texts(arguments: argparse.Namespace, records: "list[Record]") -> "Texts":
    """The captions of --texts whose photographs are neither in `records` nor held out by the files of --held-out."""
    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.datasets.sources.texts import read_texts

    held_out = set()
    for data in map(CaptionDataset, arguments.held_out or ()):
        held_out |= {data.file_name(i) for split in ("val", "test") for i in data.indices(split)}
    return read_texts(arguments.texts, records, held_out)


def load_vocabulary(path: Path | None) -> "Vocabulary | None":
    """The vocabulary of a data file or a checkpoint, or None. Raises UserError if the file is neither."""
    if path is None:
        return None
    if path.suffix == ".h5":
        from sca_caption.datasets.hdf5_reader import CaptionDataset

        return CaptionDataset(path).vocabulary
    from sca_caption import checkpoint

    return checkpoint.load(path).vocabulary


def given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """The flags of `names` that were set. Flags that were not set keep the default of the function they belong to."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a value out of range and for a flag that has no effect with the other flags."""
    size = arguments.image_size
    require(arguments, "image_size", size is None or size >= 1, "at least 1")
    require(arguments, "min_count", arguments.min_count >= 1, "at least 1")
    require(arguments, "max_skipped", arguments.max_skipped >= 0, "0 or more")
    require(arguments, "workers", arguments.workers is None or arguments.workers >= 1, "at least 1")
    require(arguments, "quality", arguments.quality is None or 1 <= arguments.quality <= 95, "from 1 to 95")
    require(
        arguments,
        "min_count_texts",
        arguments.min_count_texts is None or arguments.min_count_texts >= 1,
        "at least 1",
    )
    for name, (other, value) in REQUIRES.items():
        found = getattr(arguments, other)
        if getattr(arguments, name) is None or (found is not None if value is None else found == value):
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is None:
            raise UserError(f"{flag} has no effect without --{other}; remove it, or add --{other}")
        raise UserError(f"{flag} has no effect with --{other} {found}; remove it, or use --{other} {value}")
    if arguments.ids is not None and arguments.restval is not None:
        raise UserError("--restval has no effect with --ids, which gives the splits; remove one of the two")


def make_encoder(arguments: argparse.Namespace) -> dict:
    """The backbone as `encode` and `features_of` of hdf5_writer.write."""
    import torch

    from sca_caption.models.backbone import attended_layers
    from sca_caption.models.pretrained import pretrained_weights
    from sca_caption.models.sca_cnn import SCACNN
    from sca_caption.runtime.devices import find_device
    from sca_caption.vocab import SPECIALS

    device = find_device(arguments.device or "auto")
    backbone, file = arguments.backbone or ModelConfig.backbone, arguments.backbone_weights
    layers = attended_layers(backbone, arguments.layers or ModelConfig.layers)
    torch.manual_seed(0)  # for random weights
    weights = None if file == "none" else pretrained_weights(backbone, file)
    model = SCACNN(ModelConfig(backbone=backbone, layers=layers), len(SPECIALS), weights).to(device).eval()

    @torch.inference_mode()
    def encode(pixels: "np.ndarray") -> "list[np.ndarray]":  # uint8 (B, S, S, 3) -> arrays (B, C, H, W)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        return [features.cpu().numpy() for features in model.encode(images)]

    described = {"backbone": backbone, "layers": list(layers), "weights": file or "default"}
    return {"encode": encode, "features_of": described}
