"""Counts of what damaged files, kills and malformed requests do. Exit status 1 if anything failed.

images: mutated images in one folder for caption.py. files: mutated data files, checkpoints, exports, results files and
caption files. kills: preprocess.py, train.py and caption.py killed at random moments, and run again. memory: peak memory
of small files that decode to much. requests: malformed and half-sent requests to the page.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from sca_caption import checkpoint
from sca_caption.benchmarks import hostile_files, mutations
from sca_caption.benchmarks.malformed_requests import requests
from sca_caption.benchmarks.programs import PHOTOGRAPHS, command, encoded_photographs, tracebacks
from sca_caption.benchmarks.random_kills import kills
from sca_caption.cli.parser import Parser, program
from sca_caption.config import require
from sca_caption.runtime.errors import UserError

COUNTS = {"images": 1000, "files": 300, "kills": 160, "memory": 0, "requests": 1200}
MOST_BYTES = 1_500_000_000  # of a program's memory
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.reliability images
  python -m sca_caption.benchmarks.reliability kills --count 30 --seed 1
"""


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.reliability", description=__doc__, epilog=EPILOG)
    p.add_argument("what", choices=COUNTS)
    defaults = ", ".join(f"{name} {count}" for name, count in COUNTS.items() if count)
    p.add_argument("--count", type=int, metavar="N", help=f"how many (default: {defaults})")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: %(default)s)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    count = arguments.count if arguments.count is not None else COUNTS[arguments.what]
    require(arguments, "count", arguments.count is None or arguments.count >= 1, "at least 1")
    if not hasattr(os, "fork"):
        raise UserError("the benchmark starts and measures processes as POSIX systems do; run it on one")
    measures: dict[str, Callable[[Path, int, random.Random], Iterator[str]]]
    measures = {"images": images, "files": files, "kills": kills, "memory": memory, "requests": requests}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for failure in measures[arguments.what](Path(folder), count, random.Random(arguments.seed)):
            failed += 1
            print(f"FAILED: {failure}", flush=True)
    print(f"{failed} failures")
    return 1 if failed else 0


# ---- images ----------------------------------------------------------------------------------------------------------


def images(folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Caption a folder of mutated images: each has a row or a line of error, and nothing else happens."""
    photos, output = folder / "photos", folder / "captions.json"
    photos.mkdir()
    wholes = encoded_photographs()
    for number in range(count):
        name, data = draw.choice([*wholes.items()])
        for _ in range(draw.choice((1, 1, 1, 5))):
            data = mutations.mutated_bytes(data, draw, draw.choice((None, 200))) or b"\0"
        (photos / f"{number} {name}").write_bytes(data)
    call = command("caption", photos, "--output", output, "--beam-size", "1")
    done = subprocess.run(call, capture_output=True, text=True, errors="replace")
    rows = json.loads(output.read_bytes()) if output.exists() else []
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    print(
        f"{count} images in {len(wholes)} formats: {len(rows)} captioned, {len(errors)} refused in one line"
    )
    yield from tracebacks(done.stderr)
    if done.returncode not in (0, 1):
        yield f"status {done.returncode}: {done.stderr[-500:]}"
    if len(rows) + len(errors) != count or len({row["file_name"] for row in rows}) != len(rows):
        yield f"{count - len(rows) - len(errors)} images have neither a row nor a line"
    yield from left_over(folder, {"photos", "captions.json"})


def left_over(folder: Path, expected: set[str]) -> Iterator[str]:
    """What a folder holds beside the expected files."""
    for path in sorted(folder.iterdir()):
        if path.name not in expected:
            yield f"left behind: {path.name}"


# ---- files -----------------------------------------------------------------------------------------------------------


def files(folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Read mutated files of each kind: they are read or refused in one line."""
    kinds: dict[str, tuple[mutations.Mutate, mutations.Read]] = {}
    for name in ("exported", "results", "captions"):
        (folder / name).mkdir()
    (folder / "best.pt").write_bytes(checkpoint.SHIPPED.read_bytes())
    flags = ["--count", "12", "--image-size", "32", "--min-count", "1", "--quiet"]
    for call in (
        command("preprocess", "--dataset", "shapes", *flags, "--output", folder / "made.h5"),
        command("export", "--output", folder / "exported"),
    ):
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kinds["checkpoint"] = mutations.checkpoint_file(folder / "best.pt")
    kinds["data file"] = mutations.data_file(folder / "made.h5")
    kinds["export"] = mutations.export_folder(folder / "exported")
    kinds["results and references"] = mutations.results_files(folder / "results")
    kinds["captions of a data set"] = mutations.caption_files(
        folder / "captions", (PHOTOGRAPHS / "kitten.jpg").read_bytes()
    )
    counts = {name: Counter[str]() for name in kinds}
    for number in range(count):
        name = [*kinds][number % len(kinds)]
        mutate, read = kinds[name]
        mutate(draw)
        try:
            counts[name]["read" if mutations.outcome(read) == "read" else "refused"] += 1
        except Exception:
            yield f"mutation {number} of a {name}: {traceback.format_exc()[-1500:]}"
    for name, found in counts.items():
        print(f"{found.total()} of {name}: {found['read']} read, {found['refused']} refused in one line")


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Run the programs on files that decode to much: none takes more than MOST_BYTES, and none ends in a traceback."""
    (folder / "large.pt").write_bytes(hostile_files.oversized_checkpoint())
    hostile_files.data_sets(folder)
    photo, flags = PHOTOGRAPHS / "kitten.jpg", ("--min-count", "1", "--workers", "1", "--quiet")
    calls = {"a photograph, for comparison": command("caption", photo)}
    for name in hostile_files.IMAGES:
        calls[f"caption.py, {name}"] = command("caption", folder / name)
    calls["caption.py, checkpoint"] = command("caption", photo, "--checkpoint", folder / "large.pt")
    for name in ("sparse", "zip"):
        options = ("--dataset", "csv", "--root", folder / name, "--output", folder / f"{name}.h5", *flags)
        calls[f"preprocess.py, {name}"] = command("preprocess", *options)
    print("| file | kB | status | peak memory, GB | said |\n| --- | ---: | ---: | ---: | --- |")
    for name, call in calls.items():
        made = hostile_files.IMAGES.get(name.partition(", ")[2])
        if made:
            (folder / name.partition(", ")[2]).write_bytes(made())
        status, peak, log = measured(call, folder / "log.txt")
        size = f"{len(made()) / 1e3:.0f}" if made else ""
        said = log.splitlines()[-1].replace(f"{folder}/", "") if log else ""
        print(f"| {name} | {size} | {status} | {peak / 1e9:.2f} | {said[:120]} |", flush=True)
        if peak > MOST_BYTES:
            yield f"{name}: {peak / 1e9:.2f} GB"
        yield from tracebacks(log)
        if status not in (0, 1, 2):
            yield f"{name}: status {status}"


def measured(call: list[str], log: Path) -> tuple[int, int, str]:
    """Exit status, peak memory of the largest process in bytes, and output of a command."""
    with open(log, "wb") as file:
        process = subprocess.Popen(call, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit, log.read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
