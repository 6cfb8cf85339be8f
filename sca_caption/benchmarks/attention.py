"""What each attention block costs in a network: parameters, multiply-adds, and time beside the plain network.

Times are ratios measured in one run: a step of each network is timed in turn, round after round, so that a busy moment of
the machine falls on all; each ratio is the median over rounds of a block's time to the plain network's in that round.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from sca_caption.attention import BLOCKS, parse
from sca_caption.cli.parser import Parser, program
from sca_caption.config import ClassifierConfig
from sca_caption.models.classifier import Classifier
from sca_caption.runtime.devices import find_device
from sca_caption.runtime.errors import UserError

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.attention --backbone resnet18 --stem cifar --image-size 32
  python -m sca_caption.benchmarks.attention --backbone mobilenet_v2 --attention se cbam coord --classes 1000
"""


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.attention", description=__doc__, epilog=EPILOG)
    p.add_argument(
        "--backbone", default="resnet18", metavar="NAME", help="the network (default: %(default)s)"
    )
    p.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="(default: %(default)s)")
    p.add_argument("--image-size", type=int, default=224, metavar="N", help="pixels (default: %(default)s)")
    p.add_argument("--classes", type=int, default=10, metavar="N", help="(default: %(default)s)")
    p.add_argument(
        "--attention", nargs="+", default=list(BLOCKS), metavar="BLOCK", help="(default: every block)"
    )
    p.add_argument("--batch-size", type=int, default=16, metavar="N", help="images (default: %(default)s)")
    p.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timings of each (default: %(default)s)"
    )
    p.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name in ("batch_size", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")
    for spec in arguments.attention:
        parse(spec)  # a wrong name is said before any work
    device = find_device(arguments.device)
    specs = ["", *arguments.attention]
    models = [model(spec, arguments).to(device) for spec in specs]
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, arguments.classes, (len(images),), device=device)
    forward = ratios([lambda m=m: infer(m, images) for m in models], arguments.rounds, device)
    training = ratios([lambda m=m: train(m, images, labels) for m in models], arguments.rounds, device)
    print(
        f"{arguments.backbone}, {shape[2]} px, batch {shape[0]}, {device.type}, {torch.get_num_threads()} threads\n"
    )
    print("| block | parameters | multiply-adds | forward | training |\n| --- | ---: | ---: | ---: | ---: |")
    for spec, made, *cost in zip(specs, models, forward, training, strict=True):
        parameters = sum(p.numel() for p in made.parameters())
        times = " | ".join(f"{ratio:.2f}" for ratio in cost)
        print(
            f"| {spec or 'none'} | {parameters:,} | {multiply_adds(made, images[:1]) / 1e6:,.1f} M | {times} |"
        )
    return 0


def model(spec: str, arguments) -> Classifier:
    torch.manual_seed(0)
    return Classifier(
        ClassifierConfig(
            backbone=arguments.backbone,
            attention=spec,
            stem=arguments.stem,
            image_size=arguments.image_size,
            classes=tuple(map(str, range(arguments.classes))),
        )
    )


def multiply_adds(model: Classifier, images: torch.Tensor) -> int:
    """Of convolutions and matrix products for `images`, as torch counts them; elementwise work is not counted."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


def infer(model: Classifier, images: torch.Tensor) -> None:
    model.eval()
    with torch.inference_mode():
        model(images)


def train(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    model.loss(images, labels).backward()


def ratios(steps: list[Callable[[], None]], rounds: int, device: torch.device) -> list[float]:
    """Median time of each step relative to the first, over rounds that time them all; one round to warm up."""
    found = []
    for _ in range(rounds + 1):
        times = []
        for step in steps:
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        found.append([t / times[0] for t in times])
    return [statistics.median(each) for each in zip(*found[1:], strict=True)]


if __name__ == "__main__":
    raise SystemExit(main())
