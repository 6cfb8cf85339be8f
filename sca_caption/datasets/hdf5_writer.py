"""Makes the data file (schema in store.py) from a dataset's records: all of it, or nothing."""

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

import h5py
import numpy as np
from tqdm import tqdm

from sca_caption.datasets.hdf5_captions import LONGEST, Captions
from sca_caption.datasets.hdf5_images import (
    Encode,
    Features,
    Jpegs,
    Pixels,
    in_order,
    interrupts_held_back,
    prepare,
)
from sca_caption.datasets.hdf5_reader import ENCODINGS, FORMAT, SPLITS, VERSION
from sca_caption.datasets.sources.records import Record, Source
from sca_caption.images import Transform
from sca_caption.runtime.atomic_files import replacing
from sca_caption.runtime.errors import UserError, choice
from sca_caption.vocab import TOKENIZER, Vocabulary, has_words

try:
    import fcntl
except ImportError:  # not a POSIX system: a killed run's partial file then stays
    fcntl = None


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
    min_count: int  # 0: another's vocabulary
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
            f"images      {_by_split(self.images)}; {size}x{size} {self.transform.mode}, {self.encoding}",
            f"captions    {_by_split(self.captions)}; the longest has {self.longest} words",
            f"vocabulary  {self.vocabulary} words "
            + (f"seen at least {self.min_count} times in train" if self.min_count else "of another file")
            + "; covered: "
            + ", ".join(f"{split} {share:.2%}" for split, share in self.coverage.items()),
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
    source: Source,
    path: str | os.PathLike,
    *,
    transform: Transform | None = None,
    encoding: str = "jpeg",
    min_count: int = 5,
    vocabulary: Vocabulary | None = None,
    quality: int = 90,
    workers: int | None = None,
    max_skipped: int = 100,
    encode: Encode | None = None,
    features_of: dict | None = None,
    on_skip: Callable[[str, str], None] | None = None,
    quiet: bool = False,
) -> Report:
    """Make the data file `path` of a dataset, or replace it; on any failure `path` stays as it was.

    Args:
        transform: how images are brought to size; default Transform().
        encoding: "jpeg", "raw" or "features".
        min_count: times that train must have a word for it to be in the vocabulary.
        vocabulary: another's, in place of a new one by min_count.
        quality: of JPEG, 1 to 95. An upright RGB JPEG that has the size already is stored as it is.
        workers: processes that read images and bring them to size; 1: this process does; default one a core.
        max_skipped: missing, damaged and unreadable images that are tolerated.
        encode: for "features": uint8 (B, S, S, 3) to arrays (B, ...); called in this process.
        features_of: describes what `encode` computes; stored as JSON.
        on_skip: called at once with the name and the reason of every image that is left out.
        quiet: without a progress bar, which only terminals get.

    Raises UserError: too many unusable images, nothing to train on, a file that cannot be written.
    """
    began = time.monotonic()
    transform, path = transform or Transform(), Path(path)
    choice(encoding, ENCODINGS, "encoding")
    assert (encoding == "features") == (encode is not None), "encode belongs to the encoding 'features'"
    skipped: list[tuple[str, str, str]] = []

    def skip(record: Record, kind: str, reason: str) -> None:
        skipped.append((record.file_name, kind, reason))
        if on_skip is not None:
            on_skip(record.file_name, reason)

    wanted = _wanted(source.records, skip)
    _require_train(wanted, len(source.records))
    left_out = len(skipped)
    with contextlib.ExitStack() as stack:
        with interrupts_held_back():
            file, check = stack.enter_context(_replacing(path))
            file.attrs.update(format=FORMAT, format_version=VERSION, complete=False)
            table = file.create_group("images")
            if encoding == "jpeg":
                images = Jpegs(file)
            elif encoding == "raw":
                images = Pixels(file, transform.size)
            else:
                images = Features(file, encode, features_of)
        kept: list[Record] = []
        captions = Captions(kept)
        job = functools.partial(prepare, transform=transform, encoding=encoding, quality=quality)
        with contextlib.closing(in_order(job, (record.read for record in wanted), workers)) as results:
            for record, result in tqdm(
                zip(wanted, results, strict=True), "images", len(wanted), unit="img", disable=quiet or None
            ):
                if not isinstance(result, tuple):
                    images.add(result)
                    check()
                    kept.append(record)
                    captions.follow()
                    continue
                skip(record, *result)
                if len(skipped) - left_out > max_skipped:
                    raise UserError(
                        f"more than {max_skipped} images are missing or damaged, the last {record.file_name} "
                        f"({result[1]}); nothing was written; mend them or raise --max-skipped"
                    )
        _require_train(kept, len(source.records))
        captions.finish()
        with interrupts_held_back():
            images.finish()
            splits = np.array([SPLITS.index(record.split) for record in kept], np.uint8)
            on_captions = captions.write(file, splits, vocabulary or min_count)
            problems = source.problems + captions.problems
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
        skipped=skipped,
        problems=problems,
        bytes=path.stat().st_size,
        seconds=time.monotonic() - began,
        **on_captions,
    )


def _wanted(records: Sequence[Record], skip: Callable[[Record, str, str], None]) -> list[Record]:
    """The records to store; a second record of the same image and images without words are skipped."""
    wanted, seen = [], set()
    for record in records:
        if record.file_name in seen:
            skip(record, "duplicate", "listed twice; the first is kept")
        elif not any(map(has_words, record.captions)):
            skip(record, "without a caption", "no caption with a word in it")
        else:
            wanted.append(record)
        seen.add(record.file_name)
    return wanted


def _require_train(records: Sequence[Record], listed: int) -> None:
    if not any(record.split == "train" for record in records):
        raise UserError(
            f"nothing to train on: {listed} images are listed and {len(records)} are usable, "
            "none of them in the train split; check the split lists and the skipped images"
        )


def _write_table(group: h5py.Group, records: Sequence[Record], splits: np.ndarray) -> None:
    """Write what images/ holds beside the images themselves."""
    ids = [record.image_id for record in records]
    group["image_id"] = np.array(range(len(ids)) if None in ids else ids, np.int64)
    group["split"] = splits
    names = [record.file_name.encode("utf-8", "surrogateescape") for record in records]
    group.create_dataset("file_name", data=names, dtype=h5py.string_dtype())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A new HDF5 file that takes the place of `path` when the block ends well, and else vanishes.

    Yields the file, and a function that raises if anything could not be written so far.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file in it, such as {path / 'data.h5'}")
    output = None
    with replacing(path, ending="partial", make_folder=True) as partial:
        try:
            _remove_abandoned(path)
            with _Output(partial) as output:
                with h5py.File(output, "w", libver=("earliest", "v110")) as file:  # HDF5 of 2017 can read it
                    yield file, output.check
                output.check()
                os.fsync(output.fileno())  # a power cut must not leave a name without its bytes
        except (OSError, RuntimeError) as error:
            cause = output.error if output is not None and output.error else error
            if isinstance(cause, RuntimeError):
                raise
            raise _cannot_write(path, cause) from error


class _Output(io.FileIO):
    """The file under an h5py.File. HDF5 never hears of an error here, as one at the wrong moment makes it crash when
    the program ends: the first is kept for `check`, and from then on nothing is written. Locked while it is open."""

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None
        if fcntl is not None:
            fcntl.flock(self, fcntl.LOCK_EX)

    def write(self, data) -> int:
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
            return super().truncate(size) if self.error is None else size
        except OSError as error:
            self.error = error
            return size

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def _remove_abandoned(path: Path) -> None:
    """Remove what a killed process left: partial files of `path` that are no longer locked."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial") if fcntl is not None else ():
        with contextlib.suppress(OSError), open(partial, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is being written
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
