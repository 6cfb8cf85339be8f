"""Settings of models, training, search and sampling. They are checked when made; flags are generated from the fields."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sca_caption.runtime.errors import UserError

Config = TypeVar("Config")


def setting(
    default: Any, help: str, choices: Sequence[str] | None = None, *, was: str = "", common: bool = False
) -> Any:
    """A dataclass field with its flag's help.

    choices: the valid values. was: its name in earlier versions, which files and flags may still have. common: whether
    `--help` shows it; `--help-all` shows all.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "was": was, "common": common})


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of captioners. When a model is built, `layers` holds layer names."""

    backbone: str = setting(
        "mobilenet_v2", "the CNN: a classifier of torchvision, or efficientnet_lite0, 1 or 2", common=True
    )
    backbone_attention: str = setting("", "attention block inside the CNN, e.g. se, cbam (default: none)")
    backbone_at: tuple[str, ...] = setting((), "stages with that block (default: where its authors put it)")
    layers: tuple[str, ...] = setting(
        ("2",), "attended layers: the last so many, or names, lowest first", common=True
    )
    unattended: int = setting(
        0, "of these layers, how many of the lowest are not attended, to train upper ones first"
    )
    attention: str = setting(
        "C-S", "spatial (S), channel-wise (C), or both in that order", ("S", "C", "S-C", "C-S"), common=True
    )
    attention_width: int = setting(128, "k, the width of the attention's hidden layer")
    embedding_size: int = setting(256, "size of word embeddings")
    lstm_size: int = setting(512, "size of the LSTM's state", common=True)
    dropout: float = setting(0.3, "dropout on embeddings and before the word logits", common=True)
    feature_dropout: float = setting(0.0, "dropout of whole channels of the image's map")
    tie_embeddings: bool = setting(False, "share the input and output word embeddings")
    pool_norm: float = setting(30.0, "norm of the pooled top feature (paper: 1)")
    neck: int = setting(
        0,
        "channels of a new last layer of the CNN, which runs at every word (EfficientNet-Lite); 0: its own 1,280",
    )
    word_rank: int = setting(
        0, "rank of the predictor of words, which the decoder reads (see models.word_predictor); 0: none"
    )
    word_dropout_rate: float = setting(0.5, "dropout in the predictor of words")
    styles: tuple[str, ...] = field(default=())  # from the data: data sets whose manner a caption may have

    def __post_init__(self) -> None:
        for name in ("attention_width", "embedding_size", "lstm_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("word_rank", "neck", "unattended"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("dropout", "feature_dropout", "word_dropout_rate"):
            require(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        require(self, "pool_norm", self.pool_norm > 0, "above 0")
        require(self, "attention", self.attention in ("S", "C", "S-C", "C-S"), "S, C, S-C or C-S")


@dataclass(frozen=True)
class ClassifierConfig:
    """Architecture of classifiers."""

    backbone: str = setting(
        "resnet18", "the network: resnet50, mobilenet_v2, ... (a wrong name lists all)", common=True
    )
    attention: str = setting(
        "",
        "attention block, with options if any: se, cbam, bam:combine=add, ... (default: none)",
        common=True,
    )
    at: tuple[str, ...] = setting(
        (), "stages with that block (default: where its authors put it)", common=True
    )
    stem: str = setting(
        "imagenet", "first layers; cifar: without early downsampling", ("imagenet", "cifar"), common=True
    )
    image_size: int = setting(224, "pixels per side of the square input", common=True)
    classes: tuple[str, ...] = field(default=())  # from the data

    def __post_init__(self) -> None:
        require(self, "image_size", 16 <= self.image_size <= 1024, "from 16 to 1024")
        require(self, "stem", self.stem in ("imagenet", "cifar"), "imagenet or cifar")


@dataclass(frozen=True)
class RunConfig:
    """Training of any model."""

    epochs: int = setting(12, "passes over the training images", common=True)
    batch_size: int = setting(32, "images per step", common=True)
    optimizer: str = setting("adamw", "adadelta is the paper's", ("adamw", "adadelta", "sgd"), common=True)
    lr: float = setting(8e-4, "peak learning rate", common=True)
    schedule: str = setting(
        "cosine", "learning-rate schedule after the warm-up; step: divide by 10 after 1/2 and 3/4 of the epochs",
        ("cosine", "step", "constant"),
    )  # fmt: skip
    warmup: float = setting(0.05, "fraction of the steps with a linear warm-up")
    weight_decay: float = setting(0.01, "decoupled decay (adamw) or L2 penalty (the others)", common=True)
    clip: float = setting(1.0, "gradient-norm clipping; 0: off")
    label_smoothing: float = setting(0.1, "label smoothing")
    ema: float = setting(
        0.0,
        "decay per step of an exponential moving average of the weights, which is validated and saved; 0: off",
    )
    amp: bool = setting(True, "bfloat16 autocast on a GPU")
    cpu_amp: bool = setting(False, "bfloat16 autocast on a CPU: faster with AVX512-BF16 or AMX")
    patience: int = setting(
        5, "early stopping after this many epochs without a better score; 0: off", common=True
    )
    workers: int = setting(1, "data-loading processes", common=True)
    seed: int = setting(0, "random seed", common=True)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "clip", "patience", "workers"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "lr", self.lr > 0, "above 0")
        for name in ("warmup", "label_smoothing", "ema"):
            require(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Training of captioners. Each image of a step comes with all of its captions."""

    objective: str = setting(
        "cross-entropy",
        "cider: self-critical training of a trained captioner (see --init)",
        ("cross-entropy", "cider"),
        common=True,
    )
    train_sample_n: int = setting(5, "sampled captions per image with --objective cider", was="samples")
    sample_temperature: float = setting(0.5, "their sampling temperature")
    bleu_weight: float = setting(0.0, "weight of BLEU-4 in the reward beside 1 for CIDEr")
    cross_entropy_weight: float = setting(0.0, "weight of cross-entropy in --objective cider")
    captions_per_image: int = setting(0, "captions of an image in one step, drawn at random; 0: all")
    word_loss_weight: float = setting(0.1, "weight of the loss of predicted words (with --word-rank)")
    texts_per_step: int = setting(
        0, "photographs of which only captions are known, per step (preprocess.py --texts; needs --word-rank)"
    )
    text_weight: float = setting(0.5, "weight of their loss beside 1 for the captions of images")
    cache_features: bool = setting(
        False, "keep a frozen CNN's maps in memory instead of computing them every epoch"
    )
    word_dropout: float = setting(0.0, "probability that an input word is replaced by <unk>")
    scheduled_sampling: float = setting(
        0.0,
        "scheduled sampling: probability of feeding the model its own word, increased linearly from 0 over training",
    )
    teacher: tuple[str, ...] = setting(
        (), "distillation: checkpoints whose mean distribution is a second target"
    )
    teacher_weight: float = setting(1.0, "weight of distillation beside 1 for the captions")
    backbone_lr: float = setting(1e-4, "peak learning rate of the CNN", common=True)
    finetune_backbone_at: int = setting(
        2, "epoch, from 0, from which the CNN is fine-tuned; -1: never", common=True
    )
    finetune_from: str = setting("", "first layer of the CNN that is fine-tuned (default: all)")
    attention_penalty: float = setting(
        0.0, "weight of the attention penalty (1 - sum of alpha over words)^2", was="doubly_stochastic"
    )
    augment: bool = setting(
        True, "random crop, brightness and contrast; mirroring unless captions say left or right", common=True
    )
    crop_scale: float = setting(
        0.7, "smallest fraction of the area that a random crop keeps", was="smallest_view"
    )
    color_jitter: float = setting(0.15, "largest change of brightness and contrast", was="lighting")
    validation_beam: int = setting(1, "beam size in validation")
    validation_length_penalty: float = setting(0.6, "length penalty in validation, see caption.py")

    def __post_init__(self) -> None:
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
            "captions_per_image",
            "word_loss_weight",
            "texts_per_step",
            "text_weight",
        ):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "train_sample_n", self.train_sample_n >= 2, "at least 2")
        require(self, "sample_temperature", 0 < self.sample_temperature < float("inf"), "above 0")


VIEWS = ("none", "pad", "resized")


@dataclass(frozen=True)
class ClassifierTrainConfig(RunConfig):
    """Training of classifiers."""

    optimizer: str = setting("sgd", "sgd has momentum 0.9", ("adamw", "adadelta", "sgd"), common=True)
    lr: float = setting(0.05, "peak learning rate", common=True)
    weight_decay: float = setting(1e-4, "decoupled decay (adamw) or L2 penalty (the others)", common=True)
    clip: float = setting(0.0, "gradient-norm clipping; 0: off")
    label_smoothing: float = setting(0.0, "label smoothing")
    patience: int = setting(
        0, "early stopping after this many epochs without a better score; 0: off", common=True
    )
    views: str = setting(
        "resized",
        "augmentation; pad: 4 pixels, then a random crop; resized: random resized crop; both mirror",
        VIEWS,
        common=True,
    )
    crop_scale: float = setting(
        0.25, "smallest fraction of the area that a random crop keeps", was="smallest_view"
    )
    mixup: float = setting(0.0, "alpha of mixup; 0: off")
    limit: int = setting(0, "use a random subset of this many training images; 0: all")
    train_per_class: int = setting(
        0,
        "training images per class, chosen by --seed; the others are for validation (caltech101, folder); 0: 80/20",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "views", self.views in VIEWS, "none, pad or resized")
        require(self, "crop_scale", 0 < self.crop_scale <= 1, "above 0, at most 1")
        for name in ("mixup", "limit", "train_per_class"):
            require(self, name, getattr(self, name) >= 0, "0 or more")


def require(config: Any, name: str, holds: bool, allowed: str) -> None:
    """Raise UserError that names the flag unless its value `holds`."""
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be {allowed}")


def current_names(values: Mapping[str, Any], *configs: type) -> dict[str, Any]:
    """Settings by their current names; earlier versions called some otherwise."""
    fields = [f for config in configs for f in dataclasses.fields(config)]
    earlier = {f.metadata["was"]: f.name for f in fields if f.metadata.get("was")}
    return {earlier.get(name, name): value for name, value in values.items()}


def from_dict(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from the result of `dataclasses.asdict`, after JSON.

    Raises UserError for unknown settings, and for values of another type than the field's.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"settings are {str(values)[:40]!r}; they must be an object")
    values = current_names(values, config)
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(config)})  # type: ignore[arg-type]
    if unknown:
        raise UserError(
            f"unknown settings {', '.join(unknown)}; written by a newer version? upgrade sca_caption"
        )
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        if f.name in values and not _is_of(f.type, values[f.name]):
            raise UserError(f"setting {f.name} is {str(values[f.name])[:40]!r}; it must be of type {f.type}")
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a JSON value is one of a field's type: bool, int, float, str or tuple[str, ...]."""
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


BATCH_SIZE = 16  # images per search


@dataclass(frozen=True)
class SearchConfig:
    """Beam search. Raises UserError for values out of range."""

    beam_size: int = setting(7, "beam size; 1: greedy search, the fastest", common=True)
    num_captions: int = setting(1, "captions per image, at most the beam size", common=True)
    distinct: bool = setting(True, "let the captions of an image differ in content; otherwise the N best")
    min_length: int = setting(1, "shortest caption, in words")
    max_length: int = setting(20, "longest caption, in words", common=True)
    length_penalty: float = setting(
        0.6, "rank by log-probability / length^X; larger values favour longer captions"
    )
    block_ngrams: int = setting(2, "never repeat N words in a row, nor 'W W' or 'W and W'; 0: off")
    remove_bad_endings: bool = setting(True, "never end in 'a', 'with', 'and', ...", was="sound_endings")
    rerank_weight: float = setting(
        8.0, "weight of guides that rerank candidates, e.g. by expected CIDEr; 0: off", was="consensus"
    )
    grammar: bool = setting(True, "give a caption with forced words only if a grammar of English accepts it")
    diverse_groups: int = setting(1, "groups of diverse beam search")
    diversity: float = setting(0.5, "diversity penalty, nats per beam of earlier groups with the same word")

    @property
    def candidates(self) -> int:
        """Captions that a search finds for guides to rerank, the later ones often better; 1 for greedy search."""
        return 2 * self.beam_size if self.beam_size > 1 else 1

    def __post_init__(self) -> None:
        for name in ("beam_size", "num_captions", "min_length", "max_length"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "block_ngrams", self.block_ngrams >= 0, "0 (off) or more")
        require(self, "length_penalty", abs(self.length_penalty) <= 10, "from -10 to 10")
        require(
            self, "min_length", self.min_length <= self.max_length, f"at most --max-length {self.max_length}"
        )
        require(self, "diversity", 0 <= self.diversity < float("inf"), "0 or more")
        require(self, "rerank_weight", 0 <= self.rerank_weight < float("inf"), "0 or more")
        even = self.diverse_groups >= 1 and self.beam_size % self.diverse_groups == 0
        require(self, "diverse_groups", even, f"a divisor of --beam-size {self.beam_size}")
        limit = f"at most --beam-size {self.beam_size}; ask for fewer captions or widen the beam"
        require(self, "num_captions", self.num_captions <= self.beam_size, limit)


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling instead of beam search (--sample). Raises UserError for values out of range."""

    temperature: float = setting(1.0, "sampling temperature; below 1: more probable words")
    top_k: int = setting(0, "sample from the N most probable words; 0: all")
    top_p: float = setting(0.9, "nucleus sampling: the most probable words that sum to X")
    seed: int = setting(0, "random seed of --sample", common=True)

    def __post_init__(self) -> None:
        require(self, "temperature", 0 < self.temperature < float("inf"), "above 0")
        require(self, "top_k", self.top_k >= 0, "0 (all) or more")
        require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
