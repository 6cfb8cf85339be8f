"""Memory that decoding an image takes, known from its header: a file of 1 MB can hold 170 million pixels.

`LIMIT_BYTES` bounds it, and images of many pixels are decoded one at a time, in whatever threads.
"""

import contextlib
import os
import struct
import threading
from collections.abc import Iterator

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

# Of one image. PyTorch, the libraries and the model that ships take 0.5 GB more.
LIMIT_BYTES = 900_000_000
LARGE_BYTES = 64_000_000  # images that take more are decoded one at a time
# By Pillow's mode; 4 in others.
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
# What decoders take beside the image, per pixel of the file, as measured. Others work row by row.
DECODER_BYTES = {"WEBP": 12, "AVIF": 12, "HEIF": 12, "JPEG2000": 16}
ROWS_PER_STRIP, TILE_LENGTH, BITS_PER_SAMPLE, COMPRESSION = 278, 323, 258, 259  # tags of TIFFs
JPEG_IN_TIFF = (6, 7, 34892)  # values of COMPRESSION
_large = threading.RLock()


def _renew_lock() -> None:
    """After a fork, the thread that held the lock is gone."""
    global _large
    _large = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def pixel_bytes(image: Image.Image) -> int:
    """Bytes of a decoded pixel."""
    return PIXEL_BYTES.get(image.mode, 4)


def decoder_bytes(image: Image.Image) -> int:
    """Bytes that the decoder of an image, of a file as it was opened, takes at most beside the image."""
    width, height = image.size
    if isinstance(image, JpegImageFile):  # also MPO
        samples = [(h, v) for _, h, v, _ in image.layer]
        if not image.info.get("progressive") and _components_of_first_scan(image) == len(samples):
            return 0
        whole = max(h for h, _ in samples) * max(v for _, v in samples)
        return width * height * 2 * sum(h * v for h, v in samples) // whole  # coefficients of 16 bits
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        rows = min(height, tags.get(TILE_LENGTH) or tags.get(ROWS_PER_STRIP) or height)
        coefficients = 8 if tags.get(COMPRESSION) in JPEG_IN_TIFF else 0
        return width * rows * (coefficients + max(4, sum(tags.get(BITS_PER_SAMPLE, (8,))) // 8))
    return width * height * DECODER_BYTES.get(image.format or "", 0)


def _components_of_first_scan(image: JpegImageFile) -> int:
    """Number of components in the first scan of a JPEG. Files with several scans are decoded as a whole."""
    file, position = image.fp, 2
    assert file is not None
    back = file.tell()
    try:
        while True:
            file.seek(position)
            marker, length, count = struct.unpack(">HHB", file.read(5))
            if marker == 0xFFDA:
                return int(count)
            # Before a marker may be bytes 0xFF, and any others in damaged files.
            position += length + 2 if marker > 0xFFBF and marker != 0xFFFF else 1
    except struct.error:  # the file ends: take it for one of several scans
        return 0
    finally:
        file.seek(back)


@contextlib.contextmanager
def one_at_a_time(image: Image.Image) -> Iterator[None]:
    """Wait until no other thread is in such a block with a large image."""
    # JPEGs are decoded at a part of their size.
    own = 0 if image.format in ("JPEG", "MPO") else image.width * image.height * pixel_bytes(image)
    with _large if own + decoder_bytes(image) > LARGE_BYTES else contextlib.nullcontext():
        yield
