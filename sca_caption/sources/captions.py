"""Captions gathered by image before they become records, with every quirk accounted for."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .records import SPLITS, Missing, Record


def hash_order(name: str) -> str:
    """Return a key that orders names the same way on every machine and in every listing order."""
    return hashlib.sha256(name.encode()).hexdigest()


def hash_split(names: Iterable[str], *, val: int, test: int) -> dict[str, str]:
    """Return name -> split: ordered by the SHA-256 of the name, the first `val`, the next `test`, the rest train."""
    ordered = sorted(set(names), key=hash_order)
    return {name: "val" if i < val else "test" if i < val + test else "train" for i, name in enumerate(ordered)}


@dataclass
class Gathered:
    """Captions and splits by image name, in the order they were read."""

    root: Path
    problems: list[tuple[str, str]]
    captions: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    image_ids: dict[str, int] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)  # where the file name alone does not find the image
    seen: set[tuple[str, str]] = field(default_factory=set)

    def problem(self, item: str, reason: str) -> None:
        self.problems.append((item, reason))

    def add(self, name: str, number: str | None, caption: str) -> None:
        """Add a caption. A number met again with the same image is a repeated row and is left out; the same words
        under another number are another annotator's and stay, because references are counted."""
        caption = " ".join(caption.split())
        if not caption:
            self.problem(f"{name}#{number}" if number is not None else name, "empty caption; left out")
            self.captions.setdefault(name, [])
            return
        if number is not None:
            if (name, number) in self.seen:
                self.problem(f"{name}#{number}", "caption number repeated; the first is kept")
                return
            self.seen.add((name, number))
        self.captions.setdefault(name, []).append(caption)

    def assign(self, name: str, split: str) -> None:
        """Put an image in a split; the first split counts."""
        assert split in SPLITS, split
        kept = self.splits.setdefault(name, split)
        if kept != split:
            self.problem(name, f"listed in {kept} and in {split}; kept in {kept}")

    def records(self, find: Callable[[str], tuple[str, Callable[[], bytes]] | None]) -> list[Record]:
        """Return the records by file name, those of images that `find` misses with a `read` that raises."""
        records = []
        for name, captions in self.captions.items():
            if name not in self.splits:
                self.problem(name, "has captions but is in no split; left out")
            elif not captions:
                self.problem(name, "has no caption left; left out")
            else:
                found = find(self.paths.get(name, name))
                read = found[1] if found else Missing(name, str(self.root))
                records.append(Record(name, tuple(captions), self.splits[name], self.image_ids.get(name), read))
        for name, split in self.splits.items():
            if name not in self.captions:
                self.problem(name, f"listed in {split} without captions; left out")
        return sorted(records, key=lambda record: record.file_name)

    @staticmethod
    def all_missing(records: list[Record]) -> bool:
        return all(isinstance(record.read, Missing) for record in records)
