"""How soon a caption is there: `caption.py IMAGE` against the bare import of torch and torchvision.

Whole processes in turn, A B A B ..., after one run of each that warms the disk's cache; medians of the ratio in each
round, of wall time and of processor time (which other work on the machine disturbs less).
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sca_caption.cli.parser import Parser, program
from sca_caption.config import require
from sca_caption.runtime.errors import UserError

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.start docs/grace_hopper.jpg
  python -m sca_caption.benchmarks.start docs/grace_hopper.jpg --imports 15      # and what is imported, by package
"""
CAPTION = "from sca_caption.cli.caption import main; raise SystemExit(main())"
# Where the builds of the two packages differ, torchvision cannot be imported bare.
IMPORTS = (
    "import torch, torchvision",
    "import torch; from sca_caption.runtime.torchvision_compat import torchvision",
)
IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.start", description=__doc__, epilog=EPILOG)
    p.add_argument("image", type=Path, metavar="IMAGE", help="a photograph")
    p.add_argument("--checkpoint", metavar="FILE", help="(default: the model that ships)")
    p.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timings of each (default: %(default)s)"
    )
    p.add_argument(
        "--imports", type=int, default=0, metavar="N", help="also list the N packages that take longest"
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    require(arguments, "rounds", arguments.rounds >= 1, "at least 1")
    imports = next((code for code in IMPORTS if not run("-c", code).returncode), IMPORTS[-1])
    caption = ["-c", CAPTION, str(arguments.image)]
    caption += ["--checkpoint", arguments.checkpoint] if arguments.checkpoint else []
    commands = {"caption.py IMAGE": caption, "import torch, torchvision": ["-c", imports]}
    for command in commands.values():
        if (found := run(*command)).returncode:
            raise UserError(f"that does not run: {found.stderr.strip().splitlines()[-1]}")
    times = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            times[name].append(timed(command))
    ours, bare = times.values()
    print("| | wall | processor |\n| --- | ---: | ---: |")
    for name, found in times.items():
        print(
            f"| {name} | "
            + " | ".join(f"{statistics.median(x):.2f} s" for x in zip(*found, strict=True))
            + " |"
        )
    ratios = ([a[i] / b[i] for a, b in zip(ours, bare, strict=True)] for i in range(2))
    print("| ratio | " + " | ".join(f"{statistics.median(each):.2f}" for each in ratios) + " |")
    if arguments.imports:
        for name, command in commands.items():
            show_imports(name, run("-X", "importtime", *command).stderr, arguments.imports)
    return 0


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of wall time and of processor time."""
    before, began = os.times(), time.perf_counter()
    run(*command)
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def show_imports(name: str, profile: str, count: int) -> None:
    """A table of what `python -X importtime` wrote: the time in each package's modules themselves, longest first."""
    taken, modules = Counter(), Counter()
    for microseconds, module in IMPORTED.findall(profile):
        parts = module.split(".")
        package = ".".join(parts[:2] if parts[0] == "torch" else parts[:1])
        taken[package] += int(microseconds)
        modules[package] += 1
    print(f"\n| imported by {name} | modules | ms |\n| --- | ---: | ---: |")
    print(f"| all | {modules.total()} | {taken.total() / 1000:.0f} |")
    for package, microseconds in taken.most_common(count):
        print(f"| {package} | {modules[package]} | {microseconds / 1000:.0f} |")


if __name__ == "__main__":
    raise SystemExit(main())
