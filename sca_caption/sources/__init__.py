"""Data sets on disk -> records of image, captions and split. `find(name, root)` is the way in."""

from pathlib import Path

from ..errors import choice
from .flickr import read_flickr8k, read_flickr30k
from .records import SPLITS, Missing, Record, Source

__all__ = ["SOURCES", "SPLITS", "Missing", "Record", "Source", "find"]

SOURCES = {
    "flickr8k": read_flickr8k,
    "flickr30k": read_flickr30k,
}


def find(dataset: str, root: str | Path, **options) -> Source:
    """Return the data set called `dataset` found under `root`.

    `options` are those of the data set's own reader (a TypeError names one that it does not have).
    Raises UserError: unknown data set, or a root that lacks what is needed (the message lists what was looked for).
    """
    return SOURCES[choice(dataset, SOURCES, "dataset")](Path(root), **options)
