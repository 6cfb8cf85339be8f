"""Captions and splits of a data set, collected per image while its files are parsed, with a list of problems."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sca_caption.datasets.sources.file_tree import FoundFile
from sca_caption.datasets.sources.records import SPLITS, MissingImage, Record
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.json_text import excerpt


def hash_split(names: Iterable[str], *, val: int, test: int) -> dict[str, str]:
    """Return a split per name. The names are sorted by their SHA-256: the first `val` names are val, the next
    `test` names are test, the rest are train. The result depends on the set of names alone.
    """

    def digest(name: str) -> bytes:
        return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()

    ordered = sorted(set(names), key=digest)
    splits = ["val"] * val + ["test"] * test + ["train"] * max(0, len(ordered) - val - test)
    return dict(zip(ordered, splits, strict=False))


@dataclass
class Annotations:
    """Captions and splits per image name, in reading order. `problems` collects (item, reason) pairs."""

    root: Path
    problems: list[tuple[str, str]]
    # image -> caption number -> caption
    captions: dict[str, dict[str | int, str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    image_ids: dict[str, int] = field(default_factory=dict)

    def report(self, item: str, reason: str) -> None:
        """Record that `item` has a problem: what is wrong and what was done about it."""
        self.problems.append((item, reason))

    def add(self, name: str, number: str | int | None, caption: object) -> None:
        """Add a caption of image `name`. number: its number in the file, or None if the format has no numbers.

        A row with the same number and the same words as an earlier row is skipped. The same words under another
        number, or without numbers, are kept as another annotator's caption, because the number of references
        affects scores. An empty caption is skipped, as is a value that is no text.
        """
        captions = self.captions.setdefault(name, {})
        number = number if isinstance(number, str | int) else None  # of a file from elsewhere
        item = name if number is None else f"{name}#{number}"
        if not isinstance(caption, str):
            self.report(item, f"its caption is {excerpt(caption)}, not text; skipped")
            return
        caption = " ".join(caption.split())
        if not caption:
            self.report(item, "empty caption; skipped")
        elif number is None or number not in captions:
            captions[len(captions) if number is None else number] = caption
        elif captions[number] == caption:
            self.report(item, "repeated row; skipped")
        else:
            captions[f"{number}+{len(captions)}"] = caption
            self.report(item, "two captions with the same number; both kept")

    def assign(self, name: str, split: str) -> None:
        """Assign an image to a split. A later call with another split is reported and has no effect."""
        assert split in SPLITS, split
        kept = self.splits.setdefault(name, split)
        if kept != split:
            self.report(name, f"listed in both {kept} and {split}; kept in {kept}")

    def assign_by_hash(self, *, val: int, test: int) -> None:
        """Assign a split to each image with captions, by `hash_split`."""
        self.splits = hash_split([name for name, texts in self.captions.items() if texts], val=val, test=test)

    def records(self, find: Callable[[str], FoundFile | None], *, remedy: str) -> list[Record]:
        """Return the records of all images with captions and a split, sorted by file name.

        find: returns the file of an image name, or None; a record without a file has a `read` that raises.
        remedy: the end of the error message. Raises UserError if there are no records or no image was found.
        """
        records = []
        for name, captions in self.captions.items():
            if not captions:
                self.report(name, "no captions; skipped")
            elif name not in self.splits:
                self.report(name, "has captions but no split; skipped")
            else:
                found = find(name)
                read = found[1] if found else MissingImage(name, str(self.root))
                texts = tuple(captions.values())
                records.append(Record(name, texts, self.splits[name], self.image_ids.get(name), read))
        for name, split in self.splits.items():
            if name not in self.captions:
                self.report(name, f"listed in {split} without captions; skipped")
        if not records:
            why = "; ".join(f"{item}: {reason}" for item, reason in self.problems[:3]) or "no captions"
            raise UserError(f"no image with captions and a split in {self.root}: {why}; {remedy}")
        if all(isinstance(record.read, MissingImage) for record in records):
            listed = f"{len(records)} captioned images ({records[0].file_name}, ...)"
            raise UserError(f"none of the {listed} was found in {self.root}; {remedy}")
        return sorted(records, key=lambda record: record.file_name)
