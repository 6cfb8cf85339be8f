"""The embedded data set: `shapes` as records. Nothing is read from disk."""

from pathlib import Path

from .. import shapes
from ..errors import UserError
from .records import Record, Source


def read_shapes(root: Path | None = None, *, count: int = 800, seed: int = 0) -> Source:
    """Return `count` generated pictures: of every ten, eight are train, one val, one test. `root` is not read."""
    if count < 10:
        raise UserError(f"shapes needs at least 10 pictures for its three splits; asked for {count}")
    splits = ("train",) * 8 + ("val", "test")
    records = [
        Record(f"shapes_{index:05d}.png", shapes.captions(shapes.scene(seed, index)), splits[index % 10], index,
               shapes.Picture(seed, index))
        for index in range(count)
    ]  # fmt: skip
    return Source("shapes", f"shapes: {count} generated pictures, seed {seed}, eight in ten train", records)
