"""Channel-wise attention: the paper's formula against its Chebyshev interpolation, forward and backward.

Both compute g(v) = sum_j U_j tanh(w_j v + u_j) for every channel of every row (see attention.sca). Times alternate in one
run; peak memory is that of a process of its own for each, above what it held before.
"""

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sca_caption.attention.sca import channel_scores, plain_channel_scores
from sca_caption.benchmarks.memory import peak_growth
from sca_caption.cli.parser import Parser, program
from sca_caption.runtime.devices import find_device

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.channel                       # batch 64, C 2048, k 512: ResNet-152's res5c
  python -m sca_caption.benchmarks.channel --batch-size 5 --channels 1280 --device cuda
"""
FORMULAS: dict[str, Callable[..., Tensor]] = {"plain": plain_channel_scores, "interpolated": channel_scores}


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.channel", description=__doc__, epilog=EPILOG)
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="rows (default: %(default)s)")
    p.add_argument("--channels", type=int, default=2048, metavar="C", help="(default: %(default)s)")
    p.add_argument("--width", type=int, default=512, metavar="K", help="of attention (default: %(default)s)")
    p.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timings of each (default: %(default)s)"
    )
    p.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    device = find_device(arguments.device)
    size = (arguments.batch_size, arguments.channels, arguments.width)
    formulas = dict(FORMULAS)
    if device.type == "cuda":
        formulas["plain, compiled"] = torch.compile(plain_channel_scores)
    inputs = made(*size, device)
    times: dict[str, list[float]] = {f"{name}{way}": [] for name in formulas for way in ("", " forward")}
    for _ in range(arguments.rounds + 1):
        for name, formula in formulas.items():
            times[name].append(timed(lambda f=formula: train(f, inputs), device))
            times[f"{name} forward"].append(timed(lambda f=formula: infer(f, inputs), device))
    median = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}  # the first warms up
    memory = {name: peak_memory(name, size, device) for name in formulas}
    print(f"B {size[0]}, C {size[1]}, k {size[2]}, {device.type}, {torch.get_num_threads()} threads\n")
    print("| formula | forward | forward and backward | ratio | peak memory | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in formulas:
        faster, less = median["plain"] / median[name], memory["plain"] / memory[name]
        print(
            f"| {name} | {1000 * median[f'{name} forward']:.1f} ms | {1000 * median[name]:.1f} ms | {faster:.0f} "
            f"| {memory[name] / 1e6:.1f} MB | {less:.0f} |"
        )
    print(f"\ngreatest differences, relative to the greatest value: {differences(inputs)}")
    return 0


def made(batch: int, channels: int, width: int, device: torch.device) -> list[Tensor]:
    """Means, W_c, b_c + W_hc h and W_i of the size that training finds, each wanting a gradient."""
    torch.manual_seed(0)
    means = torch.rand(batch, channels)  # after a ReLU
    parts = (means, torch.randn(width) / 2, torch.randn(batch, width), torch.randn(width) / math.sqrt(width))
    return [x.to(device).requires_grad_() for x in parts]


def infer(formula: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    with torch.inference_mode():
        formula(*inputs)


def train(formula: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The scores, and the gradients of a weighted sum of them."""
    scores = formula(*inputs)
    weights = torch.linspace(-1, 1, scores.shape[1], device=scores.device)
    return (scores.detach(), *torch.autograd.grad((scores * weights).sum(), inputs))


def timed(step: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_memory(name: str, size: tuple[int, int, int], device: torch.device) -> float:
    """Bytes that a step forward and backward takes at its peak."""
    if device.type == "cuda":
        formula = torch.compile(plain_channel_scores) if name not in FORMULAS else FORMULAS[name]
        inputs = made(*size, device)
        train(formula, inputs)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train(formula, inputs)
        return torch.cuda.max_memory_allocated() - before
    return peak_growth(_prepare, train, name, size)


def _prepare(name: str, size: tuple[int, int, int]) -> tuple:
    device = torch.device("cpu")
    train(FORMULAS[name], made(2, 64, 8, device))  # the libraries' own buffers
    return FORMULAS[name], made(*size, device)


def differences(inputs: list[Tensor]) -> str:
    """Between the formulas: of the scores and of each gradient."""
    plain, fast = (train(formula, inputs) for formula in FORMULAS.values())
    names = ("scores", "d means", "d W_c", "d u", "d W_i")
    found = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(plain, fast, strict=True)]
    return ", ".join(f"{name} {value:.0e}" for name, value in zip(names, found, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
