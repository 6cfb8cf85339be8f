"""Cost of attention: the blocks inside a network, and SCA's channel-wise attention.

blocks (default): each attention block in a network, with its parameters, multiply-adds, and time relative to the
network without attention.

channel: the paper's formula of channel-wise attention and its Chebyshev interpolation, forward and backward. Both
compute g(v) = sum_j U_j tanh(w_j v + u_j) for every channel of every row (see `attention.sca`). Peak memory is measured
in a process of its own for each formula, above what the process held before.

Times are measured in turn, round after round, so that a busy moment of the machine affects all of them. The tables show
the median over rounds, in `blocks` of the ratio to the network without attention in the same round.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sca_caption.attention import BLOCKS, parse
from sca_caption.attention.sca import channel_scores, plain_channel_scores
from sca_caption.benchmarks.memory import peak_growth
from sca_caption.benchmarks.parts import set_defaults
from sca_caption.cli.parser import Parser, program
from sca_caption.config import ClassifierConfig
from sca_caption.models.classifier import Classifier
from sca_caption.runtime.devices import find_device
from sca_caption.runtime.errors import UserError

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.attention --backbone resnet18 --stem cifar --image-size 32
  python -m sca_caption.benchmarks.attention --backbone mobilenet_v2 --attention se cbam coord --classes 1000
  python -m sca_caption.benchmarks.attention channel                # batch 64, C 2048, k 512: ResNet-152's res5c
  python -m sca_caption.benchmarks.attention channel --batch-size 5 --channels 1280 --device cuda
"""
DEFAULTS: dict[str, dict[str, object]] = {
    "blocks": {
        "backbone": "resnet18",
        "stem": "imagenet",
        "image_size": 224,
        "classes": 10,
        "attention": list(BLOCKS),
        "batch_size": 16,
    },
    "channel": {"channels": 2048, "width": 512, "batch_size": 64},
}
FORMULAS: dict[str, Callable[..., Tensor]] = {"plain": plain_channel_scores, "interpolated": channel_scores}


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.attention", description=__doc__, epilog=EPILOG)
    p.add_argument("part", nargs="?", choices=list(DEFAULTS), default="blocks", help="(default: %(default)s)")
    p.add_argument("--batch-size", type=int, metavar="N", help="images, or rows (default: 16; channel: 64)")
    p.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timings of each (default: %(default)s)"
    )
    p.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda if there is a GPU)")
    blocks = p.add_argument_group("blocks")
    blocks.add_argument("--backbone", metavar="NAME", help="the network (default: resnet18)")
    blocks.add_argument("--stem", choices=("imagenet", "cifar"), help="(default: imagenet)")
    blocks.add_argument("--image-size", type=int, metavar="N", help="pixels (default: 224)")
    blocks.add_argument("--classes", type=int, metavar="N", help="(default: 10)")
    blocks.add_argument("--attention", nargs="+", metavar="BLOCK", help="(default: every block)")
    channel = p.add_argument_group("channel")
    channel.add_argument("--channels", type=int, metavar="C", help="(default: 2048)")
    channel.add_argument("--width", type=int, metavar="K", help="attention width (default: 512)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    set_defaults(arguments, DEFAULTS)
    for name in ("batch_size", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")
    if arguments.part == "channel":
        report_channel(arguments)
    else:
        report_blocks(arguments)
    return 0


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


# ---- blocks ----------------------------------------------------------------------------------------------------------


def report_blocks(arguments: argparse.Namespace) -> None:
    for spec in arguments.attention:
        parse(spec)  # raises UserError for a wrong name before any work
    device = find_device(arguments.device)
    specs = ["", *arguments.attention]
    configs = [
        ClassifierConfig(
            backbone=arguments.backbone,
            attention=spec,
            stem=arguments.stem,
            image_size=arguments.image_size,
            classes=tuple(map(str, range(arguments.classes))),
        )
        for spec in specs
    ]
    costs = measure_costs(configs, arguments.batch_size, arguments.rounds, device)
    print(
        f"{arguments.backbone}, {arguments.image_size} px, batch {arguments.batch_size}, {device.type}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print("| block | parameters | multiply-adds | forward | training |\n| --- | ---: | ---: | ---: | ---: |")
    for spec, cost in zip(specs, costs, strict=True):
        print(f"| {spec or 'none'} | {cost.cells()} |")


@dataclass(frozen=True)
class Cost:
    """The cost of a network. Times are ratios to the first network that was measured with it."""

    parameters: int
    multiply_adds: int  # per image
    forward: float
    training: float  # forward and backward pass, without the optimizer

    def cells(self) -> str:
        work = f"{self.multiply_adds / 1e6:,.1f} M"
        return f"{self.parameters:,} | {work} | {self.forward:.2f} | {self.training:.2f}"


def measure_costs(
    configs: list[ClassifierConfig], batch_size: int, rounds: int, device: torch.device
) -> list[Cost]:
    """The costs of networks with random weights that read images of one size; those of the first are the unit of time."""
    models = [build_classifier(config).to(device) for config in configs]
    size = configs[0].image_size
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(0, len(configs[0].classes), (batch_size,), device=device)
    forward = time_ratios([partial(forward_pass, model, images) for model in models], rounds, device)
    training = time_ratios(
        [partial(training_step, model, images, labels) for model in models], rounds, device
    )
    return [
        Cost(sum(p.numel() for p in model.parameters()), multiply_adds(model, images[:1]), *times)
        for model, *times in zip(models, forward, training, strict=True)
    ]


def build_classifier(config: ClassifierConfig) -> Classifier:
    torch.manual_seed(0)
    return Classifier(config)


def multiply_adds(model: Classifier, images: Tensor) -> int:
    """Multiply-adds of the convolutions and matrix products for `images`; elementwise operations are not counted."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


def forward_pass(model: Classifier, images: Tensor) -> None:
    model.eval()
    with torch.inference_mode():
        model(images)


def training_step(model: Classifier, images: Tensor, labels: Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    model.loss(images, labels).backward()


def time_ratios(steps: list[Callable[[], None]], rounds: int, device: torch.device) -> list[float]:
    """Median over rounds of each step's time relative to the first step's; one more round warms up."""
    ratios = []
    for _ in range(rounds + 1):
        times = [seconds_of(step, device) for step in steps]
        ratios.append([t / times[0] for t in times])
    return [statistics.median(each) for each in zip(*ratios[1:], strict=True)]


# ---- channel ---------------------------------------------------------------------------------------------------------


def report_channel(arguments: argparse.Namespace) -> None:
    device = find_device(arguments.device)
    size = (arguments.batch_size, arguments.channels, arguments.width)
    formulas = dict(FORMULAS)
    if device.type == "cuda":
        formulas["plain, compiled"] = torch.compile(plain_channel_scores)
    inputs = make_inputs(*size, device)
    times: dict[str, list[float]] = {f"{name}{way}": [] for name in formulas for way in ("", " forward")}
    for _ in range(arguments.rounds + 1):
        for name, formula in formulas.items():
            times[name].append(seconds_of(partial(scores_and_gradients, formula, inputs), device))
            times[f"{name} forward"].append(seconds_of(partial(scores_only, formula, inputs), device))
    median = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}  # the first warms up
    memory = {name: peak_memory(name, size, device) for name in formulas}
    print(f"B {size[0]}, C {size[1]}, k {size[2]}, {device.type}, {torch.get_num_threads()} threads\n")
    print("| formula | forward | forward and backward | ratio | peak memory | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in formulas:
        speedup, saving = median["plain"] / median[name], memory["plain"] / memory[name]
        print(
            f"| {name} | {1000 * median[f'{name} forward']:.1f} ms | {1000 * median[name]:.1f} ms | {speedup:.0f} "
            f"| {memory[name] / 1e6:.1f} MB | {saving:.0f} |"
        )
    print(f"\ngreatest differences, relative to the greatest value: {differences(inputs)}")


def make_inputs(batch: int, channels: int, width: int, device: torch.device) -> list[Tensor]:
    """Random means, W_c, b_c + W_hc h and W_i with values as large as in training; all require gradients."""
    torch.manual_seed(0)
    means = torch.rand(batch, channels)  # after a ReLU
    parts = (means, torch.randn(width) / 2, torch.randn(batch, width), torch.randn(width) / math.sqrt(width))
    return [x.to(device).requires_grad_() for x in parts]


def scores_only(formula: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    with torch.inference_mode():
        formula(*inputs)


def scores_and_gradients(formula: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The scores, and the gradients of a weighted sum of them."""
    scores = formula(*inputs)
    weights = torch.linspace(-1, 1, scores.shape[1], device=scores.device)
    return (scores.detach(), *torch.autograd.grad((scores * weights).sum(), inputs))


def peak_memory(name: str, size: tuple[int, int, int], device: torch.device) -> float:
    """Peak memory of a forward and backward pass, in bytes."""
    if device.type == "cuda":
        formula = torch.compile(plain_channel_scores) if name not in FORMULAS else FORMULAS[name]
        inputs = make_inputs(*size, device)
        scores_and_gradients(formula, inputs)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        scores_and_gradients(formula, inputs)
        return torch.cuda.max_memory_allocated() - before
    return peak_growth(_prepare, scores_and_gradients, name, size)


def _prepare(name: str, size: tuple[int, int, int]) -> tuple:
    device = torch.device("cpu")
    # Allocate the libraries' own buffers.
    scores_and_gradients(FORMULAS[name], make_inputs(2, 64, 8, device))
    return FORMULAS[name], make_inputs(*size, device)


def differences(inputs: list[Tensor]) -> str:
    """Greatest relative differences between the two formulas' scores, and between their gradients."""
    plain, fast = (scores_and_gradients(formula, inputs) for formula in FORMULAS.values())
    names = ("scores", "d means", "d W_c", "d u", "d W_i")
    values = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(plain, fast, strict=True)]
    return ", ".join(f"{name} {value:.0e}" for name, value in zip(names, values, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
