"""Captions gathered by image before they become records, with every quirk accounted for."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sca_caption.datasets.sources.file_tree import Found
from sca_caption.datasets.sources.records import SPLITS, Missing, Record
from sca_caption.runtime.errors import UserError


def hash_split(names: Iterable[str], *, val: int, test: int) -> dict[str, str]:
    """Return name -> split, the same on every machine and for every listing order: the names are ordered by
    their SHA-256; the first `val` are val, the next `test` test, the rest train."""

    def digest(name: str) -> bytes:
        return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()

    ordered = sorted(set(names), key=digest)
    splits = ["val"] * val + ["test"] * test + ["train"] * max(0, len(ordered) - val - test)
    return dict(zip(ordered, splits, strict=False))


@dataclass
class Gathered:
    """Captions and splits by image name, in the order they were read."""

    root: Path
    problems: list[tuple[str, str]]
    captions: dict[str, dict[str | int, str]] = field(default_factory=dict)  # image -> number -> caption
    splits: dict[str, str] = field(default_factory=dict)
    image_ids: dict[str, int] = field(default_factory=dict)

    def problem(self, item: str, reason: str) -> None:
        self.problems.append((item, reason))

    def add(self, name: str, number: str | int | None, caption: str) -> None:
        """Add a caption. The same words under another number (or without numbers) are another annotator's and
        stay, because references are counted; a row that is repeated whole is left out."""
        captions = self.captions.setdefault(name, {})
        caption = " ".join(caption.split())
        item = name if number is None else f"{name}#{number}"
        if not caption:
            self.problem(item, "empty caption; left out")
        elif number is None or number not in captions:
            captions[len(captions) if number is None else number] = caption
        elif captions[number] == caption:
            self.problem(item, "repeated row; left out")
        else:
            captions[f"{number}+{len(captions)}"] = caption
            self.problem(item, "caption number repeated with other words; both kept")

    def assign(self, name: str, split: str) -> None:
        """Put an image in a split; the first split counts."""
        assert split in SPLITS, split
        kept = self.splits.setdefault(name, split)
        if kept != split:
            self.problem(name, f"listed in {kept} and in {split}; kept in {kept}")

    def assign_by_hash(self, *, val: int, test: int) -> None:
        """Split all images that have captions by the hash of their names."""
        self.splits = hash_split([name for name, texts in self.captions.items() if texts], val=val, test=test)

    def records(self, find: Callable[[str], Found | None], *, looked_for: str) -> list[Record]:
        """Return the records by file name; images that `find` misses get a `read` that raises.

        Raises UserError where not one image is found; `looked_for` ends its message."""
        records = []
        for name, captions in self.captions.items():
            if not captions:
                self.problem(name, "no caption left; left out")
            elif name not in self.splits:
                self.problem(name, "has captions but is in no split; left out")
            else:
                found = find(name)
                read = found[1] if found else Missing(name, str(self.root))
                texts = tuple(captions.values())
                records.append(Record(name, texts, self.splits[name], self.image_ids.get(name), read))
        for name, split in self.splits.items():
            if name not in self.captions:
                self.problem(name, f"listed in {split} without captions; left out")
        if not records:
            why = "; ".join(f"{item}: {reason}" for item, reason in self.problems[:3]) or "no captions"
            raise UserError(f"no image with captions and a split under {self.root}: {why}; {looked_for}")
        if all(isinstance(record.read, Missing) for record in records):
            listed = f"{len(records)} captioned images ({records[0].file_name}, ...)"
            raise UserError(f"none of the {listed} is under {self.root}; {looked_for}")
        return sorted(records, key=lambda record: record.file_name)
