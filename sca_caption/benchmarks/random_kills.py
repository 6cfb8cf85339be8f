"""The programs, killed at random moments and run again: what is left, and whether what is made is as without kills."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree

from sca_caption import checkpoint
from sca_caption.benchmarks import mutations
from sca_caption.benchmarks.programs import command, encoded_photographs, tracebacks
from sca_caption.cli import caption, preprocess, train

WAIT = 30  # seconds in which workers notice that their program has ended


def kills(folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Kill each program at random moments and run it again, until what it makes is complete: as without a kill."""
    photos, data = folder / "photos", folder / "shapes.h5"
    photos.mkdir()
    for number, (name, whole) in enumerate([*encoded_photographs().items()] * 3):
        (photos / f"{number} {name}").write_bytes(whole)
    shapes: list[str | Path] = [
        "--dataset", "shapes", "--count", "60", "--image-size", "64", "--min-count", "1", "--workers", "2", "--quiet",
    ]  # fmt: skip
    training: list[str | Path] = [
        "--dataset", "shapes", "--backbone-weights", "none", "--epochs", "3", "--batch-size", "16", "--workers", "1",
        "--layers", "1", "--embedding-size", "32", "--lstm-size", "64", "--attention-width", "16", "--quiet",
        "--data", data, "--output",
    ]  # fmt: skip
    programs: list[tuple[str, Callable[..., int], list[str | Path], str, list[str]]] = [
        ("preprocess.py", preprocess.main, [*shapes, "--output"], "made.h5", []),
        ("train.py", train.main, training, "run", ["--resume"]),
        ("caption.py", caption.main, [photos, "--beam-size", "1", "--output"], "captions.json", ["--resume"]),
    ]
    subprocess.run(command("preprocess", *shapes, "--output", data), check=True, stdout=subprocess.DEVNULL)
    for index, (name, main, argv, output, resume) in enumerate(programs):
        share = count // len(programs) + (index < count % len(programs))
        yield from kill_at_random(name, main, argv, output, resume, folder / name, share, draw)


def kill_at_random(
    name: str,
    main: Callable[..., int],
    argv: list[str | Path],
    output: str,
    resume: list[str],
    folder: Path,
    count: int,
    draw: random.Random,
) -> Iterator[str]:
    """Kill `main` `count` times. `output`: what it writes in `folder`. `resume`: flags of every run but the first."""
    log, groups, killed, completed = folder.with_suffix(".log"), list[int](), 0, 0
    folder.mkdir()

    def begin() -> int:
        flags = resume if any(folder.iterdir()) else []
        groups.append(start(main, [*map(str, argv), str(folder / output), *flags], log))
        return groups[-1]

    began = time.monotonic()
    if (status := waited(begin(), 3600)) != 0:
        yield f"{name} ended with status {status} before any kill: {log.read_text()[-500:]}"
        return
    seconds, whole, names = time.monotonic() - began, contents(folder / output), names_in(folder)
    rmtree(folder)
    folder.mkdir()
    while killed < count or any(folder.iterdir()):
        process = begin()
        status = waited(process, draw.uniform(0, seconds) if killed < count else 3600)
        if status is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            killed += 1
            if (folder / output).exists():
                try:
                    contents(folder / output)
                except Exception:
                    yield f"half-written by {name}: {traceback.format_exc()[-1000:]}"
            continue
        completed += 1
        if status:
            yield f"{name} ended with status {status} after {killed} kills: {log.read_text()[-500:]}"
        elif contents(folder / output) != whole:
            yield f"{name} made other contents after {killed} kills than without"
        yield from (f"{name} left {each} behind" for each in sorted(names_in(folder) - names))
        rmtree(folder)
        folder.mkdir()
    print(
        f"{name}: {killed} kills in runs of {seconds:.0f} s, {completed} runs completed after them",
        flush=True,
    )
    yield from tracebacks(log.read_text(errors="replace"))
    until = time.monotonic() + WAIT
    for group in groups:
        while is_alive(group) and time.monotonic() < until:
            time.sleep(0.1)
        if is_alive(group):
            os.killpg(group, signal.SIGKILL)
            yield f"{name} left a process behind"


def start(main: Callable[..., int], argv: list[str], log: Path) -> int:
    """Run a program in a fork, whose imports are done, in a process group of its own. Returns the process's id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def is_alive(group: int) -> bool:
    """Whether a process group has processes."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def waited(process: int, seconds: float) -> int | None:
    """The exit status of a process, or None if it has not ended after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def names_in(folder: Path) -> set[str]:
    """Paths in a folder, without TensorBoard's, whose names have the time."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name}


def contents(path: Path) -> object:
    """What a program has written, to be compared. Raises an error if something is incomplete."""
    if path.is_dir():  # of training
        found = {each.name: checkpoint.load(each).model.state_dict() for each in sorted(path.glob("*.pt"))}
        return {
            name: {key: hashlib.sha256(value.numpy().tobytes()).digest() for key, value in tensors.items()}
            for name, tensors in found.items()
        }
    if path.suffix == ".h5":
        mutations.data_file(path)[1]()
        return path.read_bytes()
    return json.loads(path.read_bytes())
