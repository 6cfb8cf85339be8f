"""Captions of many images in a file: COCO's results format as .json, .jsonl or .csv, or a page to look at, .html.

What is done is kept in a journal (see `journal`) until the file is complete, so that a run can go on where another was
killed, and memory does not grow with the number of images.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.inference.gallery import Gallery
from sca_caption.inference.journal import Journal, journal_of
from sca_caption.inference.results_formats import JsonArray, JsonLines, Kind, Table
from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.distributed import was_restarted
from sca_caption.runtime.errors import UserError

if TYPE_CHECKING:
    from sca_caption.inference.captioning import Result


COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d+)")
KINDS: dict[str, type[Kind]] = {".json": JsonArray, ".jsonl": JsonLines, ".csv": Table, ".html": Gallery}


def kind_of(path: Path) -> type[Kind]:
    return KINDS[path.suffix.lower()]


def check_results_file(path: Path, resume: bool = False) -> None:
    """Raise UserError for what cannot be the name of a results file, and where an interrupted run's would be lost."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"--output {path}: unknown kind {path.suffix!r}; one of: {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {path}: no permission to write in {path.parent}; choose another folder")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file")
    if journal_of(path).exists() and not resume and not was_restarted():
        raise UserError(
            f"--output {path}: an earlier run was interrupted; --resume goes on with it, or delete {journal_of(path)}"
        )


class Results:
    """The results file of a run. Leave its making, and its end, to `results_file`.

    kept: how many images an earlier run had done.
    """

    def __init__(self, kind: Kind, journal: Journal, ids: Sequence[int]):
        self.kind, self.journal, self.ids, self.failed = kind, journal, ids, []
        self.kept = len(journal)
        self.free = max((*ids, *journal.ids), default=0) + 1  # the first number that no image can have

    def missing(self, paths: Sequence[Path]) -> list[int]:
        """Which of the paths, by their positions, have no entry yet."""
        done, found = Counter(self.journal.names), []
        for index, path in enumerate(paths):
            if done[str(path)]:
                done[str(path)] -= 1
            else:
                found.append(index)
        return found

    def write(self, index: int, result: "Result") -> None:
        """Add the captions of the image at `index` of all paths, or note why it has none."""
        if result.error:
            self.failed.append(str(result.error))
            return
        image_id = self.ids[index]
        if image_id in self.journal.ids:  # an image of an earlier run has it
            image_id, self.free = self.free, self.free + 1
        self.journal.append(self.kind.entry(image_id, result))

    def entries(self) -> Iterator[dict]:
        """What there is so far."""
        return self.journal.entries()

    def finish(self) -> None:
        """Write the file and drop the journal; no file where there are no captions."""
        if len(self.journal):
            with (
                atomic_write(self.kind.path) as temporary,
                # A file name's bytes that are no UTF-8 come out as \\udcXX, which JSON reads back.
                open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
            ):
                self.kind.write(file, self.journal.entries(self.kind.sort_key), self.failed)
        self.journal.remove()


@contextmanager
def results_file(path: Path, ids: Sequence[int], *, resume: bool = False, **of_kind) -> Iterator[Results]:
    """A results file that is written when the block ends well. of_kind: what `Kind` takes.

    When the block raises, its journal stays for `resume`, which keeps what that, or a complete file, has. Raises
    UserError where the file cannot be written, and where what is there was made with other settings.
    """
    kind = kind_of(path)(path, **of_kind)
    going_on = (resume or was_restarted()) and journal_of(path).exists()
    if going_on:
        journal = Journal.reopen(journal_of(path), kind.settings)
    else:
        kept = finished(kind) if resume and path.exists() else ()
        journal = Journal.begin(journal_of(path), kind.settings, kept)
    results = Results(kind, journal, ids)
    try:
        yield results
        results.finish()
    finally:
        if going_on or journal.added:
            journal.close()
        else:
            journal.remove()  # it says no more than there was before


def finished(kind: Kind) -> Iterator[dict]:
    """The entries of a complete file. Raises UserError where it is none, or of another model."""
    try:
        for number, entry in enumerate(kind.read()):
            if not isinstance(entry["image_id"], int) or not isinstance(entry["file_name"], str):
                raise TypeError
            if number == 0:
                kind.require_alike(entry)
            yield entry
    except (ValueError, KeyError, TypeError, OSError, csv.Error) as error:
        raise UserError(
            f"--resume: {kind.path} is not what caption.py writes; move it away or name another --output"
        ) from error


def image_ids(paths: Sequence[Path]) -> list[int]:
    """The numbers that the names are (000139.jpg, COCO_val2014_000000000042.jpg) if all differ; or 1, 2..."""
    numbers = [int(match[1]) for path in paths if (match := COCO_NAME.fullmatch(path.stem))]
    if len(set(numbers)) == len(paths):
        return numbers
    return list(range(1, len(paths) + 1))
