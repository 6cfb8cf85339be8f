"""Captioning past one machine: Ray Data hands shards of photographs to actors that hold a CaptionPipeline.

An actor writes the result of a shard as one file when the shard is done: one row per photograph, with a caption and its
score or with an error. Ray restarts actors that die and hands out their shards again; a shard that is captioned again
replaces its own file. So each photograph is in the result once.
"""

import io
import json
import logging
import os
import posixpath
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from fsspec.implementations.local import LocalFileSystem

from sca_caption.checkpoint import fingerprint
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.captions import Result
from sca_caption.inference.journal import require_same
from sca_caption.inference.shards import Photograph, Shard, photographs
from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.errors import INVALID, UserError
from sca_caption.runtime.json_text import parse_json

SETTINGS = "run.json"
TEXT, NUMBER = pa.string(), pa.float64()
SCHEMA = {"file_name": TEXT, "caption": TEXT, "score": NUMBER, "confidence": NUMBER, "error": TEXT}
TIMEOUT = 10  # seconds in which the head of a cluster has to answer


@dataclass(frozen=True)
class ResultFolder:
    """The result in a local folder or an object store: part-*.parquet or part-*.jsonl, and the settings of the run."""

    url: str
    format: str = "parquet"

    def write(self, name: str, data: bytes) -> None:
        """Write a file; a killed process leaves either all of it or none."""
        store, folder = fsspec.url_to_fs(self.url)
        path = posixpath.join(folder, name)
        if isinstance(store, LocalFileSystem):
            with atomic_write(path) as temporary:
                temporary.write_bytes(data)
        else:
            store.pipe_file(path, data)  # object stores show an object when it is complete

    def write_part(self, stem: str, rows: list[dict]) -> None:
        if self.format == "jsonl":
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            data = "".join(lines).encode()
        else:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, pa.schema(SCHEMA)), buffer)
            data = buffer.getvalue()
        self.write(f"{stem}.{self.format}", data)

    def parts(self, settings: dict) -> list[str]:
        """The parts of the run in the folder, or none. Raises UserError if it has other settings than this one."""
        try:
            store, folder = fsspec.url_to_fs(self.url)
            if not store.exists(folder):
                return []
            there = {posixpath.basename(path) for path in store.ls(folder, detail=False)}
            if SETTINGS in there:
                found = parse_json(store.cat_file(posixpath.join(folder, SETTINGS)))
                require_same(Path(folder, SETTINGS), found, settings, "--output")
            elif there:
                raise UserError(f"--output {self.url} has other files; give a new or an empty folder")
        except (UserError, ImportError):
            raise
        except INVALID as error:
            raise UserError(f"--output {self.url} cannot be used ({error}); give another folder") from error
        return sorted(name for name in there if name.startswith("part-") and name.endswith(self.format))

    def begin(self, settings: dict) -> None:
        """Make the folder of a run. Raises UserError if it cannot be made."""
        try:
            store, folder = fsspec.url_to_fs(self.url)
            store.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {self.url} cannot be made ({error}); give another folder") from error
        self.write(SETTINGS, json.dumps(settings, indent=1).encode())

    def names(self, part: str) -> list[str]:
        """The names of the photographs of a part."""
        store, folder = fsspec.url_to_fs(self.url)
        with store.open(posixpath.join(folder, part), "rb") as file:
            if self.format == "jsonl":
                return [parse_json(line)["file_name"] for line in file]
            return pq.read_table(file, columns=["file_name"])["file_name"].to_pylist()


@dataclass(frozen=True)
class Job:
    """What every actor has to know. options: keywords of `CaptionPipeline.load`. threads: of an actor."""

    checkpoint: Path | None
    fingerprint: str
    options: dict[str, Any]
    threads: int
    output: ResultFolder


class ShardCaptioner:
    """What an actor holds: a CaptionPipeline, loaded once. Raises UserError if its machine has another checkpoint."""

    def __init__(self, job: Job):
        torch.set_num_threads(job.threads)
        self.job = job
        try:
            found = fingerprint(job.checkpoint)
        except OSError as error:
            raise UserError(
                f"--checkpoint {job.checkpoint} is not on all machines ({error.strerror})"
            ) from error
        if found != job.fingerprint:
            raise UserError(
                f"--checkpoint {job.checkpoint} differs between machines; copy one to all of them"
            )
        self.pipeline = CaptionPipeline.load(job.checkpoint, **job.options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Caption shards, given as JSON in the column "item". Returns how many photographs have captions and errors."""
        captioned, failed = [], []
        for shard in map(Shard.from_json, batch["item"]):
            rows = self.rows(shard)
            self.job.output.write_part(shard.stem, rows)
            failed.append(sum(row["error"] is not None for row in rows))
            captioned.append(len(rows) - failed[-1])
        return {"captioned": captioned, "failed": failed}

    def rows(self, shard: Shard) -> list[dict]:
        def load(photograph: Photograph) -> Any:
            return photograph.load(self.pipeline.transform)

        return [row(result) for result in self.pipeline.stream(photographs(shard), load)]


def row(result: Result) -> dict:
    """A row of the result: see SCHEMA."""
    values = dict.fromkeys(SCHEMA) | {"file_name": result.item.name}
    if result.error:
        return values | {"error": getattr(result.error, "reason", str(result.error))}
    best = result.captions[0]
    confidence = None if best.confidence is None else round(best.confidence, 4)
    return values | {"caption": best.text, "score": round(best.score, 4), "confidence": confidence}


def connect(address: str | None) -> None:
    """Connect to the cluster whose head is at host:port, or start Ray on this machine. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors come as exceptions too
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, **quiet)
            return
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if address != "auto":  # Ray itself tries for a minute
            socket.create_connection((host, int(port)), TIMEOUT).close()
        ray.init(address, **quiet)
    except Exception as error:  # Ray raises many kinds, plain Exception too
        reason = " ".join(str(error).split())[:200]
        if address is None:
            raise UserError(f"Ray does not start on this machine ({reason}); see `ray start`") from error
        raise UserError(
            f"--address {address}: no Ray cluster answers ({reason}); start one with `ray start --head`"
        ) from error


def caption_shards(
    job: Job, shards: Sequence[Shard], workers: int | None, gpus: float
) -> Iterator[tuple[int, int]]:
    """Caption all shards on the cluster that Ray is connected to. Yields (captioned, failed) for each.

    workers: actors (default: as many as the CPUs allow). gpus: of an actor. Raises UserError for more threads or GPUs per
    actor than any machine has, and for errors that stop an actor.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = [
        min(
            int(each.get(name, 0) / needed)
            for name, needed in (("CPU", job.threads), ("GPU", gpus))
            if needed
        )
        for each in machines
    ]
    if not sum(places):
        found = max((each.get("CPU", 0), each.get("GPU", 0)) for each in machines)
        raise UserError(
            f"--threads {job.threads}, --gpus {gpus:g}: more than any machine of the cluster has, "
            f"{found[0]:g} CPUs and {found[1]:g} GPUs"
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    most = min(workers or sum(places), len(shards))
    done = ray.data.from_items(
        [shard.to_json() for shard in shards], override_num_blocks=len(shards)
    ).map_batches(
        ShardCaptioner,
        fn_constructor_args=[job],
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
        num_cpus=job.threads,
        num_gpus=gpus,
    )
    try:
        for counts in done.iter_rows():
            yield int(counts["captioned"]), int(counts["failed"])
    except ray.exceptions.RayError as error:
        raise cause_of(error) from error


def cause_of(error: BaseException) -> Exception:
    """The error of a user or of an import that stopped an actor; for others a UserError with their last line."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, UserError | ImportError):
            return cause
        cause = inner
    last = str(error).strip().splitlines()[-1]
    return UserError(f"Ray stopped ({last:.200}); what is done is kept, run the command again")
