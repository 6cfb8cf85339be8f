"""What every reader returns: records, and the account of what was found and what was left out."""

from collections.abc import Callable
from dataclasses import dataclass, field

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One image with its captions.

    `read()` returns the image file's bytes as they are, encoded. It pickles, so that worker processes can
    call it, and raises OSError (FileNotFoundError for an image that the captions list and the disk lacks).
    """

    file_name: str
    captions: tuple[str, ...]  # raw sentences, runs of white space made one space; at least one
    split: str  # one of SPLITS
    image_id: int | None
    read: Callable[[], bytes]


@dataclass
class Source:
    """A data set as found on disk. Images that are listed but missing stay in `records`: their `read()`
    raises, so that whoever reads them counts them with the corrupt ones; everything else that was left out is
    in `problems`."""

    name: str
    description: str  # one line: the layout that was used, and where its splits come from
    records: list[Record]  # ordered by file name
    problems: list[tuple[str, str]] = field(default_factory=list)  # (item, what is wrong and what was done)

    def counts(self) -> dict[str, int]:
        """Return the number of images in each split."""
        return {split: sum(record.split == split for record in self.records) for split in SPLITS}


@dataclass(frozen=True, slots=True)
class Missing:
    """`read` of an image that the captions list but that is nowhere under the root."""

    name: str
    root: str

    def __call__(self) -> bytes:
        raise FileNotFoundError(f"{self.name} is listed with captions but is not under {self.root}")
