"""Readers of caption data sets. `find(dataset, root)` returns one Record per image: its file, captions and split."""

from pathlib import Path
from typing import Any

from sca_caption.datasets.sources.coco import read_coco
from sca_caption.datasets.sources.flickr import read_flickr8k, read_flickr30k
from sca_caption.datasets.sources.records import Source
from sca_caption.datasets.sources.shapes import read_shapes
from sca_caption.datasets.sources.table import read_table
from sca_caption.runtime.errors import choice

__all__ = ["SOURCES", "SPLITS", "MissingImage", "Record", "Source", "find"]
SOURCES = {
    "flickr8k": read_flickr8k,
    "flickr30k": read_flickr30k,
    "coco": read_coco,
    "csv": read_table,
    "shapes": read_shapes,
}


def find(dataset: str, root: str | Path = "data", **options: Any) -> Source:
    """Return the data set called `dataset` found under `root`.

    options: keyword arguments of the data set's reader. Raises TypeError for an unknown one.
    Raises UserError for an unknown data set and for a root without the needed files; the message lists them.
    """
    return SOURCES[choice(dataset, SOURCES, "dataset")](Path(root), **options)
