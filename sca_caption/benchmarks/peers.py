"""Other captioners beside this one: BLIP-base, GIT-base, and ResNet-101 with soft attention (see `peer_models`).

All caption the same photographs with the same number of threads, in turn, each measurement in a process of its own:

first caption: the whole program for one photograph, from the start of Python, with the files in the disk's cache.
images per second: without loading, one photograph at a time and in batches, each with the beam size of its authors.
processor: seconds of all threads per image, which other work on the machine disturbs less.
memory: the peak resident memory of the process. disk: the files of the weights, float32 for the peers.

The peers have random weights, written to a temporary folder, unless --blip or --git names a folder or a model of the
Hugging Face hub. Random weights never end a caption: captions get --tokens tokens, about as many as captions of COCO
have. Trained models, this one among them, end captions themselves. The tables show medians over rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from sca_caption.benchmarks.captioning import CAPTION
from sca_caption.benchmarks.peer_models import BATCH_SIZE, PEERS
from sca_caption.checkpoint import SHIPPED
from sca_caption.cli.parser import Parser, program
from sca_caption.config import require
from sca_caption.images import find_images
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import install_command

EPILOG = """\
examples:
  python -m sca_caption.benchmarks.peers photos/
  python -m sca_caption.benchmarks.peers photos/ --rounds 3 --blip Salesforce/blip-image-captioning-base
"""
MODES = ("first", "singly", "batches")


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.peers", description=__doc__, epilog=EPILOG)
    p.add_argument("folder", type=Path, metavar="PATH", help="folder of readable photographs")
    p.add_argument(
        "--images", type=int, default=20, metavar="N", help="photographs of it (default: %(default)s)"
    )
    p.add_argument("--tokens", type=int, default=10, metavar="N", help="of captions of random weights "
                   "(default: %(default)s)")  # fmt: skip
    p.add_argument("--threads", type=int, default=2, metavar="N", help="(default: %(default)s)")
    p.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="timings of each (default: %(default)s)"
    )
    p.add_argument(
        "--checkpoint", type=Path, default=SHIPPED, metavar="FILE", help="(default: the shipped model)"
    )
    p.add_argument("--blip", metavar="NAME", help="trained BLIP: a folder, or a name of the hub")
    p.add_argument("--git", metavar="NAME", help="trained GIT: a folder, or a name of the hub")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name in ("images", "tokens", "threads", "rounds"):
        require(arguments, name, getattr(arguments, name) >= 1, "at least 1")
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"the peers need transformers ({error}); run: {install_command('peers')}") from error
    paths = [str(path.absolute()) for path in find_images([arguments.folder])][: arguments.images]
    given = {"BLIP-base": arguments.blip, "GIT-base": arguments.git}
    with tempfile.TemporaryDirectory() as folder:
        models = {"sca_caption": (str(arguments.checkpoint.absolute()), 0)}
        for name in PEERS:
            models[name] = (
                (given[name], 0) if given.get(name) else (written(name, Path(folder)), arguments.tokens)
            )
        found = compare(models, paths, arguments.threads, arguments.rounds)
        print(f"{len(paths)} images, {arguments.threads} threads, batches of {BATCH_SIZE}; captions of random weights "
              f"have {arguments.tokens} tokens\n")  # fmt: skip
        show(found, models)
    return 0


def written(name: str, folder: Path) -> str:
    """The folder of a peer with random weights."""
    place = folder / name.replace(" ", "-").replace(",", "")
    torch.manual_seed(0)
    PEERS[name].save(PEERS[name].build(), place)
    return str(place)


def compare(
    models: Mapping[str, tuple[str, int]], paths: list[str], threads: int, rounds: int
) -> dict[str, dict[str, list[dict]]]:
    """Measurements of every model and mode, round after round; of "first" also the seconds of the whole process.

    models: name -> (its weights, tokens of captions or 0). Raises UserError if a process fails.
    """
    found: dict[str, dict[str, list[dict]]] = {name: {} for name in models}
    for turn in range(rounds + 1):
        for name, (weights, tokens) in models.items():
            for mode in MODES if turn else ("first",):  # once before, to fill the disk's cache
                if mode == "batches" and name != "sca_caption" and not PEERS[name].batches:
                    continue
                measured = measure(
                    name, mode, weights, tokens, paths[:1] if mode == "first" else paths, threads
                )
                if turn:
                    found[name].setdefault(mode, []).append(measured)
    return found


def measure(name: str, mode: str, weights: str, tokens: int, paths: list[str], threads: int) -> dict:
    command = ["-m", "sca_caption.benchmarks.peer_models", name, mode, weights, str(tokens), *paths]
    if name == "sca_caption" and mode == "first":
        command = ["-c", CAPTION, *paths, "--device", "cpu", "--checkpoint", weights]
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CUDA_VISIBLE_DEVICES": "",
    }
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **settings}, capture_output=True, text=True
    )
    whole = time.perf_counter() - began
    if done.returncode:
        raise UserError(f"{name} failed: {' '.join(done.stderr.split())[-300:]}")
    if name == "sca_caption" and mode == "first":
        return {"whole": whole}
    return {"whole": whole, **json.loads(done.stdout.splitlines()[-1])}


def show(found: Mapping[str, Mapping[str, list[dict]]], models: Mapping[str, tuple[str, int]]) -> None:
    def median(name: str, mode: str, key: str) -> float:
        values = [each[key] for each in found[name].get(mode, [])]
        return statistics.median(values) if values else float("nan")

    print(
        "| | parameters | disk | first caption | images/s singly | in batches | "
        "processor singly | in batches | memory singly | in batches |"
    )
    print("| --- |" + " ---: |" * 9)
    for name, (weights, _) in models.items():
        cells = [
            f"{median(name, 'singly', 'parameters') / 1e6:.0f} M",
            f"{size_of(weights) / 1e6:.3g} MB",
            f"{median(name, 'first', 'whole'):.2f} s",
            *(f"{1 / median(name, mode, 'seconds'):.3g}" for mode in MODES[1:]),
            *(f"{median(name, mode, 'processor'):.3g} s" for mode in MODES[1:]),
            *(f"{median(name, mode, 'peak') / 1e6:.0f} MB" for mode in MODES[1:]),
        ]
        print(f"| {name} | {' | '.join('-' if 'nan' in cell else cell for cell in cells)} |")


def size_of(weights: str) -> float:
    """Bytes of a checkpoint, or of the weights in a folder; not a number for a name of the hub."""
    path = Path(weights)
    if path.is_file():
        return path.stat().st_size
    files = [*path.glob("*.safetensors")] or [*path.glob("*.bin")]
    return sum(file.stat().st_size for file in files) if files else float("nan")


if __name__ == "__main__":
    raise SystemExit(main())
