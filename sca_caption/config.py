"""Every setting of a model and of a training run, checked when made; command-line flags are generated from the fields."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from sca_caption.runtime.errors import UserError


def setting(default, help: str, choices: Sequence[str] | None = None, was: str = ""):
    """A dataclass field that also says how it appears in `--help`.

    was: its name in earlier versions, which files and flags may still have.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "was": was})


@dataclass(frozen=True)
class ModelConfig:
    """The captioner's architecture. `layers` holds resolved layer names by the time a model is built."""

    backbone: str = setting("mobilenet_v2", "CNN, any classifier of torchvision")
    backbone_attention: str = setting("", "attention block inside the CNN, e.g. se, cbam (default: none)")
    backbone_at: tuple[str, ...] = setting((), "stages that have it (default: where its authors put it)")
    layers: tuple[str, ...] = setting(("2",), "attended layers: the last so many, or names, lowest first")
    attention: str = setting("C-S", "spatial, channel-wise, or both in this order", ("S", "C", "S-C", "C-S"))
    attention_width: int = setting(128, "k, width of the attention's hidden layer")
    embedding_size: int = setting(256, "size of word embeddings")
    lstm_size: int = setting(512, "size of the LSTM's state")
    dropout: float = setting(0.3, "dropout on embeddings and before the word logits")
    feature_dropout: float = setting(0.0, "share of the image's channels hidden in training")
    tie_embeddings: bool = setting(False, "one matrix for the words going in and coming out")
    pool_norm: float = setting(30.0, "length of the pooled top feature (the paper's: 1)")

    def __post_init__(self):
        for name in ("attention_width", "embedding_size", "lstm_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("dropout", "feature_dropout"):
            require(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        require(self, "pool_norm", self.pool_norm > 0, "above 0")
        require(self, "attention", self.attention in ("S", "C", "S-C", "C-S"), "S, C, S-C or C-S")


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier's architecture."""

    backbone: str = setting("resnet18", "the network: resnet50, mobilenet_v2, ... (a wrong name lists all)")
    attention: str = setting(
        "", "attention block, with options if any: se, cbam, bam:combine=add, ... (default: none)"
    )
    at: tuple[str, ...] = setting((), "stages that have it (default: where its authors put it)")
    stem: str = setting(
        "imagenet", "first layers; cifar: without the early downsampling", ("imagenet", "cifar")
    )
    image_size: int = setting(224, "side of the square that the network sees, in pixels")
    classes: tuple[str, ...] = field(default=())  # from the data

    def __post_init__(self):
        require(self, "image_size", 16 <= self.image_size <= 1024, "from 16 to 1024")
        require(self, "stem", self.stem in ("imagenet", "cifar"), "imagenet or cifar")


@dataclass(frozen=True)
class RunConfig:
    """How any model is trained."""

    epochs: int = setting(12, "passes over the training images")
    batch_size: int = setting(32, "images a step")
    optimizer: str = setting("adamw", "adadelta is the paper's", ("adamw", "adadelta", "sgd"))
    lr: float = setting(8e-4, "peak learning rate")
    schedule: str = setting(
        "cosine", "of the rate after the warm-up; step: a tenth from 1/2 and from 3/4 of the epochs on",
        ("cosine", "step", "constant"),
    )  # fmt: skip
    warmup: float = setting(0.05, "share of the steps in which the rate rises from 0")
    weight_decay: float = setting(0.01, "decoupled decay (adamw) or L2 penalty (the others)")
    clip: float = setting(1.0, "largest norm of the gradient; 0: not clipped")
    label_smoothing: float = setting(0.1, "share of the target spread over all words/classes")
    ema: float = setting(
        0.0, "decay a step of a moving average of the weights, which is scored and kept; 0: none"
    )
    amp: bool = setting(True, "bfloat16 arithmetic on a GPU")
    cpu_amp: bool = setting(False, "the same on a CPU: faster where it has AVX512-BF16 or AMX")
    patience: int = setting(5, "epochs with no better score before it stops; 0: never")
    workers: int = setting(1, "processes that decode images")
    seed: int = setting(0, "seed of everything random")

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "clip", "patience", "workers"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "lr", self.lr > 0, "above 0")
        for name in ("warmup", "label_smoothing", "ema"):
            require(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """How a captioner is trained. Each image of a step brings all of its captions."""

    objective: str = setting(
        "cross-entropy",
        "cider: self-critical training of a model that can caption already (see --init)",
        ("cross-entropy", "cider"),
    )
    train_sample_n: int = setting(5, "captions drawn an image with --objective cider", was="samples")
    sample_temperature: float = setting(0.5, "of those; at 1 they have words no search would say")
    bleu_weight: float = setting(0.0, "with --objective cider: what BLEU-4 counts beside CIDEr's 1")
    cross_entropy_weight: float = setting(0.0, "of cross-entropy in --objective cider, against drift")
    word_dropout: float = setting(0.0, "share of the words read that are hidden")
    scheduled_sampling: float = setting(
        0.0, "share of the words read that are the model's own, in the last epoch; rises from 0"
    )
    teacher: tuple[str, ...] = setting((), "checkpoints whose mean distribution it learns as well")
    teacher_weight: float = setting(1.0, "what learning from --teacher counts beside people's words")
    backbone_lr: float = setting(1e-4, "peak learning rate of the CNN")
    finetune_backbone_at: int = setting(2, "epoch (from 0) at which the CNN starts to learn; -1: never")
    finetune_from: str = setting("", "first layer of the CNN that learns then (default: all of it does)")
    attention_penalty: float = setting(
        0.0, "weight of a loss (1 - sum of alpha over words)^2", was="doubly_stochastic"
    )
    augment: bool = setting(True, "crop, lighting, and mirroring of images whose captions name no side")
    crop_scale: float = setting(0.7, "least share of the area that --augment keeps", was="smallest_view")
    color_jitter: float = setting(0.15, "most by which it changes brightness and contrast", was="lighting")
    validation_beam: int = setting(1, "beam size of the captions that validation scores")
    validation_length_penalty: float = setting(0.6, "of that beam search, see caption.py")

    def __post_init__(self):
        super().__post_init__()
        require(self, "validation_beam", self.validation_beam >= 1, "at least 1")
        require(self, "crop_scale", 0 < self.crop_scale <= 1, "above 0, at most 1")
        for name in ("word_dropout", "scheduled_sampling", "color_jitter"):
            require(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in (
            "attention_penalty",
            "backbone_lr",
            "bleu_weight",
            "cross_entropy_weight",
            "teacher_weight",
        ):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "train_sample_n", self.train_sample_n >= 2, "at least 2")
        require(self, "sample_temperature", 0 < self.sample_temperature < float("inf"), "above 0")


VIEWS = ("none", "pad", "resized")


@dataclass(frozen=True)
class ClassifierTrainConfig(RunConfig):
    """How a classifier is trained."""

    optimizer: str = setting("sgd", "sgd has momentum 0.9", ("adamw", "adadelta", "sgd"))
    lr: float = setting(0.05, "peak learning rate")
    weight_decay: float = setting(1e-4, "decoupled decay (adamw) or L2 penalty (the others)")
    clip: float = setting(0.0, "largest norm of the gradient; 0: not clipped")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes")
    patience: int = setting(0, "epochs with no better score before it stops; 0: never")
    views: str = setting(
        "resized", "of training images; pad: 4 pixels, then a random crop; resized: a random part; both mirrored",
        VIEWS,
    )  # fmt: skip
    crop_scale: float = setting(
        0.25, "least share of the area that --views resized keeps", was="smallest_view"
    )
    mixup: float = setting(0.0, "alpha of mixup, which blends pairs of images and their labels; 0: none")
    limit: int = setting(0, "training images used, a random choice that the seed fixes; 0: all")

    def __post_init__(self):
        super().__post_init__()
        require(self, "views", self.views in VIEWS, "none, pad or resized")
        require(self, "crop_scale", 0 < self.crop_scale <= 1, "above 0, at most 1")
        for name in ("mixup", "limit"):
            require(self, name, getattr(self, name) >= 0, "0 or more")


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
    "schedule": "constant",
    "warmup": 0.0,
    "epochs": 50,
    "validation_beam": 5,
    "augment": False,
}
# Small pictures, few words: a minute of CPU.
SHAPES = {"attention_width": 64, "embedding_size": 64, "lstm_size": 128, "epochs": 8, "finetune_backbone_at": -1,
          "augment": False, "batch_size": 16, "lr": 3e-3, "label_smoothing": 0.0, "dropout": 0.1}  # fmt: skip
# Self-critical training starts from a good captioner, and must not hurt it.
SELF_CRITICAL = {"lr": 4e-5, "epochs": 5, "finetune_backbone_at": -1, "patience": 2, "validation_beam": 5,
                 "label_smoothing": 0.0}  # fmt: skip
PRESETS: dict[str, dict] = {"default": {}, "paper": PAPER, "shapes": SHAPES}
# Classifiers. cifar: the ResNet-18 comparison of attention blocks (160 epochs, the rate falls at 80 and 120).
CIFAR = {"backbone": "resnet18", "stem": "cifar", "image_size": 32, "epochs": 160, "batch_size": 128, "lr": 0.1,
         "schedule": "step", "warmup": 1 / 160, "views": "pad", "workers": 0}  # fmt: skip
CALTECH = {"image_size": 224, "epochs": 20, "batch_size": 16, "lr": 5e-3, "weight_decay": 5e-4}
# imagenet: the light models' recipe of the Coordinate Attention paper.
IMAGENET = {"image_size": 224, "epochs": 200, "batch_size": 256, "lr": 0.05, "weight_decay": 4e-5,
            "crop_scale": 0.08, "workers": 8}  # fmt: skip
SHAPES_CLASSES = {"backbone": "resnet18", "image_size": 64, "epochs": 6, "batch_size": 32, "optimizer": "adamw",
                  "lr": 1e-3, "weight_decay": 0.01, "views": "none", "workers": 0}  # fmt: skip
CLASSIFIER_PRESETS: dict[str, dict] = {
    "cifar": CIFAR, "caltech": CALTECH, "imagenet": IMAGENET, "shapes": SHAPES_CLASSES,
}  # fmt: skip


def from_dict(config: type, values: dict):
    """A config from what `dataclasses.asdict` gave, after a trip through JSON. Raises UserError on unknown settings."""
    names = {f.name for f in dataclasses.fields(config)}
    earlier = {f.metadata["was"]: f.name for f in dataclasses.fields(config) if f.metadata.get("was")}
    values = {earlier.get(name, name): value for name, value in values.items()}
    unknown = sorted(set(values) - names)
    if unknown:
        raise UserError(
            f"unknown settings {', '.join(unknown)}; written by a newer version? upgrade sca_caption"
        )
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


BATCH_SIZE = 16  # images searched at once


@dataclass(frozen=True)
class SearchConfig:
    """Search for captions. Raises UserError when a value makes no sense."""

    beam_size: int = setting(7, "captions that grow side by side; 1: greedy, the fastest")
    num_captions: int = setting(1, "captions an image, best first; at most the beam size")
    min_length: int = setting(1, "fewest words in a caption")
    max_length: int = setting(20, "most words in a caption")
    length_penalty: float = setting(
        0.6, "rank by log-probability / length^X; 0: as it is; more favours longer captions"
    )
    block_ngrams: int = setting(
        2, "never say the same N words in a row twice, nor 'W W' or 'W and W'; 0: off"
    )
    remove_bad_endings: bool = setting(True, "never end in 'a', 'with', 'and', ...", was="sound_endings")
    rerank_weight: float = setting(
        5.5, "nats added to captions of the words that people would use; 0: off", was="consensus"
    )
    diverse_groups: int = setting(1, "groups of beams that differ")
    diversity: float = setting(0.5, "nats off a word for each beam of groups before that says it")

    @property
    def candidates(self) -> int:
        """Captions that a search finds for guides to rerank, the later ones often better; 1 for greedy search."""
        return 2 * self.beam_size if self.beam_size > 1 else 1

    def __post_init__(self):
        for name in ("beam_size", "num_captions", "min_length", "max_length"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "block_ngrams", self.block_ngrams >= 0, "0 (off) or more")
        require(self, "length_penalty", abs(self.length_penalty) <= 10, "from -10 to 10")
        require(
            self, "min_length", self.min_length <= self.max_length, f"at most --max-length {self.max_length}"
        )
        require(self, "diversity", self.diversity >= 0, "0 or more")
        require(self, "rerank_weight", 0 <= self.rerank_weight < float("inf"), "0 or more")
        even = self.diverse_groups >= 1 and self.beam_size % self.diverse_groups == 0
        require(self, "diverse_groups", even, f"a divisor of --beam-size {self.beam_size}")
        limit = f"at most --beam-size {self.beam_size}; ask for fewer captions or widen the beam"
        require(self, "num_captions", self.num_captions <= self.beam_size, limit)


@dataclass(frozen=True)
class SamplingConfig:
    """Draw captions at random in place of the search (--sample). Raises UserError when a value makes no sense."""

    temperature: float = setting(1.0, "below 1: likelier words")
    top_k: int = setting(0, "of the N likeliest words; 0: all")
    top_p: float = setting(0.9, "of the likeliest that sum to X")
    seed: int = setting(0, "same seed, same captions")

    def __post_init__(self):
        require(self, "temperature", 0 < self.temperature < float("inf"), "above 0")
        require(self, "top_k", self.top_k >= 0, "0 (all) or more")
        require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
