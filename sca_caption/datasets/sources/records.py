"""The result of reading a data set: a Source, which holds one Record per image."""

from collections.abc import Callable
from dataclasses import dataclass, field

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One image with its captions.

    `read()` returns the bytes of the image file, still encoded. It can be pickled, so worker processes can call
    it. It raises OSError, in particular FileNotFoundError for an image that has captions but no file.
    """

    file_name: str
    captions: tuple[str, ...]  # at least one; as written, but each run of white space is one space
    split: str  # one of SPLITS
    image_id: int | None
    read: Callable[[], bytes]


@dataclass
class Source:
    """A data set as found on disk.

    Images with captions but without a file stay in `records`: their `read()` raises, so they are counted together
    with damaged images. `problems` lists everything else that was skipped.
    """

    name: str
    description: str  # one line: the files that were read and the origin of the splits
    records: list[Record]  # sorted by file name
    problems: list[tuple[str, str]] = field(default_factory=list)  # (item, reason and what was done)

    def counts(self) -> dict[str, int]:
        """Return the number of images in each split."""
        return {split: sum(record.split == split for record in self.records) for split in SPLITS}


@dataclass(frozen=True, slots=True)
class MissingImage:
    """The `read` of an image that has captions but no file."""

    name: str
    root: str

    def __call__(self) -> bytes:
        raise FileNotFoundError(f"{self.name} has captions but was not found in {self.root}")
