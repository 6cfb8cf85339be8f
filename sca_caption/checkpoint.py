"""Checkpoints: weights, config, vocabulary or classes, image transform, metrics and guides in one safetensors file.

The format holds tensors and text, never code, so loading a stranger's file executes nothing. Files are memory-mapped.
`best.pt` and `last.pt` of a training run and the model that ships have this format. The text is JSON:

    format_version, task ("caption" if missing), config, words (of a captioner), transform, metrics,
    training (in last.pt alone: what resuming needs),
    guides (of a captioner: the settings of each trained guide by name, see `guidance.guide`)

Tensors are named model.*, extra.* (the optimizer's) and guides.NAME.*. Versions 1 and 2 (with int8 weights) had the
guides under names of their own; they load as before. Guides that this version no longer has are left out.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sca_caption import config as configs
from sca_caption.config import ClassifierConfig, ModelConfig
from sca_caption.guidance import GUIDES, removed_guides, require_known_guides, warn_of_removed
from sca_caption.guidance.guide import TrainedGuide
from sca_caption.images import Transform
from sca_caption.models import quantization
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.errors import INVALID, UserError
from sca_caption.runtime.json_text import parse_json
from sca_caption.runtime.programs import program_name
from sca_caption.vocab import SPECIALS, Vocabulary

if TYPE_CHECKING:
    from sca_caption.models.classifier import Classifier

FORMAT_VERSION = 3
READ_VERSIONS = (1, 2, 3)
SHIPPED = Path(__file__).with_name("weights") / "captioner.safetensors"
_MODEL, _EXTRA, _GUIDES = "model.", "extra.", "guides."
_OTHER_TASK = {
    "caption": "is a classifier, not a captioner; use it with python -m sca_caption classify, or --task classify",
    "classify": f"is a captioner, not a classifier; use it with {program_name('caption.py')}, or without --task classify",
}


@dataclass
class Checkpoint:
    """A model with everything that is needed to use it.

    Attributes:
        vocabulary: of a captioner; None for a classifier, whose config holds its classes.
        metrics: validation figures.
        training: JSON-able; what a resumed run needs, with `extra`, the optimizer's tensors.
        guides: trained guides of a captioner by name.
    """

    model: "SCACNN | Classifier"
    vocabulary: Vocabulary | None
    transform: Transform
    metrics: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    guides: dict[str, TrainedGuide] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig | ClassifierConfig:
        return self.model.config

    @property
    def task(self) -> str:
        return "caption" if isinstance(self.model, SCACNN) else "classify"

    @property
    def captioner(self) -> SCACNN:
        """The model of a checkpoint whose task is "caption"."""
        assert isinstance(self.model, SCACNN)
        return self.model

    @property
    def classifier(self) -> "Classifier":
        """The model of a checkpoint whose task is "classify"."""
        assert not isinstance(self.model, SCACNN)
        return self.model


def save(path: str | Path, checkpoint: Checkpoint, dtype: str = "float32") -> None:
    """Write atomically: a reader sees the old file or the new one. dtype: of weights, one of `quantization.DTYPES`.

    Raises UserError if the file cannot be written (full disk, no permission).
    """
    weights = checkpoint.model.state_dict()
    if getattr(checkpoint.config, "tie_embeddings", False):
        del weights["word.weight"]  # the same tensor as embedding.weight
    tensors = quantization.quantize({_MODEL + name: value for name, value in weights.items()}, dtype)
    for name, guide in checkpoint.guides.items():
        tensors |= _stored_guide(name, guide, dtype)
    tensors |= {_EXTRA + name: value for name, value in checkpoint.extra.items()}
    text = {
        "format_version": FORMAT_VERSION,
        "task": checkpoint.task,
        "config": dataclasses.asdict(checkpoint.config),
        "words": list(checkpoint.vocabulary.words[len(SPECIALS) :]) if checkpoint.vocabulary else None,
        "transform": checkpoint.transform.to_dict(),
        "metrics": checkpoint.metrics,
        "training": checkpoint.training,
        "guides": {name: guide.settings() for name, guide in checkpoint.guides.items()},
    }
    metadata = {"sca_caption": json.dumps(text, ensure_ascii=False)}
    with atomic_write(path, make_folder=True) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as for other new files; safetensors lets only the owner read
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        temporary.chmod(mode)


def _stored_guide(name: str, guide: TrainedGuide, dtype: str) -> dict[str, Tensor]:
    tensors = {f"{_GUIDES}{name}.{key}": value for key, value in guide.state_dict().items()}
    return quantization.quantize(tensors, dtype)


def load(path: str | Path | None = None, task: str = "caption") -> Checkpoint:
    """Read a checkpoint; None means the captioner that ships. The model is in evaluation mode.

    task: "caption" or "classify". Raises UserError for a missing file, one that is no checkpoint or was cut short, one of
    another format version, and one of the other task. Warns of guides that are left out (see `guidance.removed_guides`).
    """
    path = Path(path) if path is not None else SHIPPED
    text, stored = _read(path)
    warn_of_removed(path, _drop_unusable_guides(path, text, stored))
    return _checked(path, text, stored, task)


def _drop_unusable_guides(path: Path, text: dict, tensors: dict[str, Tensor]) -> set[str]:
    """Delete guides that this version no longer has from what `_read` returned, and return their names.

    Raises UserError for guides that no version had.
    """
    require_known_guides(path, text["guides"])
    removed = removed_guides(text["guides"])
    for name in removed:
        del text["guides"][name]
    prefixes = tuple(f"{start}{_GUIDES}{name}." for name in removed for start in ("", quantization.SCALE))
    for key in [key for key in tensors if key.startswith(prefixes)]:
        del tensors[key]
    return removed


def _checked(path: Path, text: dict, stored: dict[str, Tensor], task: str) -> Checkpoint:
    """The checkpoint of what `_read` returned. Raises UserError as `load` does."""
    if text.get("task", "caption") != task:
        raise UserError(f"{path} {_OTHER_TASK[task]}")
    try:
        return _restore(text, stored, task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except INVALID as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: its weights do not fit its own config ({first}); copy or train it again"
        ) from error


def _restore(text: dict, stored: dict[str, Tensor], task: str) -> Checkpoint:
    """The checkpoint of a file's text and tensors. Raises INVALID errors and UserError where they do not fit."""
    tensors = quantization.dequantize(stored)
    weights = _with_prefix(tensors, _MODEL)
    vocabulary: Vocabulary | None = None
    model: Any
    if task == "caption":
        vocabulary = Vocabulary(text["words"])
        config = configs.from_dict(ModelConfig, text["config"])
        _check_sizes(config, len(vocabulary), weights)
        model = SCACNN(config, len(vocabulary))
    else:
        from sca_caption.models.classifier import Classifier

        classifier = configs.from_dict(ClassifierConfig, text["config"])
        if all(len(value.shape) == 0 or len(value) != len(classifier.classes) for value in weights.values()):
            raise ValueError(f"no weights for {len(classifier.classes)} classes")
        model = Classifier(classifier)
    if getattr(model.config, "tie_embeddings", False):
        weights["word.weight"] = weights["embedding.weight"]
    model.load_state_dict(weights)
    guides = {
        name: GUIDES[name].trained_type.restore(
            settings, _with_prefix(tensors, f"{_GUIDES}{name}."), len(vocabulary) if vocabulary else 0
        )
        for name, settings in text["guides"].items()
    }
    return Checkpoint(
        model.eval(),
        vocabulary,
        Transform.from_dict(text["transform"]),
        text["metrics"],
        text["training"],
        _with_prefix(tensors, _EXTRA),
        guides,
    )


def _check_sizes(config: ModelConfig, words: int, weights: dict[str, Tensor]) -> None:
    """Raise ValueError if the sizes of a captioner's config are not those of its weights.

    Before the model is built, because a config alone may ask for any amount of memory.
    """
    d, E = config.lstm_size, config.embedding_size
    expected: dict[str, tuple[int, ...]] = {
        "embedding.weight": (words, E),
        "hidden_to_word.weight": (E, d),
        "lstm.weight_hh": (4 * d, d),
    }
    if config.styles:
        expected["style.weight"] = (len(config.styles), E)
    if config.word_rank:
        expected["word_predictor.up.weight"] = (words, config.word_rank)
    for name in weights:
        if name.startswith("attention.") and name.endswith(".score"):
            expected[name] = (config.attention_width,)
    if not any(name.startswith("attention.") for name in expected):
        raise ValueError("no weights of attention")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name} is {list(weights[name].shape)}, the config says {list(shape)}")
    network = [value for name, value in weights.items() if name.startswith("backbone.")]
    if config.neck and all(value.shape[:1] != (config.neck,) for value in network):
        raise ValueError(f"no weights of a neck of {config.neck} channels")


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The text and the stored tensors of a checkpoint, in the names of this version. Raises UserError as `load` does."""
    if path == SHIPPED and not path.is_file():
        raise UserError(
            f"the model that ships is missing ({path}); install sca_caption again, or give --checkpoint"
        )
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(
            f"cannot load checkpoint {path}: {found}; {program_name('train.py')} writes best.pt and last.pt in "
            "its --output"
        )
    if not os.access(path, os.R_OK):  # which safetensors calls a missing file
        raise UserError(f"no permission to read {path}; change it, or give another checkpoint")
    try:
        with safe_open(path, "pt") as file:
            text = parse_json((file.metadata() or {}).get("sca_caption", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, *INVALID) as error:
        raise UserError(
            f"{path} is not a checkpoint of sca_caption, or it is damaged or cut short ({error}); copy or train it again"
        ) from error
    if not isinstance(text, dict):
        raise UserError(
            f"{path} is a safetensors file but not a checkpoint of sca_caption; give one that "
            f"{program_name('train.py')} wrote"
        )
    if text.get("format_version") not in READ_VERSIONS:
        raise UserError(
            f"{path} has checkpoint format {text.get('format_version')}, this program reads "
            f"{', '.join(map(str, READ_VERSIONS))}; use the version of sca_caption that wrote it, or train again"
        )
    try:
        if text["format_version"] != FORMAT_VERSION:
            text, tensors = _upgrade(text, tensors)
        _check_text(text)
    except INVALID as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not have the fields of a checkpoint ({reason}); copy or train it again"
        ) from error
    return text, tensors


def _check_text(text: dict) -> None:
    """Raise ValueError or KeyError where the text of a checkpoint is not as the module's docstring says."""
    for name in ("config", "transform", "metrics", "training", "guides"):
        if not isinstance(text[name], dict):
            raise ValueError(f"{name} is no object")
    for name, settings in text["guides"].items():
        if not isinstance(settings, dict):
            raise ValueError(f"the settings of guide {name} are no object")
    words = text["words"]
    if words is None and text.get("task", "caption") == "classify":
        return
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words is no list of words")


def _upgrade(text: dict, tensors: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Versions 1 and 2, where each guide had a key of its own and confidence was among the metrics."""
    parts = {"objects": "objects", "consensus": "consensus", "subjects": "presence"}
    guides = {name: text.pop(part) for part, name in parts.items() if text.get(part)}
    renamed = {}
    for key, value in tensors.items():
        scale, plain = ("scale.", key.removeprefix("scale.")) if key.startswith("scale.") else ("", key)
        part, _, rest = plain.partition(".")
        renamed[f"{scale}{_GUIDES}{parts[part]}.{rest}" if part in parts else key] = value
    confidence = {
        name: text["metrics"].pop(f"confidence_{name}", None) for name in ("slope", "intercept", "consensus")
    }
    if confidence["slope"] is not None and confidence["intercept"] is not None:
        rated = confidence.pop("consensus")
        guides["confidence"] = confidence | {"ratings": {"consensus": rated} if rated else {}}
    return text | {"format_version": FORMAT_VERSION, "guides": guides}, renamed


def add_guide(path: Path, name: str, guide: TrainedGuide) -> None:
    """Put a trained guide into a checkpoint's file, or replace it; all other tensors stay as they are stored.

    Guides that this version no longer has are deleted. Raises UserError for what `load` refuses.
    """
    text, tensors = _read(path)
    _drop_unusable_guides(path, text, tensors)
    _checked(path, text, tensors, "caption")
    quantized = any(value.dtype == torch.int8 for value in tensors.values())
    dtype = "int8" if quantized else str(tensors["model.word.bias"].dtype).removeprefix("torch.")
    tensors = {key: value for key, value in tensors.items() if f"{_GUIDES}{name}." not in key}
    text["guides"][name] = guide.settings()
    with atomic_write(path) as temporary:
        metadata = {"sca_caption": json.dumps(text, ensure_ascii=False)}
        save_file(tensors | _stored_guide(name, guide, dtype), temporary, metadata)
        temporary.chmod(path.stat().st_mode)


def training_history(path: str | Path) -> tuple[str, list[dict]]:
    """The task of a checkpoint, "caption" or "classify", and one dict per epoch; its model is not built.

    Raises UserError for a missing file, one that is no checkpoint, and one of another format version.
    """
    text, _ = _read(Path(path))
    return text.get("task", "caption"), text["training"].get("history", [])


def fingerprint(path: str | Path | None = None) -> str:
    """Sixteen hex digits of a hash of a checkpoint's file; None means the captioner that ships."""
    with open(path if path is not None else SHIPPED, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
