"""The generated data set "shapes" as records. Nothing is read from disk."""

from pathlib import Path

from sca_caption.datasets import shapes
from sca_caption.datasets.sources.records import Record, Source
from sca_caption.runtime.errors import UserError


def read_shapes(root: Path | None = None, *, count: int = 800, seed: int = 0) -> Source:
    """Return `count` generated images: 80 % train, 10 % val, 10 % test. `root` is ignored.

    Raises UserError if `count` is less than 10.
    """
    if count < 10:
        raise UserError(f"shapes needs at least 10 images for its three splits, not {count}; ask for more")
    splits = ("train",) * 8 + ("val", "test")
    records = []
    for index in range(count):
        captions = shapes.captions(shapes.scene(seed, index))
        read = shapes.GeneratedImage(seed, index)
        records.append(Record(f"shapes_{index:05d}.png", captions, splits[index % 10], index, read))
    return Source("shapes", f"shapes: {count} generated images, seed {seed}, 80 % train", records)
