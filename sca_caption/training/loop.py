"""One training loop for captioners and classifiers: what differs between them is a `Task`.

Needs neither spaCy, nltk, pycocoevalcap nor Java. On a CPU a resumed run repeats the uninterrupted one bit for bit:
everything random is seeded from (seed, epoch, image), and the optimizer's state is in `last.pt`.

Under torchrun every process trains on its share of each batch, and gradients are averaged over processes: those of one
process on the whole batch, but for what is drawn in the model (dropout, mixup, sampled captions), seeded a process.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import RunConfig
from sca_caption.runtime.distributed import Processes
from sca_caption.runtime.errors import UserError, warn
from sca_caption.training.ema import EMA
from sca_caption.training.optim import make_optimizer, optimizer_tensors, rate_factor, restore_optimizer

POINTS = 500  # at which the curve of learning rates is drawn


class Task(Protocol):
    """What the loop trains: a model (on its device), its data, and how it is scored."""

    model: nn.Module
    processes: Processes  # that train it together
    measured: str  # what `loss` shows: "loss" or "reward"
    score: str  # the figure of `validate`, higher is better, that chooses best.pt
    improves: bool  # on a model that is good already, which is scored, as epoch 0, before it is trained
    images: int  # trained on in an epoch
    steps: int  # in an epoch

    def summary(self) -> str:
        """One line on data and model. Raises UserError where there is nothing to train on."""

    def parameter_groups(self) -> list[dict]:
        """For the optimizer; `peak` of a group is the rate that the schedule scales."""

    def start_epoch(self, epoch: int) -> None:
        """Put the model, and what of it learns, in the state for training."""

    def batches(self, epoch: int) -> Iterable:
        """This process's part of each of the epoch's batches; what they are is between this and `loss`."""

    def loss(self, batch: Any) -> tuple[Tensor, float, int]:
        """What to descend, what to show, and how many words or images that is the mean of.

        The mean over processes of what they descend is the loss of the whole batch.
        """

    def validate(self) -> tuple[dict[str, float], list[str]] | None:
        """Figures, `score` among them, and lines to look at; None without validation data."""

    def pictures(self) -> dict[str, np.ndarray]:
        """Pictures for TensorBoard of what the model does now, uint8 (height, width, 3) by name."""

    def degraded(self, history: list[dict]) -> str:
        """Why the model is so much worse for the last epoch of the history that training should end, or ""."""

    def checkpoint(self, metrics: dict) -> Checkpoint:
        """The model with all it needs to be used."""

    def provenance(self) -> dict:
        """Which data, for last.pt."""


class Step(nn.Module):
    """A task's loss as the forward pass of a module, so that gradients can be averaged over processes."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.model = task, task.model

    def forward(self, batch: Any) -> tuple[Tensor, float, int]:
        return self.task.loss(batch)


def train(
    task: Task,
    config: RunConfig,
    output: Path,
    resume: Checkpoint | None = None,
    say: Callable[[str], None] = print,
    quiet: bool = False,
) -> list[dict]:
    """Train `task.model`, writing last.pt and progress.svg every epoch and best.pt when `task.score` improves.

    resume: the loaded last.pt to go on from; `task.model` is then its model. quiet: without a progress bar, which only
    terminals get. Returns the history: one dict an epoch.

    Raises UserError when the loss stops being a number, a checkpoint cannot be written, or a batch has fewer images than
    there are processes.
    """
    model, processes, score = task.model, task.processes, task.score
    if config.batch_size < processes.size:
        raise UserError(
            f"--batch-size {config.batch_size}: fewer than the {processes.size} processes that share it; give more"
        )
    summary = task.summary()
    device = next(model.parameters()).device
    optimizer = make_optimizer(task.parameter_groups(), config)
    average = EMA(model, config.ema) if config.ema else None
    start_epoch, history = 0, []
    if resume is not None:
        history = resume.training["history"]
        start_epoch = history[-1]["epoch"]
        restore_optimizer(optimizer, resume.extra)
        if average is not None:
            average.restore(resume.extra, start_epoch * task.steps)
    if processes.mean(start_epoch)[0] != start_epoch:
        raise UserError(
            f"{output} is not one folder: this process finds {start_epoch} epochs there, others do not; share it"
        )
    total_steps = task.steps * config.epochs
    half = {"cuda": config.amp, "cpu": config.cpu_amp}.get(device.type, False)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}); choose another --output") from error
    writer = summary_writer(output) if processes.first else None
    say(
        f"{summary}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; writing to {output}"
    )

    if task.improves and not history:
        figures, _ = task.validate() or ({}, [])
        if figures:
            history.append({"epoch": 0} | figures)
            say(f"before training  val {score} {figures[score]:5.1f}")
            if processes.first:
                checkpoint.save(output / "best.pt", task.checkpoint({"val": history[0]}))

    for epoch in range(start_epoch, config.epochs):
        reason = task.degraded(history)
        if not reason and stopped_early(history, score, config.patience):
            reason = f"no better {score} in {config.patience} epochs"
        if reason:
            say(f"stopping: {reason}")
            break
        began = time.perf_counter()
        torch.manual_seed(hash_seed(config.seed, epoch, processes.rank))  # dropout, mixup
        task.start_epoch(epoch)
        step = processes.parallel(Step(task))  # anew: other parameters may learn than in the epoch before
        total = weight = 0.0
        name = f"epoch {epoch + 1}/{config.epochs}"
        progress = tqdm(task.batches(epoch), name, task.steps, disable=quiet or None, leave=False)
        for i, batch in enumerate(progress):
            factor = rate_factor(epoch * task.steps + i, total_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss, shown, count = step(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
            for name, value in (("loss", loss.item()), ("gradient", norm.item())):
                if not math.isfinite(value):
                    raise UserError(
                        f"the {name} became {value} in epoch {epoch + 1}; lower --lr (now {config.lr:g})"
                    )
            optimizer.step()
            if average is not None:
                average.update(model)
            total, weight = total + shown * count, weight + count
            progress.set_postfix({task.measured: f"{total / max(weight, 1):.3f}"})

        total, weight = processes.mean(total, weight)
        record = {
            "epoch": epoch + 1,
            task.measured: total / weight,
            "images_a_second": task.images / (time.perf_counter() - began),
        }
        with average.applied(model) if average is not None else nullcontext():
            processes.align(model)
            figures, samples = task.validate() or ({}, [])
            record |= figures
            pictures = task.pictures() if writer is not None else {}
            record["seconds"] = time.perf_counter() - began
            record = processes.broadcast(record)  # clocks differ
            history.append(record)
            best = not figures or record[score] >= max(r[score] for r in history)
            best = best and not task.degraded(history)
            if best and processes.first:
                checkpoint.save(output / "best.pt", task.checkpoint({"val": record}))
        if processes.first:
            snapshot = task.checkpoint({"val": record})
            snapshot.training = {
                "config": dataclasses.asdict(config),
                "history": history,
                **task.provenance(),
            }
            snapshot.extra = optimizer_tensors(optimizer) | (average.tensors() if average is not None else {})
            checkpoint.save(output / "last.pt", snapshot)
            draw_progress(history, task, config, output)
        processes.wait()
        say(log_line(record, task, config, factor))
        for line in samples:
            say(f"    {line}")
        if writer is not None:
            for name in (task.measured, "images_a_second", *figures):
                writer.add_scalar(name, record[name], epoch + 1)
            writer.add_scalar("lr", config.lr * factor, epoch + 1)
            if samples:
                writer.add_text("captions", "\n".join(f"- {line}" for line in samples), epoch + 1)
            for name, picture in pictures.items():
                writer.add_image(name, picture, epoch + 1, dataformats="HWC")
            writer.flush()
    return history


def stopped_early(history: list[dict], score: str, patience: int) -> bool:
    scores = [record.get(score) for record in history]
    if not patience or not scores or scores[-1] is None:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def hash_seed(seed: int, epoch: int, rank: int = 0) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


def log_line(record: dict, task: Task, config: RunConfig, factor: float) -> str:
    score = f"val {task.score} {record[task.score]:5.1f}  " if task.score in record else ""
    minutes, seconds = divmod(round(record["seconds"]), 60)
    measure = f"{task.measured} {record[task.measured]:.3f}"
    return (
        f"epoch {record['epoch']:2}/{config.epochs}  {measure}  {score}lr {config.lr * factor:.1e}  "
        f"{record['images_a_second']:.0f} images/s  {minutes}:{seconds:02}"
    )


def draw_progress(history: list[dict], task: Task, config: RunConfig, output: Path) -> None:
    """Write progress.svg in the run's folder. That a picture cannot be written does not end a run."""
    from sca_caption.training.plots import save_progress

    total = task.steps * config.epochs
    drawn = [*range(0, total, max(1, total // POINTS)), total]
    rates = [(step / task.steps, config.lr * rate_factor(step, total, config)) for step in drawn]
    title = f"{output}: epoch {history[-1]['epoch']} of {config.epochs}"
    try:
        save_progress(output / "progress.svg", history, task.measured, task.score, rates, title)
    except UserError as error:
        warn(error)


def summary_writer(output: Path):
    """A TensorBoard writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(output))
