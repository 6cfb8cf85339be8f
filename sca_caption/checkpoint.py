"""Checkpoints: weights, config, vocabulary or classes, image transform and metrics in one safetensors file.

The format holds tensors and text, never code, so loading one from a stranger executes nothing. Files are memory-mapped.
`best.pt` and `last.pt` of a training run and the model that ships are all of this kind. The text part is JSON:

    format_version, task ("caption" where it is missing), config, words (a captioner's), transform, metrics,
    training (only in last.pt: where to resume), objects (a captioner's that names what ImageNet's classifier sees),
    consensus (a captioner's that knows what people agree on),
    subjects (a captioner's that knows whether people, dogs and colours are in an image)
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sca_caption import config
from sca_caption.config import ClassifierConfig, ModelConfig
from sca_caption.guidance.consensus import Consensus
from sca_caption.guidance.hallucination import Subjects
from sca_caption.guidance.object_classifier import Objects
from sca_caption.images import Transform
from sca_caption.models import quantization
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.atomic_files import replacing
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS, Vocabulary

if TYPE_CHECKING:
    from sca_caption.models.classifier import Classifier


FORMAT_VERSION = 1
INT8_VERSION = 2  # of files with int8 weights, which programs that know version 1 alone would misread
SHIPPED = Path(__file__).with_name("weights") / "captioner.safetensors"
_MODEL, _EXTRA, _OBJECTS, _CONSENSUS, _SUBJECTS = "model.", "extra.", "objects.", "consensus.", "subjects."
_PARTS = {  # that a captioner may have beside it, and what says of each how it is built
    "objects": ("first", "network"),
    "consensus": ("rank", "channels"),
    "subjects": ("channels", "names"),
}
_OTHER_TASK = {
    "caption": "is a classifier, not a captioner; use it with python -m sca_caption classify, or --task classify",
    "classify": "is a captioner, not a classifier; use it with caption.py, or without --task classify",
}


@dataclass
class Checkpoint:
    """A model with all it needs to be used: `vocabulary`, `transform`, and how well it did (`metrics`)."""

    model: "SCACNN | Classifier"
    vocabulary: Vocabulary | None  # None for a classifier, whose config holds its classes
    transform: Transform
    metrics: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)  # JSON-able; what a resumed run needs beside `extra`
    extra: dict[str, Tensor] = field(default_factory=dict)  # the optimizer's tensors
    objects: Objects | None = None  # what names objects that the captioner has no words for, see `naming`
    consensus: Consensus | None = None  # what ranks its captions by expected agreement
    subjects: Subjects | None = None  # what its captions keep silent about

    @property
    def config(self) -> ModelConfig | ClassifierConfig:
        return self.model.config

    @property
    def task(self) -> str:
        return "caption" if isinstance(self.model, SCACNN) else "classify"


def save(path: str | Path, checkpoint: Checkpoint, dtype: str = "float32") -> None:
    """Write atomically: a reader sees the old file or the new one. dtype: of weights, one of `storage.DTYPES`.

    Raises UserError when the file cannot be written (full disk, no permission).
    """
    weights = checkpoint.model.state_dict()
    if getattr(checkpoint.config, "tie_embeddings", False):
        del weights["word.weight"]  # the same tensor as embedding.weight
    tensors = {_MODEL + k: v for k, v in weights.items()}
    for part in _PARTS:
        tensors |= _tensors_of(part, getattr(checkpoint, part))
    tensors = quantization.stored(tensors, dtype, robust=[_OBJECTS])
    tensors |= {_EXTRA + k: v for k, v in checkpoint.extra.items()}
    text = {
        "format_version": INT8_VERSION if dtype == "int8" else FORMAT_VERSION,
        "task": checkpoint.task,
        "config": dataclasses.asdict(checkpoint.config),
        "words": list(checkpoint.vocabulary.words[len(SPECIALS) :]) if checkpoint.vocabulary else None,
        "transform": checkpoint.transform.to_dict(),
        "metrics": checkpoint.metrics,
        "training": checkpoint.training,
        **{part: _described(part, getattr(checkpoint, part)) for part in _PARTS},
    }
    metadata = {"sca_caption": json.dumps(text, ensure_ascii=False)}
    with replacing(path, make_folder=True) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as any new file's; safetensors lets none but the owner read
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        temporary.chmod(mode)


def load(path: str | Path | None = None, task: str = "caption") -> Checkpoint:
    """Read a checkpoint; None means the captioner that ships. The model is in evaluation mode.

    task: "caption" or "classify". Raises UserError for a missing file, one that is no checkpoint or cut short, one of
    another format version, and one of the other task.
    """
    path = Path(path) if path is not None else SHIPPED
    if path == SHIPPED and not path.is_file():
        raise UserError(
            f"the model that ships is missing ({path}); install sca_caption again, or give --checkpoint"
        )
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(
            f"cannot load checkpoint {path}: {found}; train.py writes best.pt and last.pt in its --output"
        )
    try:
        with safe_open(path, "pt") as file:
            text = json.loads((file.metadata() or {}).get("sca_caption", "null"))
            tensors = quantization.restored({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a checkpoint of sca_caption, or it is damaged or cut short ({error}); copy or train it again"
        ) from error
    if not isinstance(text, dict):
        raise UserError(
            f"{path} is a safetensors file but not a checkpoint of sca_caption; give one that train.py wrote"
        )
    if text.get("format_version") not in (FORMAT_VERSION, INT8_VERSION):
        raise UserError(
            f"{path} has checkpoint format {text.get('format_version')}, this program reads {FORMAT_VERSION} and "
            f"{INT8_VERSION}; "
            f"use the version of sca_caption that wrote it, or train again"
        )
    if text.get("task", "caption") != task:
        raise UserError(f"{path} {_OTHER_TASK[task]}")
    vocabulary = None
    if task == "caption":
        vocabulary = Vocabulary(text["words"])
        model = SCACNN(config.from_dict(ModelConfig, text["config"]), len(vocabulary))
    else:
        from sca_caption.models.classifier import Classifier

        model = Classifier(config.from_dict(ClassifierConfig, text["config"]))
    weights = {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
    try:
        if getattr(model.config, "tie_embeddings", False):
            weights["word.weight"] = weights["embedding.weight"]
        model.load_state_dict(weights)
        objects, consensus, subjects = (
            of(text, tensors) for of in (_objects_of, _consensus_of, _subjects_of)
        )
    except (RuntimeError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: its weights do not fit its own config ({first}); copy or train it again"
        ) from error
    extra = {k.removeprefix(_EXTRA): v for k, v in tensors.items() if k.startswith(_EXTRA)}
    transform = Transform.from_dict(text["transform"])
    return Checkpoint(
        model.eval(),
        vocabulary,
        transform,
        text["metrics"],
        text["training"],
        extra,
        objects,
        consensus,
        subjects,
    )


def _described(part: str, value: Objects | Consensus | Subjects | None) -> dict | None:
    return None if value is None else {name: getattr(value, name) for name in _PARTS[part]}


def _tensors_of(part: str, value: Objects | Consensus | Subjects | None) -> dict[str, Tensor]:
    return {} if value is None else {f"{part}.{name}": tensor for name, tensor in value.state_dict().items()}


def _objects_of(text: dict, tensors: dict[str, Tensor]) -> Objects | None:
    if not text.get("objects"):
        return None
    # Not on torch.device("meta"), which imports all of torch._dynamo.
    objects = Objects(**text["objects"])
    weights = {k.removeprefix(_OBJECTS): v.float() for k, v in tensors.items() if k.startswith(_OBJECTS)}
    objects.load_state_dict(weights, assign=True)
    return objects.requires_grad_(False).to(memory_format=torch.channels_last).eval()


def _consensus_of(text: dict, tensors: dict[str, Tensor]) -> Consensus | None:
    if not text.get("consensus"):
        return None
    weights = {k.removeprefix(_CONSENSUS): v.float() for k, v in tensors.items() if k.startswith(_CONSENSUS)}
    channels = text["consensus"].get("channels") or [
        len(weights["centre"])
    ]  # earlier files say the rank alone
    consensus = Consensus(channels, len(text["words"]) + len(SPECIALS), text["consensus"]["rank"])
    consensus.load_state_dict(weights)
    return consensus.eval()


def _subjects_of(text: dict, tensors: dict[str, Tensor]) -> Subjects | None:
    if not text.get("subjects"):
        return None
    subjects = Subjects(**text["subjects"])
    subjects.load_state_dict(
        {k.removeprefix(_SUBJECTS): v for k, v in tensors.items() if k.startswith(_SUBJECTS)}
    )
    return subjects.eval()


def add_metrics(path: Path, metrics: dict) -> None:
    """Add to the metrics that a checkpoint holds; its tensors stay as they are stored."""
    text, tensors = _as_stored(path)
    text["metrics"] |= metrics
    _store(path, text, tensors)


def add_consensus(path: Path, consensus: Consensus) -> None:
    """Put what ranks captions into a checkpoint; its other tensors stay as they are stored."""
    _add(path, "consensus", consensus)


def add_subjects(path: Path, subjects: Subjects) -> None:
    """Put what captions keep silent about into a checkpoint; its other tensors stay as they are stored."""
    _add(path, "subjects", subjects)


def _add(path: Path, part: str, value: Consensus | Subjects) -> None:
    text, tensors = _as_stored(path)
    dtype = str(tensors["model.word.bias"].dtype).removeprefix("torch.")
    dtype = "int8" if text["format_version"] == INT8_VERSION else dtype
    tensors = {name: tensor for name, tensor in tensors.items() if f"{part}." not in name}
    text[part] = _described(part, value)
    _store(path, text, tensors | quantization.stored(_tensors_of(part, value), dtype))


def _as_stored(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The text and the tensors of a checkpoint's file. Raises UserError for what `load` refuses."""
    load(path)
    with safe_open(path, "pt") as file:
        text = json.loads(file.metadata()["sca_caption"])
        return text, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


def _store(path: Path, text: dict, tensors: dict[str, Tensor]) -> None:
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"sca_caption": json.dumps(text, ensure_ascii=False)})
        temporary.chmod(path.stat().st_mode)


def fingerprint(path: str | Path | None = None) -> str:
    """Sixteen hex digits that tell one checkpoint's file from another; None means the captioner that ships."""
    with open(path if path is not None else SHIPPED, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
