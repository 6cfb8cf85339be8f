"""Made photographs with captions, as the records that a data file is written from."""

import dataclasses
import functools
import io

import numpy as np
import pytest
from PIL import Image

from sca_caption.datasets import hdf5_writer
from sca_caption.datasets.sources.records import Record, Source
from sca_caption.images import Transform
from sca_caption.runtime.errors import UserError

SMALL = Transform(32)


def photo(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth picture of its own colours."""
    levels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def give(data: bytes) -> bytes:
    return data


def fail(error: BaseException):
    raise error


def record(
    number: int, split="train", captions=("a dog runs", "the dog"), data: bytes | None = None
) -> Record:
    data = encoded(photo(number)) if data is None else data
    return Record(f"photo {number}.png", tuple(captions), split, 1000 + number, functools.partial(give, data))


def dataset(count: int = 10, **changes) -> Source:
    """`count` photographs, the last two val and test."""
    splits = ["train"] * (count - 2) + ["val", "test"]
    records = [dataclasses.replace(record(i, split), **changes) for i, split in enumerate(splits)]
    return Source("made", "made for a test", records)


def change(source: Source, row: int, **changes) -> None:
    source.records[row] = dataclasses.replace(source.records[row], **changes)


def write(source: Source, path, **options) -> hdf5_writer.Report:
    return hdf5_writer.write(source, path, **({"transform": SMALL, "min_count": 1, "workers": 1} | options))


def message(call, *parts: str) -> str:
    """The message of the UserError that `call` raises: one line, with all of these parts in it."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert not [part for part in parts if part not in text], text
    return text


def error_line(status: int, out: str, err: str) -> str:
    """The message of a program that refused its arguments: exit status 2, one line, and no output."""
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err.removeprefix("error: ").removesuffix("\n")
