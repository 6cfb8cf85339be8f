"""Train an image classifier, with an attention block wherever its authors put it."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption import config
from sca_caption.cli.flags import add_device, add_flags, make
from sca_caption.cli.parser import Parser
from sca_caption.cli.runs import check_no_run_in, check_same_settings, given, resumable, resumes
from sca_caption.config import ClassifierConfig, ClassifierTrainConfig
from sca_caption.recipes import load_recipe
from sca_caption.runtime.distributed import Processes
from sca_caption.runtime.errors import UserError

if TYPE_CHECKING:
    from sca_caption.datasets.classification import LabelledImages
    from sca_caption.models.classifier import Classifier

EPILOG = """\
examples:
  python train.py --task classify --dataset shapes                                     # minutes, no download
  python train.py --task classify --dataset cifar10 --backbone resnet18 --attention cbam
  python train.py --task classify --dataset cifar100 --backbone resnet18 --attention bam:combine=add --at layer1 layer2
  python train.py --task classify --dataset folder --root photos --backbone mobilenet_v2 --attention coord
  python evaluate.py --task classify --checkpoint runs/folder-mobilenet_v2-coord/best.pt

data sets: cifar10 cifar100 caltech101 imagenet shapes, or folder: one folder per class; see data/README.md
"""
RECIPES = ("caltech", "caltech30", "cifar", "imagenet", "shapes-classify")
# Default recipe of a data set; caltech for others.
RECIPE_OF = {
    "cifar10": "cifar",
    "cifar100": "cifar",
    "imagenet": "imagenet",
    "shapes": "shapes-classify",
}
PRETRAINED = ("caltech", "caltech30")  # recipes that start from ImageNet weights


def parser() -> Parser:
    p = Parser(
        prog="train.py --task classify",
        usage="train.py --task classify --dataset NAME [options]",
        description=__doc__,
        epilog=EPILOG,
    )
    p.add_argument("--task", choices=("classify",), default="classify", help=argparse.SUPPRESS)
    p.add_argument("--dataset", required=True, metavar="NAME", help="one of the data sets below")
    p.add_argument("--root", type=Path, metavar="DIR", help="where its files are (default: data/NAME)")
    p.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints (default: runs/NAME-BACKBONE-BLOCK)",
    )
    p.add_argument("--recipe", metavar="NAME", help="defaults for the flags below: a .toml file, or one of "
                   f"{', '.join(RECIPES)} (default: the data set's; caltech for folder)")  # fmt: skip
    p.add_argument("--preset", dest="recipe", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    p.add_argument(
        "--backbone-weights",
        metavar="FILE",
        help="ImageNet weights as a torchvision state dict, 'download', or 'none' to start at random "
        "(default: download with the recipe caltech, else none)",
    )
    p.add_argument("--resume", action="store_true", help="resume the run in --output, with its own settings")
    add_device(p)
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    add_flags(p, ClassifierConfig, ClassifierTrainConfig)
    return p


def run(
    argv: list[str] | None,
    processes: Processes,
    on_epoch: Callable[[list[dict]], None] = lambda history: None,
) -> int:
    """Train the classifier that the flags describe. on_epoch: as of `train`. Raises UserError for mistakes in them."""
    arguments = parser().parse_args(argv)
    name = arguments.recipe or RECIPE_OF.get(arguments.dataset, "caltech")
    recipe = load_recipe(name, "classify")
    model_config = make(ClassifierConfig, arguments, recipe)
    train_config = make(ClassifierTrainConfig, arguments, recipe)
    output = arguments.output or default_output(arguments.dataset, model_config)

    from sca_caption.datasets.classification import open_dataset
    from sca_caption.runtime.devices import find_device
    from sca_caption.training.classification_task import ClassificationTask
    from sca_caption.training.loop import train

    device, resumed = find_device(arguments.device), None
    if resumes(arguments, output):
        resumed = resumable(output, "classify")
        train_config = config.from_dict(ClassifierTrainConfig, resumed.training["config"])
        found = given(arguments, ClassifierConfig, ClassifierTrainConfig)
        check_same_settings(found, train_config, resumed.config)
    else:
        check_no_run_in(output)
    source = {"dataset": arguments.dataset, "root": str(arguments.root or Path("data") / arguments.dataset)}
    split: dict[str, int] = {}
    if train_config.train_per_class:
        split = {"seed": train_config.seed, "per_class": train_config.train_per_class}
    data = open_dataset(arguments.dataset, arguments.root, **split)
    source |= {"per_class_split": split} if split else {}
    if resumed is not None:
        model = resumed.classifier
        if model.config.classes != data.classes:
            raise UserError(
                f"{arguments.dataset} has other classes ({len(data.classes)}) than {output / 'last.pt'} "
                f"({len(model.config.classes)}); resume with the data it was trained on ({resumed.training['data']})"
            )
    else:
        weights = arguments.backbone_weights or ("download" if name in PRETRAINED else "none")
        with processes.local_first():
            classified = dataclasses.replace(model_config, classes=data.classes)
            model = new_model(classified, train_config.seed, weights, data)
    task = ClassificationTask(model.to(device), data, train_config, source, processes)
    history = train(task, train_config, output, resumed, quiet=arguments.quiet, on_epoch=on_epoch)
    report(history)
    print(f"best model: {output / 'best.pt'}")
    return 0


def default_output(dataset: str, model: ClassifierConfig) -> Path:
    block = model.attention.translate(str.maketrans(":,=+", "----"))
    return Path("runs") / "-".join(filter(None, (dataset, model.backbone, block, *model.at)))


def new_model(
    model_config: ClassifierConfig, seed: int, weights: str, data: "LabelledImages"
) -> "Classifier":
    """The model to train: random weights, except those of the pretrained network."""
    import torch

    from sca_caption.models.classifier import Classifier
    from sca_caption.models.pretrained import pretrained_weights
    from sca_caption.training.classification_task import trainable_weights

    torch.manual_seed(seed)
    if weights == "none":
        return Classifier(model_config)
    file = None if weights == "download" else weights
    pretrained = pretrained_weights(model_config.backbone, file)
    model = Classifier(model_config, trainable_weights(pretrained, model_config, data))
    left = len(model.unloaded)
    print(
        f"starting from {weights}; {left} of {len(model.network.state_dict())} tensors are new: the blocks and the head"
    )
    return model


def report(history: list[dict]) -> None:
    """Print the figures that papers report: the last epoch, and the mean of the best five."""
    from sca_caption.evaluation.classification_metrics import best_mean

    scores = [record["top-1"] for record in history if "top-1" in record]
    if scores:
        best = best_mean(scores, 5)
        print(f"top-1: {scores[-1]:.2f} in the last epoch, {best:.2f} in the mean of the best five")
