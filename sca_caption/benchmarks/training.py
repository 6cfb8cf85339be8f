"""Time, memory and multiply-adds of a training step of SCA-CNN, compared with a plain implementation.

The plain implementation is the usual one: one example per caption, so that the CNN runs once for each caption of an
image, and attention computed as the paper writes it, with channel scores through a (B, C, k) tensor and the modulated
maps stored for the backward pass. Both train the same model on the same captions.

Multiply-adds count the work that a step must do: the first part of the CNN once per image, and at every word the attended
layers' convolutions and the matrix products of attention, LSTM and vocabulary, forward and backward.

Times are measured in turn in one run. Peak memory is measured in a process of its own for each implementation, above the
memory in use before the step.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sca_caption.attention import sca
from sca_caption.benchmarks.memory import peak_growth
from sca_caption.cli.parser import Parser, program
from sca_caption.config import ModelConfig
from sca_caption.images import MEAN, STD
from sca_caption.models.backbone import attended_layers
from sca_caption.models.networks import build_network
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.recipes import load_recipe
from sca_caption.training.batches import Batch
from sca_caption.training.losses import caption_loss

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.training                      # the paper's ResNet-152, C-S, two layers
  python -m sca_caption.benchmarks.training --backbone resnet18 --images 8
"""
CAPTIONS = 5  # per image, as in Flickr8k, Flickr30k and COCO
WAYS = ("plain", "ours")


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.training", description=__doc__, epilog=EPILOG)
    p.add_argument("--backbone", default="resnet152", metavar="NAME", help="the CNN (default: %(default)s)")
    p.add_argument("--layers", default="2", metavar="N", help="attended layers (default: %(default)s)")
    p.add_argument("--images", type=int, default=16, metavar="N", help="per step (default: %(default)s)")
    p.add_argument("--words", type=int, default=10, metavar="T", help="per caption (default: %(default)s)")
    p.add_argument(
        "--vocabulary", type=int, default=3000, metavar="W", help="vocabulary size (default: %(default)s)"
    )
    p.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="timings of each (default: %(default)s)"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    size = (arguments.backbone, arguments.layers, arguments.images, arguments.words, arguments.vocabulary)
    memory = {way: peak_growth(_prepare, step, way, size) for way in WAYS}
    model, batch = build(*size)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    losses = {}
    for _ in range(arguments.rounds + 1):
        for way in WAYS:
            began = time.perf_counter()
            losses[way] = step(model, batch, way)
            times[way].append(time.perf_counter() - began)
    median = {way: statistics.median(seconds[1:]) for way, seconds in times.items()}  # the first warms up
    work = {way: multiply_adds(model, batch, way) for way in WAYS}
    print(
        f"{arguments.backbone}, {arguments.layers} layers C-S, {arguments.images} images of {CAPTIONS} captions of "
        f"{arguments.words} words, {torch.get_num_threads()} threads\n"
    )
    print("| step | captions/s | ratio | peak memory | ratio | G multiply-adds | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for way in WAYS:
        speedup, memory_ratio, work_ratio = (x["plain"] / x[way] for x in (median, memory, work))
        rate = arguments.images * CAPTIONS / median[way]
        print(
            f"| {way} | {rate:.2f} | {speedup:.1f} | {memory[way] / 1e6:.0f} MB | {memory_ratio:.1f} "
            f"| {work[way] / 1e9:.1f} | {work_ratio:.1f} |"
        )
    print(f"\nlosses: {', '.join(f'{way} {loss:.6f}' for way, loss in losses.items())}")
    share = trunk_share(model, batch, median["ours"])
    print(f"first part of the CNN, once per image: {100 * share:.0f}% of our step's time")
    return 0


def build(backbone: str, layers: str, images: int, words: int, vocabulary: int) -> tuple[SCACNN, Batch]:
    """A captioner of the paper's sizes with random weights and a frozen CNN, and a random batch."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8)
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    paper = {name: value for name, value in load_recipe("paper", "caption").items() if name in names}
    attended = attended_layers(backbone, [layers])
    config = ModelConfig(**paper | {"backbone": backbone, "layers": attended, "dropout": 0.0})
    model = SCACNN(config, vocabulary, calibrated_weights(backbone, pixels)).train()
    model.backbone.set_trainable(False)
    captions = torch.randint(4, vocabulary, (images * CAPTIONS, words))
    return model, Batch(pixels, captions, torch.arange(images).repeat_interleave(CAPTIONS))


def calibrated_weights(backbone: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Random weights with batch norm statistics of `pixels`, so that maps have values as large as a trained CNN's."""
    network = build_network(backbone).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # running statistics become the plain mean
    with torch.no_grad():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        network((pixels / 255 - mean) / std)
    return network.state_dict()


@contextmanager
def plain_formulas() -> Iterator[None]:
    """Replace the optimised formulas of `attention.sca` by those of the paper."""

    def keys(self: sca.SpatialAttention, features: Tensor, beta: Tensor | None = None) -> Tensor:
        features = features if beta is None else sca.scale_channels(features, beta)
        return self.visual(features.flatten(2).transpose(1, 2))

    def pool(features: Tensor, beta: Tensor | None, alpha: Tensor | None) -> Tensor:
        return sca.mean_over_positions(sca.modulate(features, beta, alpha))

    with ExitStack() as stack:
        stack.enter_context(patch.object(sca, "channel_scores", sca.plain_channel_scores))
        stack.enter_context(patch.object(sca.SpatialAttention, "keys", keys))
        stack.enter_context(patch.object(sca, "pool_modulated", pool))
        yield


def step(model: SCACNN, batch: Batch, way: str) -> float:
    """Forward and backward pass of one batch. Returns the loss."""
    if way == "plain":
        batch = Batch(batch.images[batch.image_index], batch.captions, torch.arange(len(batch.captions)))
    model.zero_grad(set_to_none=True)
    with plain_formulas() if way == "plain" else nullcontext():
        loss = caption_loss(model, batch)
        loss.backward()
    return loss.item()


def multiply_adds(model: SCACNN, batch: Batch, way: str) -> int:
    """Multiply-adds of the convolutions and matrix products of a step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step(model, batch, way)
    return counter.get_total_flops() // 2


def trunk_share(model: SCACNN, batch: Batch, seconds: float) -> float:
    """Time of the first part of the CNN, relative to `seconds`."""
    began = time.perf_counter()
    with torch.no_grad():
        model.encode(batch.images)
    return (time.perf_counter() - began) / seconds


def _prepare(way: str, size: tuple) -> tuple:
    return *build(*size), way


if __name__ == "__main__":
    raise SystemExit(main())
