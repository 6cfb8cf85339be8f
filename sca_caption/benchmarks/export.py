"""An exported captioner beside the one it was made from: captions, size, time and, with --data, CIDEr.

All ways take the same images, already at model size, through everything from pixels to captions, with as many threads,
one image at a time and in batches. Their turns alternate in one run; a ratio is the median over rounds. Captions are
compared over all photographs.

`python -m sca_caption.benchmarks.browser` measures the browser page.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sca_caption import checkpoint, images
from sca_caption.cli.parser import Parser, program
from sca_caption.config import require
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.export.model_json import DTYPES, GRAPHS, graph_path
from sca_caption.export.onnx_captioner import load_pipeline
from sca_caption.export.onnx_folder import export
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.captions import Caption
from sca_caption.runtime.errors import UserError

BATCH = 16
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.export photos/
  python -m sca_caption.benchmarks.export photos/ --data data/flickr8k.h5 --limit 500
"""


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.export", description=__doc__, epilog=EPILOG)
    p.add_argument("photographs", nargs="+", metavar="PHOTO", help="files, or folders of them")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="(default: the model that ships)")
    p.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="timings of each (default: %(default)s)"
    )
    p.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="N",
        help="numbers of threads to time with (default: 1 2)",
    )  # fmt: skip
    p.add_argument("--data", type=Path, metavar="FILE.h5", help="score captions of its split val too")
    p.add_argument("--limit", type=int, metavar="N", help="images of it (default: all)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    require(arguments, "rounds", arguments.rounds >= 1, "at least 1")
    require(arguments, "threads", min(arguments.threads) >= 1, "at least 1")
    paths = images.find_images(arguments.photographs)
    data = CaptionDataset(arguments.data) if arguments.data else None
    given = checkpoint.load(arguments.checkpoint)
    if data and data.transform != given.transform:
        raise UserError(
            f"{data.path} holds {data.transform}, the model takes {given.transform}; preprocess for it"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        export(folder, given, arguments.checkpoint)
        print(f"| MB | {' | '.join(GRAPHS)} | together |\n| --- |{' ---: |' * (len(GRAPHS) + 1)}")
        for dtype in DTYPES:
            sizes = [graph_path(folder, name, dtype).stat().st_size / 1e6 for name in GRAPHS]
            print(f"| {dtype} | {' | '.join(f'{each:.1f}' for each in (*sizes, sum(sizes)))} |")
        ways: dict[str, CaptionPipeline] = {"PyTorch": CaptionPipeline.load(given, device="cpu")}
        print(f"\nbeam {ways['PyTorch'].search.beam_size}, {arguments.rounds} rounds\n")
        titles = ["ms per image, PyTorch", *(f"ONNX {dtype}, times PyTorch's" for dtype in DTYPES)]
        print(f"| threads | images | {' | '.join(titles)} |\n| ---: | ---: |{' ---: |' * len(titles)}")
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for dtype in DTYPES:
                ways[f"ONNX, {dtype}"] = load_pipeline(folder, dtype=dtype, threads=threads)
            timed(ways, paths, arguments.rounds, threads)
    compared(ways, paths)
    if data:
        scored(ways, data, arguments.limit)
    return 0


def timed(ways: dict[str, CaptionPipeline], paths: Sequence[Path], rounds: int, threads: int) -> None:
    """Print two rows of the table of times: one image at a time, and in a batch."""
    transform = ways["PyTorch"].transform
    pixels = stack([images.load(path, transform) for path in paths[:BATCH]])
    assert isinstance(pixels, Tensor)
    for parts in (pixels.split(1), [pixels]):
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round in range(rounds + 1):
            for name, pipeline in ways.items():
                began = time.perf_counter()
                for part in parts:
                    pipeline.caption_batch(part)
                if round:  # the first warms up
                    seconds[name].append((time.perf_counter() - began) / len(pixels))
        theirs = seconds.pop("PyTorch")
        ratios = [
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) for ours in seconds.values()
        ]
        cells = [f"{1000 * statistics.median(theirs):.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {threads} | {len(parts[0])} | {' | '.join(cells)} |", flush=True)


def compared(ways: dict[str, CaptionPipeline], paths: Sequence[Path]) -> None:
    """Print how many captions are PyTorch's, and of float32 those that are not."""
    found: dict[str, list[Caption]] = {}
    for name, pipeline in ways.items():
        results = list(pipeline.stream(paths))
        for result in results:
            if result.error:
                raise result.error
        found[name] = [result.captions[0] for result in results]
    theirs = found.pop("PyTorch")
    print()
    for name, ours in found.items():
        same = [a.text == b.text for a, b in zip(ours, theirs, strict=True)]
        apart = [abs(a.score - b.score) for a, b, alike in zip(ours, theirs, same, strict=True) if alike]
        most = f", scores at most {max(apart):.0e} apart" if apart else ""
        print(f"{name}: {sum(same)} of {len(same)} captions are PyTorch's{most}")
        if name.endswith("float32"):
            for path, a, b in zip(paths, ours, theirs, strict=True):
                if a.text != b.text:
                    print(f"  {path}: {a.text!r} {a.score:.5f}, PyTorch {b.text!r} {b.score:.5f}")


def scored(ways: dict[str, CaptionPipeline], data: CaptionDataset, limit: int | None) -> None:
    """Print the CIDEr of each way on split val."""
    rows = data.indices("val").tolist()[:limit]
    if len(rows) < 2:
        raise UserError(f"{data.path} has {len(rows)} images in split val; CIDEr needs two")
    cider = Cider([[ptb_tokenize(text) for text in data.references(row)] for row in rows])
    print(f"\n| {len(rows)} images of {data.path.name}, val | CIDEr | difference |\n| --- | ---: | ---: |")
    first = None
    for name, pipeline in ways.items():
        captions = [result.captions[0].text for result in pipeline.stream(rows, read=data.image)]
        score = cider.score([ptb_tokenize(caption) for caption in captions])[0]
        first = score if first is None else first
        print(f"| {name} | {score:.2f} | {score - first:+.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
