"""Growth of captioning's time and memory with its sizes: images, pixels, words, beams, vocabulary and batch.

One size varies while the others are fixed: 32 images of 260 x 260 pixels in batches of 16, 10 words, beam 5, a vocabulary
of 3,000 words. The model is built like the packaged one, with random weights. It never ends a caption, so every caption
has all of its words. Only for the number of images it is a toy, with 32 x 32 pixels, 3 words and 2 beams, because the
model's cost per image is constant and only the program around it could grow.

Memory is measured in a process of its own for each point, as the peak above the memory in use before the first image.
Dashed lines in the figure show proportional growth.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch

from sca_caption import checkpoint
from sca_caption.benchmarks.memory import peak_growth
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli.parser import Parser, program
from sca_caption.config import ModelConfig, SearchConfig
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.backbone import attended_layers
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import choice
from sca_caption.runtime.figures import check_figure, save_figure
from sca_caption.vocab import EOS, SPECIALS, Vocabulary

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.growth --output growth.svg
  python -m sca_caption.benchmarks.growth --sizes beams vocabulary --output growth.png
"""
FIXED = {"images": 32, "pixels": 260**2, "words": 10, "beams": 5, "vocabulary": 3_000, "batch": 16}
TOY = {"pixels": 32**2, "words": 3, "beams": 2, "vocabulary": 100, "batch": 64}
AXES: dict[str, tuple[int, ...]] = {
    "images": (1_000, 10_000, 100_000),
    "pixels": (130**2, 260**2, 520**2, 1040**2),
    "words": (5, 10, 20, 40),
    "beams": (1, 2, 5, 10, 20),
    "vocabulary": (1_000, 3_000, 10_000, 30_000, 100_000),
    "batch": (1, 4, 16, 32),
}
NAMES = {
    "images": "images",
    "pixels": "pixels per image",
    "words": "words per caption",
    "beams": "beam size",
    "vocabulary": "vocabulary size",
    "batch": "batch size",
}


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.growth", description=__doc__, epilog=EPILOG)
    p.add_argument("--output", type=Path, required=True, metavar="FILE", help=".svg, .png or .pdf")
    p.add_argument(
        "--sizes",
        nargs="+",
        default=list(AXES),
        metavar="NAME",
        help="sizes to vary (default: all: %(default)s)",
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    check_figure(arguments.output, "--output")
    points: dict[str, list[tuple[int, float, int]]] = {}
    axes = [choice(axis, AXES, "size") for axis in arguments.sizes]
    for axis in axes:
        points[axis] = [(value, *measure(axis, value)) for value in AXES[axis]]
    print(f"{torch.get_num_threads()} threads\n")
    print("| | | seconds | compared with the row above | MB |\n| --- | ---: | ---: | ---: | ---: |")
    for axis, on_axis in points.items():
        before = None
        for value, seconds, memory in on_axis:
            growth = ""
            if before is not None:
                growth = f"{value / before[0]:.3g} times the size, {seconds / before[1]:.2g} times the time"
            print(f"| {NAMES[axis]} | {value:,} | {seconds:.2f} | {growth} | {memory / 1e6:.0f} |")
            before = value, seconds
    draw(arguments.output, points)
    return 0


def measure(axis: str, value: int) -> tuple[float, int]:
    """Seconds and peak memory in bytes of captioning with one size set to `value`."""
    sizes = FIXED | (TOY if axis == "images" else {}) | {axis: value}
    pipeline, pixels, count = prepare(sizes, axis == "images")
    caption(pipeline, pixels, sizes["batch"])  # warms up
    began = time.perf_counter()
    caption(pipeline, pixels, count)
    return time.perf_counter() - began, peak_growth(prepare, caption, sizes, axis == "images")


def prepare(sizes: dict[str, int], toy: bool) -> tuple[CaptionPipeline, np.ndarray, int]:
    """A pipeline, random images uint8 (n, S, S, 3) to repeat, and the number of images to caption."""
    torch.manual_seed(0)
    if toy:
        layers = attended_layers("mobilenet_v2", ["1"])
        config = ModelConfig(layers=layers, attention_width=8, embedding_size=8, lstm_size=8)
    else:
        packaged = checkpoint.load(None).model
        assert isinstance(packaged, SCACNN)
        config = packaged.config
    vocabulary = Vocabulary([f"w{number}" for number in range(sizes["vocabulary"] - len(SPECIALS))])
    model = SCACNN(config, len(vocabulary))
    with torch.no_grad():
        model.word.bias[EOS] = -1e9
    search = SearchConfig(beam_size=sizes["beams"], max_length=sizes["words"])
    side = math.isqrt(sizes["pixels"])
    made = Checkpoint(model, vocabulary, Transform(side), {})
    pipeline = CaptionPipeline.load(made, search=search, device="cpu", batch_size=sizes["batch"])
    pixels = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
    return pipeline, pixels, sizes["images"]


def caption(pipeline: CaptionPipeline, pixels: np.ndarray, count: int) -> None:
    for _ in pipeline.stream(range(count), lambda number: pixels[number % len(pixels)]):
        pass


def short(size: int) -> str:
    return f"{size / 1e6:.2g}M" if size >= 1e6 else f"{size // 1000}k" if size >= 1000 else str(size)


def draw(path: Path, points: dict[str, list[tuple[int, float, int]]]) -> None:
    """Write a figure with one column per size, time above and memory below, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure((2.6 * len(points) + 0.6, 4.8), layout="constrained")
    panels = figure.subplots(2, len(points), squeeze=False, sharex="col")
    for (axis, on_axis), column in zip(points.items(), panels.T, strict=True):
        sizes, seconds, memory = zip(*on_axis, strict=True)
        for panel, values, color in zip(
            column, (seconds, [x / 1e6 for x in memory]), ("C0", "C1"), strict=True
        ):
            panel.loglog(sizes, values, "o-", color=color)
            last = values[-1]
            panel.loglog(sizes, [last * x / sizes[-1] for x in sizes], "--", color="0.6", linewidth=1)
            middle = (min(values) * max(values)) ** 0.5
            panel.set_ylim(min(min(values) / 1.5, middle / 4), max(max(values) * 1.5, middle * 4))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.set_xticks(sizes, [short(x) for x in sizes])
        column[1].set_xlabel(NAMES[axis])
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("peak memory, MB")
    save_figure(figure, path, "--output")


if __name__ == "__main__":
    raise SystemExit(main())
