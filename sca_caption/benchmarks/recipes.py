"""What training by captioners' recipes takes: images per second, waiting for data, the time of an epoch, and memory.

A few steps of each recipe's first epoch that `train.py` would make, on random images of the data files. Each recipe
continues the architecture of the one before it, as the stages of the pretrained model do, but no weights, on which times
do not depend. The CNN alone is the least that a step must do: the CNN once per image, forward, and backward through the
layers that learn. Where a recipe keeps a frozen CNN's maps in memory, it runs only once before training, at that rate.
An epoch's time is without validation.

Memory is the peak of a process that trains, without its data-loading processes.
"""

import dataclasses
import itertools
import multiprocessing
import statistics
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from sca_caption import checkpoint
from sca_caption.benchmarks.memory import check_measurable, peak, reset_peak
from sca_caption.benchmarks.training import calibrated_weights
from sca_caption.cli.flags import make
from sca_caption.cli.parser import Parser, program
from sca_caption.config import ModelConfig, TrainConfig, require
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.models.backbone import attended_layers
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.recipes import load_recipe
from sca_caption.training.batches import Batch, CaptionedImages
from sca_caption.training.caption_task import CaptionTask, initialise_from
from sca_caption.training.ema import EMA
from sca_caption.training.feature_cache import FeatureCache
from sca_caption.training.loop import train_epoch
from sca_caption.training.optim import make_optimizer

WARM_UP = 2  # steps that do not count, in which data loading starts
CALIBRATION_IMAGES = 32
STAGES = ["everyday", "everyday-finetune", "everyday-attention"]
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.recipes --data data/everyday.h5 data/flickr8k.h5    # the pretrained model's
  python -m sca_caption.benchmarks.recipes default paper --data data/flickr8k.h5 --steps 5
"""


@dataclasses.dataclass
class Measured:
    """Of one recipe. Rates are images per second."""

    images: int  # of an epoch
    rate: float
    waiting: float  # share of the time that is spent waiting for data
    cnn_rate: float  # of the CNN alone
    cached: bool  # whether the CNN runs before training only
    memory: int  # bytes


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.recipes", description=__doc__, epilog=EPILOG)
    p.add_argument("recipes", nargs="*", default=STAGES, metavar="RECIPE", help="packaged, or .toml files "
                   f"(default: {' '.join(STAGES)})")  # fmt: skip
    p.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE.h5", help="data files")
    p.add_argument(
        "--steps", type=int, default=10, metavar="N", help="timed steps of each (default: %(default)s)"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    require(arguments, "steps", arguments.steps >= 1, "at least 1")
    check_measurable()
    settings: dict[str, Any] = {}
    table = []
    for name in arguments.recipes:
        recipe = load_recipe(name, "caption")
        settings |= recipe
        configs = make(ModelConfig, Namespace(), settings), make(TrainConfig, Namespace(), recipe)
        context = multiprocessing.get_context("spawn")  # a fresh process, for the peak of memory
        with ProcessPoolExecutor(1, context) as pool:
            found = pool.submit(measure, *configs, arguments.data, arguments.steps).result()
        ratio = "" if found.cached else f"{found.rate / found.cnn_rate:.2f}"
        table.append(
            f"| {name} | {found.rate:.1f} | {100 * found.waiting:.1f}% | {found.cnn_rate:.1f} | {ratio} "
            f"| {found.images:,} | {found.images / found.rate / 60:.1f} | {found.memory / 1e9:.1f} GB |"
        )
    print(f"{' + '.join(path.name for path in arguments.data)}, {torch.get_num_threads()} threads\n")
    print("| recipe | images/s | waiting for data | CNN alone, images/s | ratio | images per epoch | minutes per epoch "
          "| memory |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(table))
    return 0


def measure(config: ModelConfig, training: TrainConfig, paths: list[Path], steps: int) -> Measured:
    """Train a captioner for `steps` steps after those of the warm-up."""
    data = Mixture([CaptionDataset(path) for path in paths])
    model = captioner(config, data)
    task = CaptionTask(model, data, dataclasses.replace(training, cache_features=False), quiet=True)
    images = task.images_per_epoch
    count = (WARM_UP + steps) * training.batch_size
    drawn = np.random.default_rng(training.seed).choice(task.rows, count, replace=count > len(task.rows))
    task.rows = drawn.tolist()
    task.steps_per_epoch = WARM_UP + steps
    task.repeats = max(task.rows.count(row) for row in task.rows)
    if training.cache_features:
        known = sorted(set(task.rows))
        began = time.perf_counter()
        cache: Any = FeatureCache(data, model, known, quiet=True)
        cnn_rate = len(known) / (time.perf_counter() - began)
        task.dataset = CaptionedImages(cache, training, training.augment, model.word_predictor is not None)

    reset_peak()
    waits, times, batches = timed_steps(task, training)
    memory = peak()
    if not training.cache_features:
        cnn_rate = training.batch_size / statistics.median(cnn_seconds(model, batch) for batch in batches)
    return Measured(
        images,
        rate=training.batch_size * len(times) / sum(times),
        waiting=sum(waits) / sum(times),
        cnn_rate=cnn_rate,
        cached=training.cache_features,
        memory=memory,
    )


def captioner(config: ModelConfig, data: Mixture) -> SCACNN:
    """A captioner for the data files' words and styles, as if ImageNet weights had been loaded.

    The CNN of the packaged model starts from its weights, others from random weights whose batch norms have the
    statistics of some of the images.
    """
    torch.manual_seed(0)
    config = dataclasses.replace(
        config, layers=attended_layers(config.backbone, config.layers), styles=data.styles
    )
    packaged = checkpoint.load()
    if config.backbone == packaged.config.backbone:
        model = SCACNN(config, len(data.vocabulary))
        initialise_from(model, packaged, data.vocabulary.words)
        return model
    some = np.stack([data.image(row) for row in data.indices("train")[:CALIBRATION_IMAGES]])
    weights = calibrated_weights(config.backbone, torch.from_numpy(some).permute(0, 3, 1, 2))
    return SCACNN(config, len(data.vocabulary), weights)


def timed_steps(task: CaptionTask, training: TrainConfig) -> tuple[list[float], list[float], deque[Batch]]:
    """Train for an epoch of `task`.

    Returns seconds of waiting and seconds in all of the steps after the warm-up, and the last batches.
    """
    waits, ends = [], [time.perf_counter()]
    batches: deque[Batch] = deque(maxlen=5)
    whole = task.batches

    def noted(epoch: int) -> Iterator:
        given = iter(whole(epoch))
        while True:
            began = time.perf_counter()
            try:
                batch = next(given)
            except StopIteration:
                return
            waits.append(time.perf_counter() - began)
            batches.append(batch[2])
            yield batch
            ends.append(time.perf_counter())

    ema = EMA(task.model, training.ema) if training.ema else None
    with patch.object(task, "batches", noted):
        train_epoch(task, training, 0, make_optimizer(task.parameter_groups(), training), ema, quiet=True)
    times = [end - start for start, end in itertools.pairwise(ends)]
    return waits[WARM_UP:], times[WARM_UP:], batches


def cnn_seconds(model: SCACNN, batch: Batch) -> float:
    """Seconds of the CNN once per image of the batch: forward, and backward through what learns."""
    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    maps = model.encode(batch.images)
    for layer in range(len(model.backbone.layers) - 1):
        maps = model.backbone.segment(layer, maps[0], maps[1:])
    if maps[0].requires_grad:
        maps[0].mean().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
