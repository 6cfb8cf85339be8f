"""Makes the data file (schema in store.py) from a dataset's records: parallel, in bounded memory, all or nothing."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from tqdm import tqdm

from sca_caption.errors import UserError, choice
from sca_caption.images import ImageError, Transform, load, orientation
from sca_caption.store import ENCODINGS, FORMAT, SPLITS, VERSION
from sca_caption.vocab import TOKENIZER, Vocabulary, has_words, tokenize

BUFFER = 4 << 20  # bytes gathered before they are written to a dataset
CHUNK = 256 << 10  # bytes of one HDF5 chunk of JPEG data: some twenty images
AHEAD = 8  # images that each worker may be ahead of the writer
BATCH = 32  # images encoded to features at once
LONGEST = 100  # words of a caption that are kept as tokens

Encode = Callable[[np.ndarray], Sequence[np.ndarray]]  # uint8 (B, S, S, 3) -> arrays (B, ...)


@dataclasses.dataclass
class Report:
    """What went into a data file and what did not."""

    path: Path
    source: str
    transform: Transform
    encoding: str
    images: dict[str, int]  # by split
    captions: dict[str, int]
    coverage: dict[str, float]  # share of the words of a split that the vocabulary has, 0 to 1
    vocabulary: int  # words, the specials not counted
    min_count: int
    longest: int  # words
    shortened: int  # captions cut to LONGEST words
    skipped: list[tuple[str, str, str]]  # (image, kind, reason)
    problems: list[tuple[str, str]]  # (item, reason), found while the captions were read
    bytes: int
    seconds: float

    def __str__(self) -> str:
        size = self.transform.size
        lines = [
            f"{self.path}: {self.bytes / 1e6:.1f} MB in {self.seconds:.0f} s",
            f"source      {self.source}",
            f"images      {_by_split(self.images)}; {size}x{size} ({self.transform.mode}), stored as {self.encoding}",
            f"captions    {_by_split(self.captions)}; the longest has {self.longest} words",
            f"vocabulary  {self.vocabulary} words seen at least {self.min_count} times in train; they cover "
            + ", ".join(f"{share:.2%} of {split}'s words" for split, share in self.coverage.items()),
        ]
        if self.shortened:
            lines.append(f"shortened   {self.shortened} captions to their first {LONGEST} words")
        kinds = collections.Counter(kind for _, kind, _ in self.skipped)
        lines.append(f"skipped     {len(self.skipped)} images{_reasons(kinds)}")
        if self.problems:
            kinds = collections.Counter(reason for _, reason in self.problems)
            lines.append(f"notes       {len(self.problems)} on the captions{_reasons(kinds)}")
        return "\n".join(lines)


def write(
    source: Any,
    path: str | os.PathLike,
    *,
    transform: Transform | None = None,
    encoding: str = "jpeg",
    min_count: int = 5,
    quality: int = 90,
    workers: int | None = None,
    max_skipped: int = 100,
    encode: Encode | None = None,
    features_of: dict | None = None,
) -> Report:
    """Make the data file `path` from a sources.Source, or replace it; on any failure `path` stays as it was.

    Args:
        transform: how images are brought to size; default Transform().
        encoding: "jpeg", "raw" or "features".
        min_count: times that train must have a word for it to be in the vocabulary.
        quality: of JPEG, 1 to 95. An upright RGB JPEG that has the size already is stored as it is.
        workers: processes that read and resize images; 1 does it in this process; default one a core.
        max_skipped: unusable images that are tolerated.
        encode: for "features": uint8 (B, S, S, 3) to arrays (B, ...); runs in this process.
        features_of: describes what `encode` computes; stored as JSON.

    Raises UserError: too many unusable images, nothing to train on, a disk that is full.
    """
    began = time.monotonic()
    transform, path = transform or Transform(), Path(path)
    choice(encoding, ENCODINGS, "encoding")
    assert (encoding == "features") == (encode is not None), "encode is for the encoding 'features'"
    skipped: list[tuple[str, str, str]] = []

    def skip(name: str, kind: str, reason: str) -> None:
        skipped.append((name, kind, reason))
        unusable = sum(kind == UNUSABLE for _, kind, _ in skipped)
        if kind == UNUSABLE and unusable > max_skipped:
            raise UserError(
                f"{unusable} images are missing or damaged, and --max-skipped allows {max_skipped}; the last is "
                f"{name} ({reason}); mend them or raise --max-skipped"
            )

    wanted = _wanted(source.records, skip)
    problems = list(source.problems)
    with _replacing(path) as file:
        file.attrs.update(format=FORMAT, format_version=VERSION, complete=False)
        prepare = functools.partial(_prepare, transform=transform, encoding=encoding, quality=quality)
        images = _image_columns(file, encoding, transform, encode, features_of)
        kept = []
        with contextlib.closing(_in_order(prepare, [record.read for record in wanted], workers)) as results:
            bar = tqdm(zip(wanted, results, strict=True), total=len(wanted), unit="img", disable=None)
            for record, result in bar:
                if isinstance(result, str):
                    skip(record.file_name, UNUSABLE, result)
                else:
                    images.add(result)
                    kept.append(record)
        images.finish()
        captions = _write_captions(file, kept, min_count)
        _write_table(file["images"], kept)
        file.attrs.update(
            source=source.description,
            transform=json.dumps(transform.to_dict()),
            encoding=encoding,
            min_count=min_count,
            tokenizer=TOKENIZER,
            skipped=json.dumps([(name, reason) for name, _, reason in skipped] + problems),
        )
        file.flush()
        file.attrs["complete"] = True
    return Report(
        path=path,
        source=source.description,
        transform=transform,
        encoding=encoding,
        images={split: sum(record.split == split for record in kept) for split in SPLITS},
        min_count=min_count,
        skipped=skipped,
        problems=problems,
        bytes=path.stat().st_size,
        seconds=time.monotonic() - began,
        **captions,
    )


UNUSABLE = "missing or damaged"


def _wanted(records: Sequence, skip: Callable[[str, str, str], None]) -> list:
    """The records to store; a second record of the same image and images without words are skipped."""
    wanted, seen = [], set()
    for record in records:
        if record.file_name in seen:
            skip(record.file_name, "duplicate", "listed twice; the first is kept")
        elif not any(map(has_words, record.captions)):
            skip(record.file_name, "no caption", "no caption with a word in it")
        else:
            wanted.append(record)
        seen.add(record.file_name)
    return wanted


def _prepare(read: Callable[[], bytes], *, transform: Transform, encoding: str, quality: int):
    """One image as it will be stored: bytes of a JPEG or uint8 (S, S, 3); or the reason, a str, why it cannot be."""
    try:
        data = read()
        if encoding == "jpeg" and _is_finished(data, transform.size):
            load(data, transform)  # raises where it is damaged
            return data
        pixels = load(data, transform)
    except ImageError as error:
        return error.reason
    except OSError as error:
        return f"cannot be read ({error})"
    if encoding != "jpeg":
        return pixels
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _is_finished(data: bytes, size: int) -> bool:
    """Whether `data` is an upright RGB JPEG of model size, which a second compression would only harm."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size)) and orientation(image) == 1
    except Exception:  # load() will say what is wrong with it
        return False


def _in_order(function: Callable, items: list, workers: int | None) -> Iterator:
    """map(function, items) in worker processes that stay at most AHEAD items each ahead of the caller."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers <= 1:
        yield from map(function, items)
        return
    pool = concurrent.futures.ProcessPoolExecutor(workers, initializer=_leave_interrupts_to_parent)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, most often for want of memory; try --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Column:
    """A dataset that grows, written in blocks of about BUFFER bytes."""

    def __init__(self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str, chunk: int):
        self.dataset = group.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape)
        )
        self.rows: list[np.ndarray] = []
        self.waiting = 0

    def add(self, rows: np.ndarray) -> None:
        self.rows.append(rows)
        self.waiting += rows.nbytes
        if self.waiting >= BUFFER:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            block = np.concatenate(self.rows)
            start = len(self.dataset)
            self.dataset.resize(start + len(block), axis=0)
            self.dataset[start:] = block
            self.rows, self.waiting = [], 0


class _Jpegs:
    def __init__(self, file: h5py.File):
        self.group = file.require_group("images")
        self.data = _Column(self.group, "data", (), "uint8", CHUNK)
        self.offsets = [0]

    def add(self, data: bytes) -> None:
        self.data.add(np.frombuffer(data, np.uint8))
        self.offsets.append(self.offsets[-1] + len(data))

    def finish(self) -> None:
        self.data.flush()
        self.group["offsets"] = np.array(self.offsets, np.int64)


class _Pixels:
    def __init__(self, file: h5py.File, size: int):
        self.pixels = _Column(file.require_group("images"), "pixels", (size, size, 3), "uint8", 1)

    def add(self, pixels: np.ndarray) -> None:
        self.pixels.add(pixels[None])

    def finish(self) -> None:
        self.pixels.flush()


class _Features:
    def __init__(self, file: h5py.File, encode: Encode, features_of: dict | None):
        file.require_group("images")
        self.group, self.encode = file.require_group("features"), encode
        self.group.attrs["features_of"] = json.dumps(features_of)
        self.batch: list[np.ndarray] = []
        self.columns: list[_Column] = []

    def add(self, pixels: np.ndarray) -> None:
        self.batch.append(pixels)
        if len(self.batch) == BATCH:
            self._encode()

    def finish(self) -> None:
        if self.batch:
            self._encode()
        for column in self.columns:
            column.flush()

    def _encode(self) -> None:
        features = [np.asarray(array).astype(np.float16) for array in self.encode(np.stack(self.batch))]
        if not self.columns:
            self.columns = [
                _Column(self.group, str(k), array.shape[1:], "float16", 1) for k, array in enumerate(features)
            ]
        for column, array in zip(self.columns, features, strict=True):
            column.add(array)
        self.batch = []


def _image_columns(file, encoding, transform, encode, features_of) -> _Jpegs | _Pixels | _Features:
    if encoding == "jpeg":
        return _Jpegs(file)
    if encoding == "raw":
        return _Pixels(file, transform.size)
    return _Features(file, encode, features_of)


def _write_table(group: h5py.Group, records: list) -> None:
    ids = [record.image_id for record in records]
    group["image_id"] = np.array(range(len(ids)) if None in ids else ids, np.int64)
    group["split"] = np.array([SPLITS.index(record.split) for record in records], np.uint8)
    names = [record.file_name.encode("utf-8", "surrogateescape") for record in records]
    group.create_dataset("file_name", data=names, dtype=h5py.string_dtype())


def _write_captions(file: h5py.File, records: list, min_count: int) -> dict:
    """Write captions/ and the vocabulary; returns the Report's fields on them."""
    texts: list[str] = []
    tokens: list[list[str]] = []
    image: list[int] = []
    for row, record in enumerate(tqdm(records, unit="img", desc="words", disable=None)):
        for caption in record.captions:
            if has_words(caption):
                texts.append(" ".join(caption.replace("\0", " ").split()))
                tokens.append([sys.intern(token) for token in tokenize(caption)])
                image.append(row)
    split_of = [records[row].split for row in image]
    vocabulary = Vocabulary.build(
        (words for words, split in zip(tokens, split_of, strict=True) if split == "train"), min_count
    )
    if "train" not in split_of:
        raise UserError(
            f"nothing to train on: none of the {len(records)} usable images is in the train split; "
            "check the split lists and the skipped images"
        )
    if len(vocabulary.words) == 4:
        raise UserError(f"no word is seen {min_count} times in train; lower --min-count")
    known, total = collections.Counter(), collections.Counter()
    for words, split in zip(tokens, split_of, strict=True):
        total[split] += len(words)
        known[split] += sum(word in vocabulary for word in words)

    length = np.array([min(len(words), LONGEST) for words in tokens], np.int32)
    dtype = np.uint16 if len(vocabulary) < 1 << 16 else np.uint32
    ids = np.zeros((len(tokens), length.max()), dtype)
    for row, words in enumerate(tokens):
        ids[row, : length[row]] = vocabulary.encode(words[:LONGEST])
    group = file.create_group("captions")
    group.create_dataset("tokens", data=ids, chunks=True, compression="gzip", compression_opts=1)
    group["length"] = length
    group["image"] = np.array(image, np.int32)
    group.create_dataset("text", data=[text.encode("utf-8", "replace") for text in texts], dtype=h5py.string_dtype())
    file.attrs["vocabulary"] = json.dumps(vocabulary.words[4:])
    return {
        "captions": {split: split_of.count(split) for split in SPLITS},
        "coverage": {split: known[split] / total[split] for split in SPLITS if total[split]},
        "vocabulary": len(vocabulary) - 4,
        "longest": max(map(len, tokens)),
        "shortened": sum(len(words) > LONGEST for words in tokens),
    }


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that takes the place of `path` when the block ends well and vanishes when it does not."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file in it, such as {path / 'data.h5'}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w", libver=("earliest", "v110")) as file:
            yield file
        with open(partial, "rb") as finished:
            os.fsync(finished.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # h5py raises either; nothing else in the block does
        raise UserError(_write_failure(path, error)) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_failure(path: Path, error: Exception) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        free = shutil.disk_usage(path.parent).free
        return f"cannot write {path}: the disk is full ({free / 1e6:.0f} MB free); free space or choose another --output"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"cannot write {path}: {reason}; choose another --output"


def _by_split(counts: dict[str, int]) -> str:
    return f"{sum(counts.values())}: " + ", ".join(f"{split} {count}" for split, count in counts.items())


def _reasons(kinds: collections.Counter) -> str:
    listed = [f"{count} {kind}" for kind, count in kinds.most_common(8)]
    if len(kinds) > 8:
        listed.append(f"{sum(kinds.values()) - sum(count for _, count in kinds.most_common(8))} for other reasons")
    return ": " + "; ".join(listed) if listed else ""
