"""Writes the data file (schema in hdf5_reader.py) from the records of a data set, completely or not at all."""

import collections
import contextlib
import dataclasses
import errno
import functools
import glob
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from sca_caption.datasets.hdf5_captions import MAX_WORDS, CaptionWriter
from sca_caption.datasets.hdf5_images import (
    Encode,
    FeatureWriter,
    JpegWriter,
    PixelWriter,
    deferred_interrupts,
    map_in_order,
    prepare_image,
)
from sca_caption.datasets.hdf5_reader import ENCODINGS, FORMAT, SPLITS, VERSION
from sca_caption.datasets.sources.records import Record, Source
from sca_caption.datasets.sources.texts import Texts
from sca_caption.images import Transform
from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.file_locks import lock
from sca_caption.vocab import TOKENIZER, Vocabulary, has_words


@dataclasses.dataclass
class Report:
    """Contents of a data file, and what was skipped. Its str is the summary that preprocess.py prints."""

    path: Path
    source: str
    transform: Transform
    encoding: str
    images: dict[str, int]  # by split
    captions: dict[str, int]
    coverage: dict[str, float]  # fraction of the words of a split that are in the vocabulary, 0 to 1
    vocabulary: int  # words, without special tokens
    min_count: int  # 0: the vocabulary of another file
    min_count_texts: int
    longest: int  # words in the longest caption
    truncated: int  # captions cut to their first MAX_WORDS words
    skipped: list[tuple[str, str, str]]  # (image, kind, reason)
    problems: list[tuple[str, str]]  # (item, reason) from reading the captions
    texts: Texts | None
    bytes: int
    seconds: float

    def __str__(self) -> str:
        size = self.transform.size
        lines = [
            f"{self.path}: {self.bytes / 1e6:.1f} MB in {self.seconds:.0f} s",
            f"source      {self.source}",
            f"images      {_by_split(self.images)}; {size}x{size} {self.transform.mode}, {self.encoding}",
            f"captions    {_by_split(self.captions)}; the longest has {self.longest} words",
            f"vocabulary  {self.vocabulary} words "
            + (
                f"with at least {self.min_count} occurrences in train"
                + (f" or {self.min_count_texts} in the texts" if self.texts else "")
                if self.min_count
                else "of another file"
            )
            + "; covered: "
            + ", ".join(f"{split} {share:.2%}" for split, share in self.coverage.items()),
        ]
        if self.texts:
            groups, left_out = self.texts.groups[-1] + 1, collections.Counter(self.texts.left_out)
            lines.append(
                f"texts       {len(self.texts.captions)} captions in {groups} groups kept; "
                f"{left_out.total()} left out{_reasons(left_out)}"
            )
        if self.truncated:
            lines.append(f"truncated   {self.truncated} captions to their first {MAX_WORDS} words")
        kinds = collections.Counter(kind for _, kind, _ in self.skipped)
        lines.append(f"skipped     {len(self.skipped)} images{_reasons(kinds)}")
        if self.problems:
            kinds = collections.Counter(reason for _, reason in self.problems)
            lines.append(f"notes       {len(self.problems)} on the captions{_reasons(kinds)}")
        return "\n".join(lines)


def write(
    source: Source,
    path: str | os.PathLike,
    *,
    transform: Transform | None = None,
    encoding: str = "jpeg",
    min_count: int = 5,
    min_count_texts: int = 50,
    vocabulary: Vocabulary | None = None,
    texts: Texts | None = None,
    quality: int = 90,
    workers: int | None = None,
    max_skipped: int = 100,
    encode: Encode | None = None,
    features_of: dict | None = None,
    on_skip: Callable[[str, str], None] | None = None,
    quiet: bool = False,
) -> Report:
    """Write the data file `path` of a data set, or replace it. After any error, `path` is unchanged.

    Args:
        transform: how images are resized; default Transform().
        encoding: "jpeg", "raw" or "features".
        min_count: least number of occurrences in train of a word of the vocabulary.
        min_count_texts: number of occurrences in the texts that also makes a word part of the vocabulary.
        vocabulary: an existing vocabulary to use instead of a new one.
        texts: captions without photographs.
        quality: of JPEG, 1 to 95. An upright RGB JPEG of the right size is stored unchanged.
        workers: processes that read and resize images; 1 uses this process; default one per core.
        max_skipped: largest accepted number of missing, damaged and unreadable images.
        encode: for "features": uint8 (B, S, S, 3) -> arrays (B, ...), called in this process.
        features_of: description of `encode`, stored as JSON.
        on_skip: called with the name and the reason of each skipped image when it is skipped.
        quiet: hide the progress bar, which is shown on terminals only.

    Raises UserError if more than `max_skipped` images cannot be used, if train has no images, or if `path` cannot be
    written.
    """
    began = time.monotonic()
    transform, path = transform or Transform(), Path(path)
    choice(encoding, ENCODINGS, "encoding")
    assert (encoding == "features") == (encode is not None), "encode is for the encoding 'features'"
    skipped: list[tuple[str, str, str]] = []

    def skip(record: Record, kind: str, reason: str) -> None:
        skipped.append((record.file_name, kind, reason))
        if on_skip is not None:
            on_skip(record.file_name, reason)

    wanted = _select_records(source.records, skip)
    _require_train(wanted, len(source.records))
    skipped_before = len(skipped)
    with contextlib.ExitStack() as stack:
        with deferred_interrupts():
            file, check = stack.enter_context(_atomic_hdf5(path))
            file.attrs.update(format=FORMAT, format_version=VERSION, complete=False)
            table = file.create_group("images")
            images: JpegWriter | PixelWriter | FeatureWriter
            if encoding == "jpeg":
                images = JpegWriter(file)
            elif encoding == "raw":
                images = PixelWriter(file, transform.size)
            else:
                assert encode is not None
                images = FeatureWriter(file, encode, features_of)
        kept: list[Record] = []
        captions = CaptionWriter(kept, texts)
        job = functools.partial(prepare_image, transform=transform, encoding=encoding, quality=quality)
        with contextlib.closing(map_in_order(job, (record.read for record in wanted), workers)) as results:
            for record, result in tqdm(
                zip(wanted, results, strict=True), "images", len(wanted), unit="img", disable=quiet or None
            ):
                if not isinstance(result, tuple):
                    images.add(result)
                    check()
                    kept.append(record)
                    captions.tokenize_some()
                    continue
                skip(record, *result)
                if len(skipped) - skipped_before > max_skipped:
                    raise UserError(
                        f"more than {max_skipped} images are missing or damaged, the last is {record.file_name} "
                        f"({result[1]}); nothing was written; repair them or raise --max-skipped"
                    )
        _require_train(kept, len(source.records))
        captions.finish()
        with deferred_interrupts():
            images.finish()
            splits = np.array([SPLITS.index(record.split) for record in kept], np.uint8)
            caption_fields = captions.write(file, splits, vocabulary or min_count, min_count_texts)
            problems = source.problems + captions.problems + (texts.problems if texts else [])
            _write_table(table, kept, splits)
            file.attrs.update(
                source=source.description,
                transform=json.dumps(transform.to_dict()),
                encoding=encoding,
                min_count=0 if vocabulary else min_count,
                tokenizer=TOKENIZER,
                skipped=json.dumps([(name, reason) for name, _, reason in skipped] + problems),
            )
            check()
            file.attrs["complete"] = True
    return Report(
        path=path,
        source=source.description,
        transform=transform,
        encoding=encoding,
        images={split: sum(record.split == split for record in kept) for split in SPLITS},
        min_count=0 if vocabulary else min_count,
        min_count_texts=min_count_texts,
        skipped=skipped,
        problems=problems,
        texts=texts,
        bytes=path.stat().st_size,
        seconds=time.monotonic() - began,
        **caption_fields,
    )


def _select_records(records: Sequence[Record], skip: Callable[[Record, str, str], None]) -> list[Record]:
    """The records to store. Skips images without words and further records of the same image."""
    wanted, seen = [], set()
    for record in records:
        if record.file_name in seen:
            skip(record, "duplicate", "listed twice; the first record is kept")
        elif not any(map(has_words, record.captions)):
            skip(record, "without a caption", "no caption with words")
        else:
            wanted.append(record)
        seen.add(record.file_name)
    return wanted


def _require_train(records: Sequence[Record], listed: int) -> None:
    """Raise UserError if no record is in the train split. listed: number of images in the data set."""
    if not any(record.split == "train" for record in records):
        raise UserError(
            f"no image to train on: {listed} images are listed and {len(records)} are usable, "
            "none of them in the train split; check the split lists and the skipped images"
        )


def _write_table(group: h5py.Group, records: Sequence[Record], splits: np.ndarray) -> None:
    """Write image_id, split and file_name of images/."""
    ids = [record.image_id for record in records]
    group["image_id"] = np.array(range(len(ids)) if None in ids else ids, np.int64)
    group["split"] = splits
    names = [record.file_name.encode("utf-8", "surrogateescape") for record in records]
    group.create_dataset("file_name", data=names, dtype=h5py.string_dtype())


@contextlib.contextmanager
def _atomic_hdf5(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A new HDF5 file that replaces `path` at the end of the block and is removed after an error.

    Yields the file and a function that raises the first write error, if there was one. Raises UserError if `path`
    cannot be written.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; give a file in it, such as {path / 'data.h5'}")
    output = None
    with atomic_write(path, ending="partial", make_folder=True) as partial:
        try:
            _remove_abandoned(path)
            with _OutputFile(partial) as output:
                with h5py.File(output, "w", libver=("earliest", "v110")) as file:  # readable since HDF5 1.10
                    yield file, output.check
                output.check()
                os.fsync(output.fileno())  # so that the file is complete after a power failure
        except (OSError, RuntimeError) as error:
            cause = output.error if output is not None and output.error else error
            if isinstance(cause, RuntimeError):
                raise
            raise _cannot_write(path, cause) from error


class _OutputFile(io.FileIO):
    """The file object of an h5py.File. Locked while it is open.

    Write errors are hidden from HDF5, because some make it crash when the program exits. The first error is kept for
    `check`, and nothing is written after it.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None
        with contextlib.suppress(OSError):  # file systems without locks
            lock(self, wait=True)

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        size = len(rest)
        try:
            while len(rest) and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0

    def check(self) -> None:
        """Raise the first write error, if there was one."""
        if self.error is not None:
            raise self.error


def _remove_abandoned(path: Path) -> None:
    """Remove partial files of `path` that a killed process left, which are no longer locked."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError), open(partial, "rb") as file:
            lock(file)  # raises OSError while another process writes the file, and where there are no locks
            partial.unlink()


def _cannot_write(path: Path, error: OSError) -> UserError:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(path.parent).free / 1e6
        return UserError(f"cannot write {path}: disk full ({free:.0f} MB free); free some or change --output")
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return UserError(f"cannot write {path}: {reason}; check the disk or change --output")


def _by_split(counts: dict[str, int]) -> str:
    return f"{sum(counts.values())}: " + ", ".join(f"{split} {count}" for split, count in counts.items())


def _reasons(kinds: collections.Counter) -> str:
    listed = [f"{count} {kind}" for kind, count in kinds.most_common(8)]
    if len(kinds) > 8:
        others = sum(kinds.values()) - sum(count for _, count in kinds.most_common(8))
        listed.append(f"{others} for other reasons")
    return ": " + "; ".join(listed) if listed else ""
