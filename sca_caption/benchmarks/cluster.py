"""Captioning a folder with several processes of one thread each: torchrun's against Ray's.

Both programs caption the same photographs in turn, first a few, then all. Photographs per second are those of the
difference, so they leave out the start, which has its own column. Ray's processes get the priority of torchrun's; by
default Ray lowers it, so that the machine stays usable. The table shows medians over rounds.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sca_caption.benchmarks.captioning import CAPTION
from sca_caption.cli.parser import Parser, program
from sca_caption.config import BATCH_SIZE, require
from sca_caption.images import find_images
from sca_caption.runtime.errors import UserError

RAY = "from sca_caption.__main__ import main; raise SystemExit(main(['ray', *__import__('sys').argv[1:]]))"
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.cluster photos/
  python -m sca_caption.benchmarks.cluster photos/ --processes 16 --rounds 5
"""


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.cluster", description=__doc__, epilog=EPILOG)
    p.add_argument("folder", type=Path, metavar="PATH", help="folder of readable photographs")
    p.add_argument("--checkpoint", metavar="FILE", help="(default: the shipped model)")
    p.add_argument("--processes", type=int, default=2, metavar="N", help="(default: %(default)s)")
    p.add_argument("--few", type=int, default=4, metavar="N", help="photographs per process in the short runs "
                   "(default: %(default)s)")  # fmt: skip
    p.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="timings of each (default: %(default)s)"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name in ("processes", "few", "rounds"):
        require(arguments, name, getattr(arguments, name) >= 1, "at least 1")
    paths, few = find_images([arguments.folder]), arguments.few * arguments.processes
    if len(paths) <= few:
        raise UserError(
            f"{arguments.folder} has {len(paths)} images; give more than {few}, or a smaller --few"
        )
    ways = {"torchrun, caption.py": torchrun, "Ray, python -m sca_caption ray": with_ray}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    starts: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, command in ways.items():
            short, whole = (
                seconds(command(arguments.processes, number), paths[:number], arguments.checkpoint)
                for number in (few, len(paths))
            )
            rates[name].append((len(paths) - few) / (whole - short))
            starts[name].append(short - few / rates[name][-1])
    print(f"{len(paths)} images, {arguments.processes} processes of one thread\n")
    print("| | images per second | ratio | start, s |\n| --- | ---: | ---: | ---: |")
    first = next(iter(rates.values()))
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, first, strict=True))
        print(
            f"| {name} | {statistics.median(found):.2f} | {ratio:.2f} | {statistics.median(starts[name]):.1f} |"
        )
    return 0


def torchrun(processes: int, images: int) -> list[str]:
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "--no-python",
    ]
    return [
        *launcher,
        sys.executable,
        "-c",
        CAPTION,
        "--output",
        "captions.json",
        "--quiet",
        "--device",
        "cpu",
    ]


def with_ray(processes: int, images: int) -> list[str]:
    # Several shards per process: the last one to end waits for no other.
    size = max(BATCH_SIZE, images // (8 * processes))
    return ["-c", RAY, "--output", "captions", "--workers", str(processes), "--shard-size", str(size)]


def seconds(command: list[str], paths: list[Path], checkpoint: str | None) -> float:
    """Seconds of a program that captions the files. Raises UserError if it fails."""
    command = [
        sys.executable,
        *command,
        *(["--checkpoint", os.path.abspath(checkpoint)] if checkpoint else []),
    ]
    settings = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.abspath(path) for path in paths]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--", *files],
            env={**os.environ, **settings},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        taken = time.perf_counter() - began
    if done.returncode:
        raise UserError(f"{' '.join(command[1:6])} ... failed: {' '.join(done.stderr.split())[-300:]}")
    return taken


if __name__ == "__main__":
    raise SystemExit(main())
