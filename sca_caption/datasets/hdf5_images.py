"""Images on their way into the data file: brought to size by worker processes, written in bounded memory."""

import collections
import concurrent.futures
import contextlib
import gc
import io
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import h5py
import numpy as np
from PIL import Image

from sca_caption.images import ImageError, Transform, decode, opened, orientation
from sca_caption.runtime.devices import usable_cores
from sca_caption.runtime.errors import UserError

BUFFER = 4 << 20  # bytes gathered before they are written to a dataset
CHUNK = 256 << 10  # bytes of one HDF5 chunk of JPEG data: some twenty images
TASK = 8  # images that a worker is given at once: its way there and back costs as much as a tenth of an image's work
AHEAD = 4 * TASK  # images that each worker may be ahead of the writer
BATCH = 32  # images encoded to features at once
Encode = Callable[[np.ndarray], Sequence[np.ndarray]]  # uint8 (B, S, S, 3) -> arrays (B, ...)


def prepare(
    read: Callable[[], bytes], *, transform: Transform, encoding: str, quality: int
) -> bytes | np.ndarray | tuple[str, str]:
    """One image as it is stored: a JPEG's bytes or uint8 (S, S, 3); or why it cannot be: (kind, reason)."""
    try:
        data = read()
        with opened(data) as image:
            finished = encoding == "jpeg" and is_finished(image, len(data), transform.size)
            small = decode(image, transform)  # a finished one too, which may be damaged
    except FileNotFoundError as error:
        return "missing", " ".join(str(error.strerror or error).split())
    except ImageError as error:
        return "damaged", error.reason
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be a file's
        return "unreadable", " ".join(str(getattr(error, "strerror", None) or error).split())
    if encoding != "jpeg":
        return np.array(small)
    if finished:
        return data
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality, comment=b"")  # Pillow would take the comment of the file over
    return stream.getvalue()


def is_finished(image: Image.Image, length: int, size: int) -> bool:
    """Whether a file of `length` bytes is an upright RGB JPEG of model size, which a second compression would only harm.

    One byte a pixel and 4 kB are more than a JPEG of good quality needs: what is longer carries other things.
    """
    return (
        length <= size * size + 4096
        and (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))
        and orientation(image) == 1
    )


def in_order(function: Callable, items: Iterable, workers: int | None = None) -> Iterator:
    """map(function, items) in worker processes, at most AHEAD items each ahead of the caller.

    workers: 1 calls `function` in this process; None is one a core. Raises UserError when a worker is killed.
    """
    workers = workers or usable_cores()
    if workers == 1:
        yield from map(function, items)
        return
    pool = concurrent.futures.ProcessPoolExecutor(workers, initializer=_follow_parent)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    items = iter(items)
    tasks = (
        pool.submit(_each, function, task) for task in iter(lambda: list(itertools.islice(items, TASK)), [])
    )
    try:
        with interrupts_held_back():  # one that comes while workers start leaves workers that never end
            waiting.extend(itertools.islice(tasks, workers))
        for task in tasks:
            waiting.append(task)
            if len(waiting) == workers * AHEAD // TASK:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, mostly for want of memory; try --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _each(function: Callable, items: list) -> list:
    return list(map(function, items))


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Handle SIGINT and SIGTERM only at the end of the block: HDF5 is lost when an exception passes through it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal is handled in this thread
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, which then ends its workers; end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # no collection here touches, and so copies, what a fork shares with the parent

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class Column:
    """A dataset that grows, written in blocks of about BUFFER bytes."""

    def __init__(self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str, chunk: int):
        self.dataset = group.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape)
        )
        self.rows: list[np.ndarray] = []
        self.waiting = 0  # bytes

    def add(self, rows: np.ndarray) -> None:
        self.rows.append(rows)
        self.waiting += rows.nbytes
        if self.waiting >= BUFFER:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            block = np.concatenate(self.rows)
            start = len(self.dataset)
            with interrupts_held_back():
                self.dataset.resize(start + len(block), axis=0)
                self.dataset[start:] = block
            self.rows, self.waiting = [], 0


class Jpegs:
    """images/data and images/offsets."""

    def __init__(self, file: h5py.File):
        self.group = file["images"]
        self.data = Column(self.group, "data", (), "uint8", CHUNK)
        self.offsets = [0]

    def add(self, data: bytes) -> None:
        self.data.add(np.frombuffer(data, np.uint8))
        self.offsets.append(self.offsets[-1] + len(data))

    def finish(self) -> None:
        self.data.flush()
        self.group["offsets"] = np.array(self.offsets, np.int64)


class Pixels:
    """images/pixels."""

    def __init__(self, file: h5py.File, size: int):
        self.pixels = Column(file["images"], "pixels", (size, size, 3), "uint8", 1)

    def add(self, pixels: np.ndarray) -> None:
        self.pixels.add(pixels[None])

    def finish(self) -> None:
        self.pixels.flush()


class Features:
    """features/0, features/1, ...: images are encoded BATCH at a time in this process."""

    def __init__(self, file: h5py.File, encode: Encode, features_of: dict | None):
        self.group, self.encode = file.create_group("features"), encode
        self.group.attrs["features_of"] = json.dumps(features_of)
        self.batch: list[np.ndarray] = []
        self.columns: list[Column] = []

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
        with np.errstate(over="ignore"):
            arrays = [np.asarray(array, np.float16) for array in self.encode(np.stack(self.batch))]
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError("the features do not fit float16 (beyond 65504); take another backbone or layer")
        if not self.columns:
            self.columns = [
                Column(self.group, str(k), array.shape[1:], "float16", 1) for k, array in enumerate(arrays)
            ]
        for column, array in zip(self.columns, arrays, strict=True):
            column.add(array)
        self.batch = []
