"""Make the data file that training reads: images at model size, captions as word ids, the vocabulary."""

import argparse
import signal
import sys
from pathlib import Path

from sca_caption.cli.parser import Parser, program
from sca_caption.config import ModelConfig, require
from sca_caption.datasets.hdf5_reader import ENCODINGS
from sca_caption.datasets.sources import SOURCES, find
from sca_caption.images import MODES, Transform
from sca_caption.runtime.errors import UserError

SHOWN = 20  # left-out images, and notes on captions, that are printed in full
SHAPES_SIZE = 96  # pixels: as they are drawn, and a fifth of the work
OWNERS = {  # flags that belong to one choice of another flag
    "restval": ("dataset", "coco"),
    "year": ("dataset", "coco"),
    "count": ("dataset", "shapes"),
    "seed": ("dataset", "shapes"),
    "quality": ("encoding", "jpeg"),
    "backbone": ("encoding", "features"),
    "layers": ("encoding", "features"),
    "backbone_weights": ("encoding", "features"),
    "device": ("encoding", "features"),
}
EPILOG = """\
examples:
  python preprocess.py --dataset shapes                          # made pictures, no download
  python preprocess.py --dataset flickr8k --root ~/Downloads     # the zips as they are, or unpacked
  python preprocess.py --dataset csv --root photos/captions.csv --output data/photos.h5
  python preprocess.py --dataset coco --encoding features --backbone resnet152    # for a frozen CNN

data/README.md says where each dataset is got and how its files lie.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="preprocess.py", description=__doc__, epilog=EPILOG)
    add = p.add_argument
    add("--dataset", required=True, metavar="NAME", help=", ".join(SOURCES))
    add("--root", type=Path, metavar="DIR", help="where it lies: a folder, a zip or, for csv, the table "
        "itself (default: data/NAME if there is one, else data)")  # fmt: skip
    add("--output", type=Path, metavar="FILE.h5", help="the file to make, or to replace when the new one "
        "is complete (default: data/NAME.h5)")  # fmt: skip
    add("--restval", choices=("train", "omit"), help="coco: what becomes of the validation images that are "
        "in neither val nor test (default: train)")  # fmt: skip
    add("--year", choices=("2014", "2017"), help="coco: read the official captions of that year (default: "
        "Karpathy's dataset_coco.json if it is there, else the year that is complete)")  # fmt: skip
    add("--count", type=int, metavar="N", help="shapes: pictures to make (default: 800)")
    add("--seed", type=int, metavar="N", help="shapes: draws other pictures (default: 0)")

    add = p.add_argument_group("images").add_argument
    add("--image-size", type=int, metavar="PIXELS", help="side of the square (default: "
        f"{Transform.size}; shapes: {SHAPES_SIZE})")  # fmt: skip
    add("--resize-mode", choices=MODES, default="resize", help="squash the whole image into the square, or "
        "keep its proportions and take the centre (default: resize)")  # fmt: skip
    add("--encoding", choices=ENCODINGS, default="jpeg", help="store JPEG files (some 15 kB an image), "
        "raw pixels (150 kB) or what a frozen CNN makes of them, as float16 (default: jpeg)")  # fmt: skip
    add("--quality", type=int, metavar="1..95", help="of JPEG; an upright RGB JPEG of the right size is "
        "stored as it is (default: 90)")  # fmt: skip
    add("--max-skipped", type=int, default=100, metavar="N", help="missing or damaged images to do without; "
        "with more, nothing is written (default: 100)")  # fmt: skip
    add("--workers", type=int, metavar="N", help="processes that read and resize (default: one a core)")
    add("--quiet", action="store_true", help="no progress bar, and no notes on captions")

    add = p.add_argument_group("words").add_argument
    add("--min-count", type=int, default=5, metavar="N", help="the vocabulary is the words that the captions "
        "of train hold at least so many times (default: 5)")  # fmt: skip
    add("--vocabulary", type=Path, metavar="FILE", help="take the words of this data file or model, to train "
        "that model further with train.py --init (default: the data set's own words)")  # fmt: skip

    add = p.add_argument_group(
        "features", "with --encoding features; train with the same --backbone and --layers"
    ).add_argument
    add("--backbone", metavar="NAME", help="CNN, any classification model of torchvision (default: "
        f"{ModelConfig.backbone})")  # fmt: skip
    add("--layers", nargs="+", metavar="LAYER", help="attended layers: how many of the last ones, or names, "
        f"lowest first (default: {' '.join(ModelConfig.layers)})")  # fmt: skip
    add("--backbone-weights", metavar="FILE", help="ImageNet weights as a torchvision state dict, or "
        "'none' for random ones (default: torchvision's download)")  # fmt: skip
    add("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda where there is one)")
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
    source = find(name, root, **given(arguments, ("restval", "year", "count", "seed")))
    encoder = make_encoder(arguments) if arguments.encoding == "features" else {}

    from tqdm import tqdm

    from sca_caption.datasets.hdf5_writer import write

    told = 0

    def tell(item: str, reason: str) -> None:
        nonlocal told
        told += 1
        if told <= SHOWN:
            tqdm.write(f"left out: {item}: {reason}", file=sys.stderr)

    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` cleans up as Ctrl-C does
    try:
        report = write(
            source,
            output,
            transform=Transform(size, arguments.resize_mode),
            encoding=arguments.encoding,
            min_count=arguments.min_count,
            vocabulary=vocabulary_of(arguments.vocabulary),
            workers=arguments.workers,
            max_skipped=arguments.max_skipped,
            on_skip=tell,
            quiet=arguments.quiet,
            **given(arguments, ("quality",)),
            **encoder,
        )
    finally:
        signal.signal(signal.SIGTERM, handler)
    notes = [] if arguments.quiet else report.problems
    for item, reason in notes[:SHOWN]:
        print(f"note: {item}: {reason}", file=sys.stderr)
    if max(told, len(notes)) > SHOWN:
        print(f"and more; the whole list is the attribute 'skipped' of {output}", file=sys.stderr)
    print(report)
    return 0


def vocabulary_of(path: Path | None):
    """The vocabulary in a data file or a checkpoint. Raises UserError where it is neither."""
    if path is None:
        return None
    if path.suffix == ".h5":
        from sca_caption.datasets.hdf5_reader import CaptionDataset

        return CaptionDataset(path).vocabulary
    from sca_caption import checkpoint

    return checkpoint.load(path).vocabulary


def given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """Those of the flags that were given, so that what they set keeps its own default."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a value out of range, and for a flag that the other flags leave without effect."""
    size = arguments.image_size
    require(arguments, "image_size", size is None or size >= 1, "at least 1")
    require(arguments, "min_count", arguments.min_count >= 1, "at least 1")
    require(arguments, "max_skipped", arguments.max_skipped >= 0, "0 or more")
    require(arguments, "workers", arguments.workers is None or arguments.workers >= 1, "at least 1")
    require(arguments, "quality", arguments.quality is None or 1 <= arguments.quality <= 95, "from 1 to 95")
    for name, (owner, value) in OWNERS.items():
        if getattr(arguments, name) is not None and getattr(arguments, owner) != value:
            raise UserError(
                f"--{name.replace('_', '-')} has no effect with --{owner} {getattr(arguments, owner)}; "
                f"it belongs to --{owner} {value}"
            )


def make_encoder(arguments: argparse.Namespace) -> dict:
    """The trunk of the captioner that will be trained, as store_writer.write takes it."""
    import torch

    from sca_caption.models.backbone import attended_layers
    from sca_caption.models.pretrained import pretrained_weights
    from sca_caption.models.sca_cnn import SCACNN
    from sca_caption.runtime.devices import find_device
    from sca_caption.vocab import SPECIALS

    device = find_device(arguments.device or "auto")
    backbone, file = arguments.backbone or ModelConfig.backbone, arguments.backbone_weights
    layers = attended_layers(backbone, arguments.layers or ModelConfig.layers)
    torch.manual_seed(0)  # of random weights
    weights = None if file == "none" else pretrained_weights(backbone, file)
    model = SCACNN(ModelConfig(backbone=backbone, layers=layers), len(SPECIALS), weights).to(device).eval()

    @torch.inference_mode()
    def encode(pixels):  # uint8 (B, S, S, 3) -> arrays (B, C, H, W)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        return [features.cpu().numpy() for features in model.encode(images)]

    described = {"backbone": backbone, "layers": list(layers), "weights": file or "torchvision's default"}
    return {"encode": encode, "features_of": described}
