"""One training loop: every image of an epoch decoded and encoded once for all of its captions.

Needs neither spaCy, nltk, pycocoevalcap nor Java. On a CPU a resumed run repeats the uninterrupted one bit for bit:
everything random is seeded from (seed, epoch, image), and the optimizer's state is in `last.pt`.
"""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sca_caption import checkpoint, decode
from sca_caption.captioner import Batch, Captioner, collate
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import TrainConfig
from sca_caption.errors import UserError
from sca_caption.images import augment
from sca_caption.metrics import Cider, ptb_tokenize
from sca_caption.self_critical import SelfCritical
from sca_caption.store import CaptionData

SIDES = ("left", "right")  # a mirrored image would make words false that begin so, as left-hand and rightmost
SAMPLES = 3  # captions of the validation set shown each epoch
LONGEST = 40  # words of a caption that are trained on; a handful of captions are longer


class CaptionedImages(Dataset):
    """(image, all of its captions) by (epoch, image index), so that augmentation depends on nothing else."""

    def __init__(self, data: CaptionData, seed: int, augment: bool):
        self.data, self.seed, self.augment = data, seed, augment
        words = data.vocabulary.words
        self.side_ids = {
            i for i, word in enumerate(words) if any(part.startswith(SIDES) for part in word.split("-"))
        }

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | tuple[Tensor, ...], list[list[int]]]:
        epoch, index = key
        captions = [caption[:LONGEST] for caption in self.data.captions(index)]
        if self.data.encoding == "features":
            return tuple(torch.from_numpy(x) for x in self.data.features(index)), captions
        pixels = self.data.image(index)
        if self.augment:
            sided = any(not self.side_ids.isdisjoint(caption) for caption in captions)
            rng = random.Random(f"{self.seed} {epoch} {index}")
            pixels = augment(pixels, self.data.transform, rng, flip=not sided)
        return torch.from_numpy(pixels).permute(2, 0, 1), captions


def train(
    model: Captioner,
    data: CaptionData,
    config: TrainConfig,
    output: Path,
    device: torch.device,
    resume: Checkpoint | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Train `model` (which is on `device`) on `data`, writing last.pt every epoch and best.pt when CIDEr improves.

    resume: the loaded last.pt to go on from; `model` is then its model. Returns the history: one dict an epoch.
    Raises UserError when the loss stops being a number or a checkpoint cannot be written.
    """
    train_indices, val_indices = data.indices("train"), data.indices("val")
    if not len(train_indices):
        raise UserError(f"{data.path} has no training images; preprocess a data set that has some")
    model.backbone.set_trainable(False, config.finetune_from)  # so that a wrong name is said before any work
    optimizer = make_optimizer(model, config)
    start_epoch, history = 0, []
    if resume is not None:
        history = resume.training["history"]
        start_epoch = len(history)
        restore_optimizer(optimizer, resume.extra)
    dataset = CaptionedImages(data, config.seed, config.augment)
    steps_an_epoch = math.ceil(len(train_indices) / config.batch_size)
    total_steps = steps_an_epoch * config.epochs
    critic, measured = None, "loss"
    if config.objective == "cider":
        critic, measured = SelfCritical(data, train_indices.tolist(), config.samples), "reward"
    validation = Validation(data, val_indices) if len(val_indices) else None
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}); choose another --output") from error
    writer = summary_writer(output)
    say(
        f"{len(train_indices)} training and {len(val_indices)} validation images, {len(data.vocabulary)} words, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; writing to {output}"
    )

    for epoch in range(start_epoch, config.epochs):
        if stopped_early(history, config.patience):
            say(f"stopping: no better CIDEr in {config.patience} epochs")
            break
        began = time.perf_counter()
        torch.manual_seed(hash_seed(config.seed, epoch))  # dropout
        finetune = 0 <= config.finetune_backbone_at <= epoch
        model.train()
        model.backbone.set_trainable(finetune, config.finetune_from)
        order = np.random.default_rng([config.seed, epoch]).permutation(train_indices)
        batches = loader(dataset, [(epoch, int(i)) for i in order], config)
        total = words = 0.0
        progress = tqdm(batches, desc=f"epoch {epoch + 1}/{config.epochs}", disable=None, leave=False)
        for i, batch in enumerate(progress):
            factor = rate_factor(epoch * steps_an_epoch + i, total_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                if critic is None:
                    loss = model.loss(batch, config.label_smoothing, config.doubly_stochastic)
                    shown = loss.item()
                else:
                    rows = order[i * config.batch_size : (i + 1) * config.batch_size].tolist()
                    loss, shown = critic.loss(model, batch, rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
            optimizer.step()
            count = int((batch.captions != 0).sum())
            total, words = total + shown * count, words + count
            if not math.isfinite(loss.item()):
                raise UserError(
                    f"the loss became {loss.item()} in epoch {epoch + 1}; lower --lr (now {config.lr:g})"
                )
            progress.set_postfix({measured: f"{total / words:.3f}"})

        record = {
            "epoch": epoch + 1,
            measured: total / words,
            "images_a_second": len(train_indices) / (time.perf_counter() - began),
        }
        samples = []
        if validation is not None:
            record["CIDEr"], samples = validation(model, config, device)
        record["seconds"] = time.perf_counter() - began
        history.append(record)
        snapshot = Checkpoint(model, data.vocabulary, data.transform, metrics={"val": record})
        if validation is None or record["CIDEr"] >= max(r["CIDEr"] for r in history):
            checkpoint.save(output / "best.pt", snapshot)
        snapshot.training = {
            "config": dataclasses.asdict(config),
            "history": history,
            "data": str(data.path),
        }
        snapshot.extra = optimizer_tensors(optimizer)
        checkpoint.save(output / "last.pt", snapshot)
        say(log_line(record, measured, config, factor))
        for name, caption in samples:
            say(f"    {name}: {caption}")
        if writer is not None:
            for name in (measured, "CIDEr", "images_a_second"):
                if name in record:
                    writer.add_scalar(name, record[name], epoch + 1)
            writer.add_scalar("lr", config.lr * factor, epoch + 1)
            writer.add_text("captions", "\n".join(f"- {n}: {c}" for n, c in samples), epoch + 1)
            writer.flush()
    return history


class Validation:
    """CIDEr of free-running captions against the raw references: what a user would see, not teacher forcing."""

    def __init__(self, data: CaptionData, indices: np.ndarray):
        self.data, self.indices = data, [int(i) for i in indices]
        self.cider = Cider([[ptb_tokenize(text) for text in data.references(i)] for i in self.indices])

    @torch.inference_mode()
    def __call__(self, model: Captioner, config: TrainConfig, device: torch.device) -> tuple[float, list]:
        """(CIDEr in the 0-100 form, a few (file name, caption) to look at)."""
        model.eval()
        dataset = CaptionedImages(self.data, config.seed, augment=False)
        captions = []
        for batch in loader(dataset, [(0, i) for i in self.indices], config):
            state = model.start(model.encode(batch.to(device).images))
            if config.validation_beam == 1:
                found = decode.greedy(model, state)
            else:
                found = [
                    best for best, *_ in decode.beam_search(model, state, beam_size=config.validation_beam)
                ]
            captions += [self.data.vocabulary.decode(hypothesis.tokens) for hypothesis in found]
        score, _ = self.cider.score([ptb_tokenize(caption) for caption in captions])
        shown = range(0, len(captions), max(1, len(captions) // SAMPLES))[:SAMPLES]
        return score, [(self.data.file_name(self.indices[i]), captions[i]) for i in shown]


def loader(dataset: Dataset, keys: list[tuple[int, int]], config: TrainConfig) -> Iterator[Batch]:
    """Batches of the dataset's examples in the order of `keys`."""
    return DataLoader(
        dataset, batch_size=config.batch_size, sampler=keys, num_workers=config.workers, collate_fn=collate
    )


def make_optimizer(model: Captioner, config: TrainConfig) -> torch.optim.Optimizer:
    """Two groups, the CNN at its own rate; `peak` is what the schedule scales."""
    backbone = list(model.backbone.parameters())
    inside = {id(p) for p in backbone}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in inside], "peak": config.lr},
        {"params": backbone, "peak": config.backbone_lr},
    ]
    if config.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """Share of the peak rate at `step`: a linear rise, then a half cosine to 0. Adadelta keeps its rate."""
    if config.optimizer == "adadelta":
        return 1.0
    warmup = config.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: "<parameter number>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def initialise_from(model: Captioner, other: Checkpoint, words: tuple[str, ...]) -> list[str]:
    """Copy every tensor of `other` whose name and shape fit; words' vectors only where the vocabularies agree.

    Returns the names that were left as they are.
    """
    same_words = other.vocabulary.words == words
    own, copied = model.state_dict(), {}
    for name, value in other.model.state_dict().items():
        if name.startswith(("word.", "embedding.")) and not same_words:
            continue
        if name in own and own[name].shape == value.shape:
            copied[name] = value
    model.load_state_dict(copied, strict=False)
    return sorted(set(own) - set(copied))


def stopped_early(history: list[dict], patience: int) -> bool:
    scores = [record.get("CIDEr") for record in history]
    if not patience or not scores or scores[-1] is None:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def hash_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def log_line(record: dict, measured: str, config: TrainConfig, factor: float) -> str:
    cider = f"val CIDEr {record['CIDEr']:5.1f}  " if "CIDEr" in record else ""
    minutes, seconds = divmod(round(record["seconds"]), 60)
    measure = f"{measured} {record[measured]:.3f}"
    return (
        f"epoch {record['epoch']:2}/{config.epochs}  {measure}  {cider}lr {config.lr * factor:.1e}  "
        f"{record['images_a_second']:.0f} images/s  {minutes}:{seconds:02}"
    )


def summary_writer(output: Path):
    """A TensorBoard writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(output))
