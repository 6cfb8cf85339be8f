"""Captions in text files beside the photographs (photo.txt beside photo.jpg), as image-model trainers read them."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.errors import UserError

if TYPE_CHECKING:
    from sca_caption.inference.captions import Result


ENDING = ".txt"
UNKNOWN = b"?"  # unlike any text that is written, which ends in a line break


class Sidecars:
    """The text files of a run. Existing files with other text are replaced only if `overwrite`.

    Raises UserError if two images would share a file or if a folder cannot be written to.

    Attributes:
        written: number of files written, including those that already held the same text.
        kept: number of files with other text.
        before: number of files that `missing` and `complete` found.
    """

    def __init__(self, paths: Iterable[Path], overwrite: bool = False):
        self.overwrite, self.written, self.kept, self.before = overwrite, 0, 0, 0
        self.owners: dict[Path, Path] = {}
        for path in paths:
            if path.suffix.lower() == ENDING:
                raise UserError(f"--txt: {path} ends in {ENDING} itself; rename it")
            owner = self.owners.setdefault(sidecar_of(path), path)
            if owner != path:
                raise UserError(
                    f"--txt: {owner} and {path} would both have {sidecar_of(path).name}; rename one or "
                    f"do not caption it"
                )
        for folder in dict.fromkeys(path.parent for path in self.owners):
            if folder.is_dir() and not os.access(folder, os.W_OK):
                raise UserError(f"--txt: no permission to write in {folder}; change it or use --output")

    def missing(self, paths: Sequence[Path]) -> list[int]:
        """Positions of the paths that have no text file yet."""
        found = [index for index, path in enumerate(paths) if not sidecar_of(path).exists()]
        self.before = len(paths) - len(found)
        return found

    def write(self, index: int, result: "Result") -> None:
        """Write the captions of an image, best first, one per line."""
        if not result.error:
            self.put(Path(result.item), [caption.text for caption in result.captions])

    def complete(self, entries: Iterable[dict]) -> None:
        """Write missing files of images that an earlier run captioned. `entries` come from the results file."""
        for entry in entries:
            path = Path(entry["file_name"])
            if sidecar_of(path) not in self.owners:
                continue
            if sidecar_of(path).exists():
                self.before += 1
            else:
                self.put(path, [each["caption"] for each in entry.get("captions", [entry])])

    def put(self, path: Path, captions: Sequence[str]) -> None:
        """Write the captions of the image at `path`, unless its text file has other text that must stay."""
        sidecar, text = sidecar_of(path), "".join(f"{caption}\n" for caption in captions).encode()
        try:
            there = sidecar.read_bytes()
        except FileNotFoundError:
            there = None
        except OSError:  # it cannot be read, so what it holds is not known
            there = UNKNOWN
        if there is not None and there != text and not self.overwrite:
            self.kept += 1
            return
        if there != text:
            with atomic_write(sidecar, "folder") as temporary:
                temporary.write_bytes(text)
        self.written += 1

    def summary(self, count: int) -> list[str]:
        """Lines for the user: the number of files written and kept."""
        done, before = self.written + self.before, f", {self.before} of them before" if self.before else ""
        lines = [f"{done} of {count} images have their captions beside them, as {ENDING}{before}"]
        if self.kept:
            lines.append(f"{self.kept} have other text there, which was kept; --overwrite replaces it")
        return lines


def sidecar_of(path: Path) -> Path:
    return path.with_suffix(ENDING)
