"""Every setting of a model and of a training run, checked when made; command-line flags are generated from the fields."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from sca_caption.errors import UserError


def setting(default, help: str, choices: Sequence[str] | None = None):
    """A dataclass field that also says how it appears in `--help`."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class ModelConfig:
    """The captioner's architecture. `layers` holds resolved layer names by the time a model is built."""

    backbone: str = setting("mobilenet_v2", "CNN, any classification model of torchvision")
    layers: tuple[str, ...] = setting(
        ("2",), "attended layers: how many of the last ones, or names, lowest first"
    )
    attention: str = setting("C-S", "spatial, channel-wise, or both in this order", ("S", "C", "S-C", "C-S"))
    attention_width: int = setting(128, "k, width of the attention's hidden layer")
    embedding_size: int = setting(256, "size of word embeddings")
    lstm_size: int = setting(512, "size of the LSTM's state")
    dropout: float = setting(0.3, "dropout on embeddings and before the word logits")
    tie_embeddings: bool = setting(False, "one matrix for the words going in and coming out")
    pool_norm: float = setting(30.0, "length that the pooled top feature is normalised to (the paper: 1)")

    def __post_init__(self):
        require(self, "attention_width", self.attention_width >= 1, "at least 1")
        require(self, "embedding_size", self.embedding_size >= 1, "at least 1")
        require(self, "lstm_size", self.lstm_size >= 1, "at least 1")
        require(self, "dropout", 0 <= self.dropout < 1, "from 0 to below 1")
        require(self, "pool_norm", self.pool_norm > 0, "above 0")
        require(self, "attention", self.attention in ("S", "C", "S-C", "C-S"), "S, C, S-C or C-S")


@dataclass(frozen=True)
class TrainConfig:
    """How a captioner is trained."""

    epochs: int = setting(12, "passes over the training images, all captions of each")
    batch_size: int = setting(32, "images a step; each brings all of its captions")
    objective: str = setting(
        "cross-entropy",
        "cider: self-critical training of a model that can caption already (see --init)",
        ("cross-entropy", "cider"),
    )
    samples: int = setting(5, "captions drawn an image with --objective cider")
    optimizer: str = setting("adamw", "adadelta is the paper's", ("adamw", "adadelta"))
    lr: float = setting(8e-4, "peak learning rate")
    backbone_lr: float = setting(1e-4, "peak learning rate of the CNN")
    finetune_backbone_at: int = setting(2, "epoch (from 0) at which the CNN starts to learn; -1: never")
    finetune_from: str = setting("", "first layer of the CNN that learns then (default: all of it does)")
    warmup: float = setting(
        0.05, "share of the steps in which the rate rises from 0; then it falls as a cosine"
    )
    weight_decay: float = setting(0.01, "L2 penalty (adadelta) or decoupled decay (adamw)")
    clip: float = setting(1.0, "largest norm of the gradient; 0: not clipped")
    label_smoothing: float = setting(0.1, "share of the target spread over all words")
    doubly_stochastic: float = setting(0.0, "weight of the penalty (1 - sum over words of alpha)^2")
    augment: bool = setting(True, "crop, lighting, and mirroring of images whose captions name no side")
    patience: int = setting(5, "epochs without a better CIDEr before stopping early; 0: never stop")
    validation_beam: int = setting(1, "beam size of the captions that validation scores")
    workers: int = setting(1, "processes that decode images")
    seed: int = setting(0, "seed of everything random")

    def __post_init__(self):
        for name in ("epochs", "batch_size", "validation_beam"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "clip", "doubly_stochastic", "patience", "workers", "backbone_lr"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "lr", self.lr > 0, "above 0")
        require(self, "samples", self.samples >= 2, "at least 2")
        for name in ("warmup", "label_smoothing"):
            require(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")


def require(config, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be {allowed}")


# The authors' sizes and training (section 4.1 of the paper and their released code).
PAPER = {
    "backbone": "resnet152",
    "attention_width": 512,
    "embedding_size": 100,
    "lstm_size": 1000,
    "dropout": 0.5,
    "pool_norm": 1.0,
    "optimizer": "adadelta",
    "lr": 1.0,
    "batch_size": 64,
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "finetune_backbone_at": -1,
    "warmup": 0.0,
    "epochs": 50,
    "validation_beam": 5,
    "augment": False,
}

# Small pictures, few words: a minute of CPU.
SHAPES = {"attention_width": 64, "embedding_size": 64, "lstm_size": 128, "epochs": 8, "finetune_backbone_at": -1,
          "augment": False, "batch_size": 16, "lr": 3e-3, "label_smoothing": 0.0, "dropout": 0.1}  # fmt: skip

PRESETS: dict[str, dict] = {"default": {}, "paper": PAPER, "shapes": SHAPES}


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line."""

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def add_flags(parser: argparse.ArgumentParser, *configs: type) -> None:
    """Add one flag for each field of the config classes. A flag that is not given leaves no trace in the namespace."""
    for config in configs:
        group = parser.add_argument_group(config.__doc__.split(".")[0].lower())
        for f in dataclasses.fields(config):
            flag = "--" + f.name.replace("_", "-")
            default = " ".join(f.default) if isinstance(f.default, tuple) else f.default
            options = {"dest": f.name, "default": argparse.SUPPRESS}
            if f.type is bool:
                shown = "on" if f.default else "off"
                options |= {
                    "action": argparse.BooleanOptionalAction,
                    "help": f"{f.metadata['help']} (default: {shown})",
                }
            else:
                shown = f.metadata["help"] if default == "" else f"{f.metadata['help']} (default: {default})"
                options |= {"help": shown, "choices": f.metadata["choices"]}
                if isinstance(f.default, tuple):
                    options |= {"nargs": "+", "metavar": "LAYER"}
                else:
                    options |= {"type": f.type}
                    if not f.metadata["choices"]:
                        options["metavar"] = {int: "N", float: "X", str: "NAME"}[f.type]
            group.add_argument(flag, **options)


def make(config: type, arguments: argparse.Namespace, preset: str = "default"):
    """Build a config: its defaults, then the preset, then the flags that were given."""
    names = {f.name for f in dataclasses.fields(config)}
    values = {k: v for k, v in (PRESETS[preset] | vars(arguments)).items() if k in names}
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def from_dict(config: type, values: dict):
    """A config from what `dataclasses.asdict` gave, after a trip through JSON. Raises UserError on unknown settings."""
    names = {f.name for f in dataclasses.fields(config)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise UserError(
            f"unknown settings {', '.join(unknown)}; written by a newer version? upgrade sca_caption"
        )
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
