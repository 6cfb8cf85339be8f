"""Speed and memory of preprocess.py, compared with its floor and with a plain loop.

The floor decodes and resizes the same files on all cores and keeps nothing; the second floor also compresses each image
to JPEG. The plain loop is the one of common tutorials: it decodes and resizes one image after the other and writes raw
pixels to an HDF5 dataset, without captions. preprocess.py is timed as a whole program: start, reading the table of
captions, tokenization, vocabulary, and the complete file on disk. "past its start" subtracts the time of a run with few
images.

Rates are measured in turn in one run, round after round, so that a busy moment of the machine affects all of them. Each
ratio is the median over rounds.
"""

import argparse
import io
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from sca_caption.cli.parser import Parser, program
from sca_caption.config import require
from sca_caption.images import Transform, find_images
from sca_caption.runtime.devices import usable_cores
from sca_caption.runtime.errors import UserError

DISTINCT = 50  # synthetic photographs; further files are links to them
CAPTIONS, WORDS, VOCABULARY = 5, 11, 20_000  # captions per image, words per caption, distinct words
FEW = 20  # images of the run that measures the start
SMALL = (64, 48)  # width and height of the photographs for --memory
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.preprocessing --images 2000 --size 1024x768
  python -m sca_caption.benchmarks.preprocessing --images 4000 --folder photos/
  python -m sca_caption.benchmarks.preprocessing --memory 1000 10000 100000
"""
RUN = "from sca_caption.cli.preprocess import main\nstatus = main()\n"
MEASURED = (
    RUN
    + """
import resource
for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
    print(resource.getrusage(who).ru_maxrss)
"""
)


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.preprocessing", description=__doc__, epilog=EPILOG)
    p.add_argument("--images", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    p.add_argument("--size", default="1024x768", metavar="WxH", help="pixels of synthetic photographs "
        "(default: %(default)s)")  # fmt: skip
    p.add_argument(
        "--folder", type=Path, metavar="DIR", help="folder of photographs (default: synthetic ones)"
    )
    p.add_argument("--image-size", type=int, default=Transform.size, metavar="PIXELS", help="side of the stored "
        "square images (default: %(default)s)")  # fmt: skip
    p.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="timings of each (default: %(default)s)"
    )
    p.add_argument("--memory", type=int, nargs="+", metavar="N", help="measure peak memory instead, for these "
        f"numbers of synthetic images of {SMALL[0]}x{SMALL[1]} pixels")  # fmt: skip
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    require(arguments, "images", arguments.images > FEW, f"more than {FEW}")
    require(arguments, "rounds", arguments.rounds >= 1, "at least 1")
    require(arguments, "memory", min(arguments.memory or [3]) >= 3, "at least 3, for three splits")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            print_memory(Path(folder), arguments.memory)
        else:
            print_rates(Path(folder), arguments)
    return 0


def print_rates(folder: Path, arguments: argparse.Namespace) -> None:
    sources = photographs(folder, arguments)
    count = arguments.images
    files = dataset(folder / "all", sources, count)
    dataset(folder / "few", sources, FEW)
    transform = Transform(arguments.image_size)
    ways = {
        "floor: decode and resize": lambda: on_all_cores(decode, files, transform),
        "floor: decode, resize and compress": lambda: on_all_cores(compress, files, transform),
        "preprocess.py": lambda: preprocess(folder / "all", transform),
        "start": lambda: preprocess(folder / "few", transform),
        "plain loop": lambda: plain_loop(files, transform, folder / "plain.h5"),
    }
    rounds = [{name: timed(way) for name, way in ways.items()} for _ in range(arguments.rounds + 1)][1:]
    for seconds in rounds:
        past_start = max(seconds["preprocess.py"] - seconds.pop("start"), 1e-9)
        seconds["preprocess.py, past its start"] = past_start * count / (count - FEW)
    pixels = f"{arguments.size} pixels" if arguments.folder is None else f"of {arguments.folder}"
    stored, cores = f"{transform.size}x{transform.size}", usable_cores()
    print(f"{count} JPEG files {pixels}, stored at {stored}, {cores} cores, {arguments.rounds} rounds\n")
    print("| | images/s | of decode and resize | with compression |\n| --- | ---: | ---: | ---: |")
    names = list(rounds[0])
    for name in names:
        rate = count / statistics.median(seconds[name] for seconds in rounds)
        shares = [
            statistics.median(seconds[floor] / seconds[name] for seconds in rounds) for floor in names[:2]
        ]
        print(f"| {name} | {rate:,.0f} | {shares[0]:.0%} | {shares[1]:.0%} |")


def print_memory(folder: Path, counts: list[int]) -> None:
    sources = make_photographs(folder, SMALL)
    print("Peak resident memory; a worker's includes what it shares with the program.\n")
    print("| images | captions | captions.csv | program | worker | data file |\n|" + " ---: |" * 6)
    for count in counts:
        root = folder / str(count)
        dataset(root, sources, count)
        out = preprocess(root, Transform(min(SMALL)), MEASURED)
        program, worker = (int(line) * 1024 / 1e6 for line in out.splitlines()[-2:])
        text, data = ((root / name).stat().st_size / 1e6 for name in ("captions.csv", "data.h5"))
        print(
            f"| {count:,} | {count * CAPTIONS:,} | {text:.1f} MB | {program:.0f} MB | {worker:.0f} MB | {data:.1f} MB |",
            flush=True,
        )
        shutil.rmtree(root)


def photographs(folder: Path, arguments: argparse.Namespace) -> list[Path]:
    if arguments.folder is not None:
        return [path.resolve() for path in find_images([arguments.folder])]
    try:
        width, height = (int(side) for side in arguments.size.split("x"))
        assert min(width, height) >= 1
    except (ValueError, AssertionError) as error:
        raise UserError(f"--size {arguments.size}: give pixels as 1024x768") from error
    return make_photographs(folder, (width, height))


def make_photographs(folder: Path, size: tuple[int, int]) -> list[Path]:
    """JPEG files with coarse and fine structure, about as large in bytes as photographs."""
    rng, paths = np.random.default_rng(0), []
    for number in range(DISTINCT):
        picture = np.zeros((size[1], size[0], 3), np.float32)
        for cells in (4, 16, 64, 256):
            levels = rng.integers(0, 256, (cells * 3 // 4, cells, 3), np.uint8)
            picture += np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)) / cells**0.5
        picture *= 255 / picture.max()
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(picture.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def dataset(folder: Path, sources: list[Path], count: int) -> list[str]:
    """`count` links to `sources`, and a table of captions whose word frequencies follow Zipf's law."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with open(folder / "captions.csv", "w", encoding="utf-8") as table:
        table.write("image,caption\n")
        for number in range(count):
            name = f"{number:08}{sources[number % len(sources)].suffix}"
            (folder / "images" / name).symlink_to(sources[number % len(sources)])
            for words in rng.zipf(1.45, (CAPTIONS, WORDS)) % VOCABULARY:
                table.write(f"{name},{' '.join(map(spelled, words.tolist()))} .\n")
    return sorted(str(path) for path in (folder / "images").iterdir())


def spelled(number: int) -> str:
    """A distinct word for every number."""
    return "".join("etaoinshrd"[int(digit)] for digit in str(number))


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def on_all_cores(
    function: Callable[[tuple[str, int]], object], files: list[str], transform: Transform
) -> None:
    with multiprocessing.Pool(usable_cores()) as pool:
        for _ in pool.imap_unordered(function, ((path, transform.size) for path in files), chunksize=8):
            pass


def decode(job: tuple[str, int]) -> None:
    decoded(job)  # not returned, because sending pixels between processes would be timed too


def compress(job: tuple[str, int]) -> None:
    decoded(job).save(io.BytesIO(), "JPEG", quality=90)


def decoded(job: tuple[str, int]) -> Image.Image:
    path, size = job
    with Image.open(path) as image:
        image.draft("RGB", (2 * size, 2 * size))
        return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def preprocess(root: Path, transform: Transform, program: str = RUN) -> str:
    """Run the whole program on a data set. Returns its standard output."""
    output = root / "data.h5"
    output.unlink(missing_ok=True)
    flags = ["--dataset", "csv", "--root", root, "--output", output, "--image-size", str(transform.size)]
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, flags), "--min-count", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not output.exists():
        raise UserError(f"preprocess.py failed: {run.stderr.strip().splitlines()[-1]}")
    return run.stdout


def plain_loop(files: list[str], transform: Transform, output: Path) -> None:
    size = transform.size
    with h5py.File(output, "w") as file:
        images = file.create_dataset("images", (len(files), 3, size, size), "uint8")
        for row, path in enumerate(files):
            picture = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            images[row] = np.asarray(picture).transpose(2, 0, 1)


if __name__ == "__main__":
    raise SystemExit(main())
