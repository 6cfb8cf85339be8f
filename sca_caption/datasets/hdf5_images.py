"""Images of the data file: decoded and resized by worker processes, written in bounded memory."""

import collections
import concurrent.futures
import contextlib
import gc
import io
import itertools
import json
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import h5py
import numpy as np
from PIL import Image

from sca_caption.images import ImageError, Transform, decode, opened, orientation
from sca_caption.runtime.devices import usable_cores
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.workers import end_with_parent

BUFFER_BYTES = 4 << 20  # collected before they are written to an HDF5 dataset
CHUNK_BYTES = 256 << 10  # of an HDF5 chunk of JPEG data: about twenty images
# Images per task of a worker, because the transfer of a task takes a tenth of the time of an image.
TASK_SIZE = 8
MAX_AHEAD = 4 * TASK_SIZE  # images per worker that may be processed ahead of the writer
BATCH_SIZE = 32  # images per call of the feature encoder
Encode = Callable[[np.ndarray], Sequence[np.ndarray]]  # uint8 (B, S, S, 3) -> arrays (B, ...)


def prepare_image(
    read: Callable[[], bytes], *, transform: Transform, encoding: str, quality: int
) -> bytes | np.ndarray | tuple[str, str]:
    """Read, decode and resize an image.

    Returns a JPEG file for the encoding "jpeg", otherwise uint8 (S, S, 3). For an image that cannot be used, returns
    (kind, reason), where kind is "missing", "damaged" or "unreadable".
    """
    try:
        data = read()
        with opened(data) as image:
            unchanged = encoding == "jpeg" and can_store_as_is(image, len(data), transform.size)
            small = decode(image, transform)  # also if the file is stored unchanged: it may be damaged
    except FileNotFoundError as error:
        return "missing", " ".join(str(error.strerror or error).split())
    except ImageError as error:
        return "damaged", error.reason
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        return "unreadable", " ".join(str(getattr(error, "strerror", None) or error).split())
    if encoding != "jpeg":
        return np.array(small)
    if unchanged:
        return data
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality, comment=b"")  # Pillow would copy the comment of the file
    return stream.getvalue()


def can_store_as_is(image: Image.Image, length: int, size: int) -> bool:
    """True for an upright RGB JPEG of model size, which a second compression would only degrade.

    length: of the file in bytes. A JPEG of good quality needs less than one byte per pixel and 4 kB; a longer file has
    large metadata and is compressed again.
    """
    return (
        length <= size * size + 4096
        and (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))
        and orientation(image) == 1
    )


def map_in_order(
    function: Callable, items: Iterable, workers: int | None = None
) -> Generator[Any, None, None]:
    """map(function, items) in worker processes, each at most MAX_AHEAD items ahead of the caller.

    workers: 1 calls `function` in this process; None means one per core. Raises UserError if a worker is killed.
    """
    workers = workers or usable_cores()
    if workers == 1:
        yield from map(function, items)
        return
    pool = concurrent.futures.ProcessPoolExecutor(workers, initializer=_follow_parent)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    items = iter(items)
    tasks = (
        pool.submit(_each, function, task)
        for task in iter(lambda: list(itertools.islice(items, TASK_SIZE)), [])
    )
    try:
        with deferred_interrupts():  # an interrupt while workers start would leave workers that never end
            waiting.extend(itertools.islice(tasks, workers))
        for task in tasks:
            waiting.append(task)
            if len(waiting) == workers * MAX_AHEAD // TASK_SIZE:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because memory ran out; try --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _each(function: Callable, items: list) -> list:
    return list(map(function, items))


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block, because an exception inside HDF5 corrupts its state."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _follow_parent() -> None:
    """Initialize a worker: ignore Ctrl-C, because the parent ends its workers, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # garbage collection would copy memory shared with the parent
    end_with_parent()


class GrowingDataset:
    """An HDF5 dataset that grows along axis 0, written in blocks of about BUFFER_BYTES."""

    def __init__(self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str, chunk: int):
        self.dataset = group.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape)
        )
        self.rows: list[np.ndarray] = []
        self.buffered = 0  # bytes

    def add(self, rows: np.ndarray) -> None:
        """Append rows (n, *shape)."""
        self.rows.append(rows)
        self.buffered += rows.nbytes
        if self.buffered >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            block = np.concatenate(self.rows)
            start = len(self.dataset)
            with deferred_interrupts():
                self.dataset.resize(start + len(block), axis=0)
                self.dataset[start:] = block
            self.rows, self.buffered = [], 0


class JpegWriter:
    """Writes images/data and images/offsets."""

    def __init__(self, file: h5py.File):
        self.group = file["images"]
        self.data = GrowingDataset(self.group, "data", (), "uint8", CHUNK_BYTES)
        self.offsets = [0]

    def add(self, data: bytes) -> None:
        self.data.add(np.frombuffer(data, np.uint8))
        self.offsets.append(self.offsets[-1] + len(data))

    def finish(self) -> None:
        self.data.flush()
        self.group["offsets"] = np.array(self.offsets, np.int64)


class PixelWriter:
    """Writes images/pixels."""

    def __init__(self, file: h5py.File, size: int):
        self.pixels = GrowingDataset(file["images"], "pixels", (size, size, 3), "uint8", 1)

    def add(self, pixels: np.ndarray) -> None:
        self.pixels.add(pixels[None])

    def finish(self) -> None:
        self.pixels.flush()


class FeatureWriter:
    """Writes features/0, features/1, ... Images are encoded in this process, in batches of BATCH_SIZE."""

    def __init__(self, file: h5py.File, encode: Encode, features_of: dict | None):
        self.group, self.encode = file.create_group("features"), encode
        self.group.attrs["features_of"] = json.dumps(features_of)
        self.batch: list[np.ndarray] = []
        self.columns: list[GrowingDataset] = []

    def add(self, pixels: np.ndarray) -> None:
        self.batch.append(pixels)
        if len(self.batch) == BATCH_SIZE:
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
            raise UserError("the features exceed float16 (65504); choose another --backbone or --layers")
        if not self.columns:
            self.columns = [
                GrowingDataset(self.group, str(k), array.shape[1:], "float16", 1)
                for k, array in enumerate(arrays)
            ]
        for column, array in zip(self.columns, arrays, strict=True):
            column.add(array)
        self.batch = []
