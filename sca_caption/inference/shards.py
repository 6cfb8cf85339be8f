"""Shards: the photographs of a large job in portions, each of which has a result file of its own.

A photograph is a local file, a file in an object store (a URL that fsspec opens), or a row of a Parquet file that holds
its bytes, its path or its URL. The name of a shard's result file follows from the shard, so that a shard that is
captioned again replaces its own result.
"""

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sca_caption import images
from sca_caption.image_files import EXTENSIONS, HeldFile, ImageError, unreadable
from sca_caption.images import Transform
from sca_caption.runtime.errors import UserError, warn
from sca_caption.runtime.folders import walk

NAMES = "file_name"  # the column of names in Parquet files, which may be absent
ROWS_READ = 64  # of a Parquet file, in memory at once
KINDS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)


@dataclass(frozen=True)
class Shard:
    """Some photographs: those of `names`, or `count` rows of the file `parquet` from row `start` on."""

    names: tuple[str, ...] = ()
    parquet: str = ""
    column: str = ""
    start: int = 0
    count: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))  # ASCII keeps bytes of names that are not UTF-8

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        return cls(**values | {"names": tuple(values["names"])})

    @property
    def stem(self) -> str:
        """The name of the result file, without its extension."""
        return "part-" + hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self.names) or self.count


@dataclass(frozen=True)
class Photograph:
    """name: in the result. source: a path or URL, or the bytes of an image file; any other value cannot be loaded."""

    name: str
    source: Any

    def load(self, transform: Transform) -> np.ndarray:
        """The image at model size, uint8 (S, S, 3). Raises ImageError."""
        source = self.source
        if isinstance(source, str) and not is_url(source):
            return images.load(source, transform)
        if not isinstance(source, str | bytes):
            raise ImageError(self.name, f"{source!r:.40} instead of an image; give bytes, a path or a URL")
        data = read_url(source) if isinstance(source, str) else source
        return images.load(HeldFile(data, self.name), transform)


def is_url(name: str) -> bool:
    return "://" in name


def extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def printable(name: str) -> str:
    """A name as text: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_url(url: str) -> bytes:
    """The contents of a file. Raises ImageError, and ImportError if the package of this kind of store is missing."""
    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except ImportError:
        raise
    except FileNotFoundError as error:
        raise ImageError(url, unreadable(error)) from error
    except Exception as error:  # every store's package has its own
        raise ImageError(
            url, f"cannot be read ({_reason(error)}); check the address and the access"
        ) from error


def find_inputs(inputs: Iterable[str], passed_over: str) -> tuple[list[str], list[str]]:
    """The images and the Parquet files of paths and URLs: each once, folders searched, local paths absolute.

    passed_over: a folder that is not searched. Raises UserError for an input without any of them.
    """
    found: dict[str, None] = {}
    for name in inputs:
        files = [
            file
            for file in (_in_store(name) if is_url(name) else _on_disk(Path(name).absolute()))
            if extension(file) in (*EXTENSIONS, ".parquet") and not file.startswith(f"{passed_over}/")
        ]
        if not files:
            raise UserError(f"{name}: no images and no Parquet files; give a folder or files of these kinds")
        found |= dict.fromkeys(files)
    tables = [file for file in found if extension(file) == ".parquet"]
    return [file for file in found if extension(file) != ".parquet"], tables


def _on_disk(path: Path) -> list[str]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if not path.is_dir():
        return [str(path)]
    files = walk(path, lambda folder, error: warn(f"{folder} cannot be listed ({error.strerror})"))
    return [str(path / name) for name, _ in files]


def _in_store(url: str) -> list[str]:
    try:
        store, path = fsspec.url_to_fs(url)
        if extension(url) in (*EXTENSIONS, ".parquet"):
            return [url]
        return [store.unstrip_protocol(file) for file in sorted(store.find(path))]
    except ImportError as error:
        raise UserError(f"{url} cannot be opened ({_reason(error)}); do so on all machines") from error
    except Exception as error:
        raise UserError(
            f"{url} cannot be listed ({_reason(error)}); check the address and the access"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def shards_of_names(names: Sequence[str], size: int) -> list[Shard]:
    return [Shard(tuple(names[start : start + size])) for start in range(0, len(names), size)]


def shards_of_parquet(path: str, column: str, size: int) -> list[Shard]:
    """The shards of a Parquet file. Raises UserError if it cannot be read or its `column` cannot hold images."""
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
            schema, rows = table.schema_arrow, table.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: no readable Parquet file ({_reason(error)}); get it again") from error
    if column not in schema.names:
        raise UserError(
            f"{path}: no column {column!r}, only {', '.join(schema.names)}; name one with --column"
        )
    kind = schema.field(column).type
    # Data sets of Hugging Face have structures of bytes and path.
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {"bytes": kind}
    if not any(fits(fields.get("bytes", pa.null())) for fits in KINDS):
        raise UserError(
            f"{path}: column {column!r} has {kind}; name one of bytes, paths or URLs with --column"
        )
    return [Shard((), path, column, start, min(size, rows - start)) for start in range(0, rows, size)]


def photographs(shard: Shard) -> Iterator[Photograph]:
    """The photographs of a shard; those of a Parquet file are read a few rows at a time."""
    if not shard.parquet:
        yield from (Photograph(printable(name), name) for name in shard.names)
        return
    with fsspec.open(shard.parquet, "rb") as file, pq.ParquetFile(file) as table:
        columns = [name for name in table.schema_arrow.names if name in (shard.column, NAMES)]
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        starts, end = [sum(sizes[:group]) for group in range(len(sizes))], shard.start + shard.count
        groups = [i for i, row in enumerate(starts) if row < end and row + sizes[i] > shard.start]
        row = starts[groups[0]]
        for batch in table.iter_batches(ROWS_READ, row_groups=groups, columns=columns):
            first, stop = max(row, shard.start), min(row + len(batch), end)
            values = batch.slice(first - row, max(0, stop - first)).to_pylist()
            yield from (_photograph(shard, *each) for each in enumerate(values, first))
            row += len(batch)


def _photograph(shard: Shard, row: int, values: dict[str, Any]) -> Photograph:
    """The photograph of a row. Without a name, it has its path or URL, or the file's with the number of the row."""
    source, name = values[shard.column], values.get(NAMES)
    if isinstance(source, dict):
        name, source = name or source.get("path"), source["bytes"] or source.get("path")
    if isinstance(source, str) and source and not is_url(source):
        source = posixpath.join(posixpath.dirname(shard.parquet), source)
    named = name or (source if isinstance(source, str) else None)
    return Photograph(str(named or f"{shard.parquet}#{row}"), source)
