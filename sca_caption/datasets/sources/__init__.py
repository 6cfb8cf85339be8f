"""Data sets on disk -> records of image, captions and split. `find(name, root)` is the way in."""

from pathlib import Path

from sca_caption.datasets.sources.coco import read_coco
from sca_caption.datasets.sources.flickr import read_flickr8k, read_flickr30k
from sca_caption.datasets.sources.records import Source
from sca_caption.datasets.sources.shapes import read_shapes
from sca_caption.datasets.sources.table import read_table
from sca_caption.runtime.errors import choice

__all__ = ["SOURCES", "SPLITS", "Missing", "Record", "Source", "find"]
SOURCES = {
    "flickr8k": read_flickr8k,
    "flickr30k": read_flickr30k,
    "coco": read_coco,
    "csv": read_table,
    "shapes": read_shapes,
}


def find(dataset: str, root: str | Path = "data", **options) -> Source:
    """Return the data set called `dataset` found under `root`.

    `options` are those of the data set's own reader; a TypeError names one that it does not have.
    Raises UserError: an unknown data set, or a root that lacks what is needed, with what was looked for.
    """
    return SOURCES[choice(dataset, SOURCES, "dataset")](Path(root), **options)
