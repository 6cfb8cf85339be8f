"""The training loop of captioners and classifiers, which differ in their `Task`.

On a CPU a resumed run repeats the uninterrupted one bit for bit: everything random is seeded from (seed, epoch, image),
and `last.pt` holds the optimizer's state.

Under torchrun each process trains on its share of every batch. Gradients are averaged over processes and equal those of
one process on the whole batch, up to dropout, mixup and sampled captions, which are seeded per process.

Training needs neither spaCy, nltk, pycocoevalcap nor Java.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import RunConfig
from sca_caption.runtime import devices
from sca_caption.runtime.atomic_files import locked
from sca_caption.runtime.distributed import Processes
from sca_caption.runtime.errors import INVALID, UserError, warn
from sca_caption.training.ema import EMA
from sca_caption.training.optim import make_optimizer, optimizer_tensors, rate_factor, restore_optimizer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CURVE_POINTS = 500  # points at which progress.svg draws the learning rate
RENAMED = {"images_a_second": "images_per_second"}  # keys of the history in runs of earlier versions


class Task(Protocol):
    """A training task: a model on its device, its data, its loss and its validation score."""

    processes: Processes  # that share the training
    loss_name: str  # of the number that `loss` reports: "loss" or "reward"
    score_name: str  # of the figure of `validate` that chooses best.pt; higher is better
    images_per_epoch: int
    steps_per_epoch: int

    @property
    def model(self) -> nn.Module: ...

    @property
    def validate_before_training(self) -> bool:
        """Whether to score the initial model as epoch 0."""

    def summary(self) -> str:
        """One line about data and model. Raises UserError if there is nothing to train on."""

    def parameter_groups(self) -> list[dict]:
        """Parameter groups for the optimizer. The schedule scales each group's `peak`; the first one's is `config.lr`."""

    def start_epoch(self, epoch: int) -> None:
        """Put the model into training mode and choose which parameters learn in this epoch."""

    def batches(self, epoch: int) -> Iterable:
        """This process's share of each batch of the epoch, in the form that `loss` takes."""

    def loss(self, batch: Any) -> tuple[Tensor, float, int]:
        """The loss to minimise, the value to report as `loss_name`, and the number of items the value is a mean of.

        The mean over processes of the loss to minimise is the loss of the whole batch.
        """

    def validate(self) -> tuple[dict[str, float], list[str]] | None:
        """Validation figures, `score_name` among them, and lines to print; None without validation data."""

    def images(self) -> dict[str, np.ndarray]:
        """Images for TensorBoard that show what the model does now, by name: uint8 (height, width, 3)."""

    def should_stop(self, history: list[dict]) -> str:
        """The reason to stop training because the model has become worse, or "" to continue."""

    def checkpoint(self, metrics: dict) -> Checkpoint:
        """The model with everything that is needed to use it."""

    def provenance(self) -> dict:
        """The data set's name and place, which last.pt stores."""


class TaskLoss(nn.Module):
    """A task's loss as a module, because DistributedDataParallel averages the gradients of a module's forward pass."""

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
    report: Callable[[str], None] = print,
    quiet: bool = False,
    on_epoch: Callable[[list[dict]], None] = lambda history: None,
) -> list[dict]:
    """Train `task.model` and return the history, one dict per epoch.

    Writes last.pt and progress.svg after every epoch, and best.pt whenever the validation score exceeds all earlier
    ones. resume: the loaded last.pt to continue from, whose model must be `task.model`. report: prints a line. quiet: no
    progress bar, which only terminals get. on_epoch: called in the main process with the history whenever last.pt has
    it: after each epoch, and of a resumed run before the next one.

    Raises UserError if the loss becomes infinite or NaN, if a checkpoint cannot be written, if another training writes to
    the folder, or if a batch has fewer images than there are processes.
    """
    processes = task.processes
    if config.batch_size < processes.world_size:
        raise UserError(
            f"--batch-size {config.batch_size}: fewer than the {processes.world_size} processes that share it; give more"
        )
    task.summary()  # raises UserError if there is nothing to train on
    if config.cpu_amp and processes.is_main and next(task.model.parameters()).device.type == "cpu":
        speed = devices.bfloat16_speed()
        if speed < 1:
            warn(
                f"--cpu-amp: this CPU computes in bfloat16 at {speed:.2g} times the speed of float32; leave it out"
            )
    optimizer = make_optimizer(task.parameter_groups(), config)
    ema = EMA(task.model, config.ema) if config.ema else None
    history = restore(resume, optimizer, ema, task.steps_per_epoch) if resume is not None else []
    start_epoch = history[-1]["epoch"] if history else 0
    if processes.mean(start_epoch)[0] != start_epoch:
        raise UserError(
            f"{output} is not one folder: this process finds {start_epoch} epochs there, others do not; share it"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output} ({error.strerror}); choose another --output") from error
    taken = f"another training is writing to {output}; wait until it ends, or choose another --output"
    with locked(output, taken) if processes.is_main else nullcontext():
        run_epochs(task, config, output, history, optimizer, ema, report, quiet, on_epoch)
    return history


def run_epochs(
    task: Task,
    config: RunConfig,
    output: Path,
    history: list[dict],
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    report: Callable[[str], None],
    quiet: bool,
    on_epoch: Callable[[list[dict]], None],
) -> None:
    """The epochs of `train` that `history` does not have; adds their records to it."""
    processes = task.processes
    start_epoch = history[-1]["epoch"] if history else 0
    writer = summary_writer(output) if processes.is_main else None
    parameters = sum(p.numel() for p in task.model.parameters())
    report(f"{task.summary()}, {parameters / 1e6:.2f} M parameters; writing to {output}")
    if history and processes.is_main:
        on_epoch(history)
        draw_progress(history, task, config, output)  # a run that was killed may not have come to it

    if task.validate_before_training and not history:
        figures, _ = task.validate() or ({}, [])
        if figures:
            history.append({"epoch": 0} | figures)
            report(f"before training  val {task.score_name} {figures[task.score_name]:5.1f}")
            if processes.is_main:
                checkpoint.save(output / "best.pt", task.checkpoint({"val": history[0]}))

    for epoch in range(start_epoch, config.epochs):
        reason = task.should_stop(history) or out_of_patience(history, task.score_name, config.patience)
        if reason:
            report(f"stopping: {reason}")
            break

        began = time.perf_counter()
        record = {"epoch": epoch + 1, task.loss_name: train_epoch(task, config, epoch, optimizer, ema, quiet)}
        record["images_per_second"] = task.images_per_epoch / (time.perf_counter() - began)

        with ema.applied(task.model) if ema is not None else nullcontext():
            processes.broadcast_buffers(task.model)
            figures, lines = task.validate() or ({}, [])
            record |= figures
            images = task.images() if writer is not None else {}
            record["seconds"] = time.perf_counter() - began
            record = processes.broadcast(record)  # because the processes' clocks differ
            is_best = improves(record, history, task.score_name)
            history.append(record)
            if is_best and not task.should_stop(history) and processes.is_main:
                checkpoint.save(output / "best.pt", task.checkpoint({"val": record}))
        if processes.is_main:
            save_last(output, task, config, history, optimizer, ema)
            on_epoch(history)
            draw_progress(history, task, config, output)
        processes.barrier()

        rate = optimizer.param_groups[0]["lr"]
        report(log_line(record, task, config, rate))
        for line in lines:
            report(f"    {line}")
        if writer is not None:
            scalars = [task.loss_name, "images_per_second", *figures]
            if not write_summary(writer, record, scalars, rate, lines, images):
                writer = None


def train_epoch(
    task: Task,
    config: RunConfig,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    quiet: bool,
) -> float:
    """One pass over the training images. Returns the mean of what `task.loss` reports.

    Raises UserError if the loss or the gradient becomes infinite or NaN.
    """
    model, processes = task.model, task.processes
    device = next(model.parameters()).device
    mixed_precision = {"cuda": config.amp, "cpu": config.cpu_amp}.get(device.type, False)
    total_steps = task.steps_per_epoch * config.epochs

    torch.manual_seed(hash_seed(config.seed, epoch, processes.rank))  # of dropout and mixup
    task.start_epoch(epoch)
    # Made in every epoch, because the parameters that learn may have changed.
    task_loss = processes.data_parallel(TaskLoss(task))

    total = count = 0.0
    bar = tqdm(
        task.batches(epoch),
        f"epoch {epoch + 1}/{config.epochs}",
        task.steps_per_epoch,
        disable=quiet or None,
        leave=False,
    )
    for step, batch in enumerate(bar, epoch * task.steps_per_epoch):
        factor = rate_factor(step, total_steps, config)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            loss, reported, items = task_loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
        check_finite(loss, norm, epoch, config)
        optimizer.step()
        if ema is not None:
            ema.update(model)

        total, count = total + reported * items, count + items
        bar.set_postfix({task.loss_name: f"{total / max(count, 1):.3f}"})
    total, count = processes.mean(total, count)
    return total / count


def check_finite(loss: Tensor, norm: Tensor, epoch: int, config: RunConfig) -> None:
    """Raise UserError if the loss or the gradient's norm is infinite or NaN."""
    for name, value in (("loss", loss.item()), ("gradient", norm.item())):
        if not math.isfinite(value):
            raise UserError(f"the {name} became {value} in epoch {epoch + 1}; lower --lr (now {config.lr:g})")


# ---- when to stop and what to keep -----------------------------------------------------------------------------------


def improves(record: dict, history: list[dict], score_name: str) -> bool:
    """Whether the record's score exceeds all scores of the history; always True without validation.

    A tie is no improvement: the earlier epoch has the same score with less training.
    """
    earlier = [each[score_name] for each in history if score_name in each]
    return score_name not in record or all(record[score_name] > score for score in earlier)


def out_of_patience(history: list[dict], score_name: str, patience: int) -> str:
    """The reason to stop if the best score is `patience` epochs old, or "" to continue. A tie is no improvement."""
    scores = [record[score_name] for record in history if score_name in record]
    if patience and scores and len(scores) - 1 - scores.index(max(scores)) >= patience:
        return f"no better {score_name} in {patience} epochs"
    return ""


# ---- the state of a run ----------------------------------------------------------------------------------------------


def save_last(
    output: Path,
    task: Task,
    config: RunConfig,
    history: list[dict],
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
) -> None:
    """Write last.pt: the model, and everything that `restore` needs to continue the run."""
    snapshot = task.checkpoint({"val": history[-1]})
    snapshot.training = {"config": dataclasses.asdict(config), "history": history, **task.provenance()}
    snapshot.extra = optimizer_tensors(optimizer) | (ema.tensors() if ema is not None else {})
    checkpoint.save(output / "last.pt", snapshot)


def restore(
    resume: Checkpoint, optimizer: torch.optim.Optimizer, ema: EMA | None, steps_per_epoch: int
) -> list[dict]:
    """Load the state of last.pt into the optimizer and the moving average. Returns the run's history.

    Raises UserError if the state is not one of this run.
    """
    try:
        history = [
            {RENAMED.get(name, name): value for name, value in record.items()}
            for record in resume.training["history"]
        ]
        restore_optimizer(optimizer, resume.extra)
        if ema is not None:
            ema.restore(resume.extra, history[-1]["epoch"] * steps_per_epoch)
        if not history or not all(isinstance(record["epoch"], int) for record in history):
            raise ValueError("no history of epochs")
        return history
    except INVALID as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"last.pt does not have the state of this run ({reason}); start a new run") from error


def hash_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for the random numbers that process `rank` draws in an epoch."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


# ---- reports ---------------------------------------------------------------------------------------------------------


def log_line(record: dict, task: Task, config: RunConfig, rate: float) -> str:
    score = f"val {task.score_name} {record[task.score_name]:5.1f}  " if task.score_name in record else ""
    minutes, seconds = divmod(round(record["seconds"]), 60)
    return (
        f"epoch {record['epoch']:2}/{config.epochs}  {task.loss_name} {record[task.loss_name]:.3f}  {score}"
        f"lr {rate:.1e}  {record['images_per_second']:.0f} images/s  {minutes}:{seconds:02}"
    )


def draw_progress(history: list[dict], task: Task, config: RunConfig, output: Path) -> None:
    """Write progress.svg into the run's folder. If it cannot be written, the run goes on with a warning."""
    from sca_caption.training.plots import save_progress

    total = task.steps_per_epoch * config.epochs
    steps = [*range(0, total, max(1, total // CURVE_POINTS)), total]
    rates = [(step / task.steps_per_epoch, config.lr * rate_factor(step, total, config)) for step in steps]
    title = f"{output}: epoch {history[-1]['epoch']} of {config.epochs}"
    try:
        save_progress(output / "progress.svg", history, task.loss_name, task.score_name, rates, title)
    except UserError as error:
        warn(error)


def summary_writer(output: Path) -> "SummaryWriter | None":
    """A TensorBoard writer, or None if the package is not installed or, with a warning, if it cannot write."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    try:
        return SummaryWriter(str(output))
    except OSError as error:
        warn_of_tensorboard(error)
        return None


def warn_of_tensorboard(error: OSError) -> None:
    warn(f"TensorBoard's files cannot be written ({error.strerror or error}); training goes on without them")


def write_summary(
    writer: "SummaryWriter",
    record: dict[str, Any],
    scalars: list[str],
    rate: float,
    lines: list[str],
    images: dict[str, np.ndarray],
) -> bool:
    """Write an epoch to TensorBoard: the record's `scalars`, the learning rate, printed lines and images.

    Returns False, with a warning, if that fails, as on a full disk.
    """
    epoch = record["epoch"]
    try:
        for name in scalars:
            writer.add_scalar(name, record[name], epoch)
        writer.add_scalar("lr", rate, epoch)
        if lines:
            writer.add_text("captions", "\n".join(f"- {line}" for line in lines), epoch)
        for name, image in images.items():
            writer.add_image(name, image, epoch, dataformats="HWC")
        writer.flush()
    except OSError as error:
        warn_of_tensorboard(error)
        return False
    return True
