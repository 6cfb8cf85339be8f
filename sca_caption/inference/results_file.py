"""Results files of many images: COCO's results format as .json, .jsonl or .csv, or a gallery as .html.

Until the file is complete, entries are kept in a journal (see `journal`). A run can therefore resume after it was
killed, and memory does not grow with the number of images.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sca_caption.inference.gallery import Gallery
from sca_caption.inference.journal import Journal, check_not_written, journal_of
from sca_caption.inference.results_formats import JsonArray, JsonLines, ResultsFormat, Table
from sca_caption.runtime.atomic_files import atomic_write, check_writable
from sca_caption.runtime.distributed import was_restarted
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import program_name

if TYPE_CHECKING:
    from sca_caption.inference.captions import Result


COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d+)")
FORMATS: dict[str, type[ResultsFormat]] = {
    ".json": JsonArray,
    ".jsonl": JsonLines,
    ".csv": Table,
    ".html": Gallery,
}


def format_of(path: Path) -> type[ResultsFormat]:
    """The format that belongs to the file's extension. Raises KeyError for others."""
    return FORMATS[path.suffix.lower()]


def check_results_file(path: Path, resume: bool = False) -> None:
    """Raise UserError if `path` cannot be written, or if writing would lose an interrupted run's journal."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--output {path}: unknown format {path.suffix!r}; one of: {', '.join(FORMATS)}")
    check_writable(path)
    if journal_of(path).exists() and not resume and not was_restarted():
        check_not_written(journal_of(path))
        raise UserError(
            f"--output {path}: an earlier run was interrupted; continue it with --resume, or delete {journal_of(path)}"
        )


class Results:
    """The results file of a run. `results_file` creates and finishes it.

    Attributes:
        kept: number of images that an earlier run had captioned.
        failed: error messages of the images without captions.
    """

    def __init__(self, format: ResultsFormat, journal: Journal, ids: Sequence[int]):
        self.format, self.journal, self.ids = format, journal, ids
        self.failed: list[str] = []
        self.kept = len(journal)
        self.free = max((*ids, *journal.ids), default=0) + 1  # the next unused image id

    def missing(self, paths: Sequence[Path]) -> list[int]:
        """Positions of the paths that have no entry yet."""
        done, found = Counter(self.journal.names), []
        for index, path in enumerate(paths):
            if done[str(path)]:
                done[str(path)] -= 1
            else:
                found.append(index)
        return found

    def write(self, index: int, result: "Result") -> None:
        """Add the captions of the image at position `index` of all paths, or its error."""
        if result.error:
            self.failed.append(str(result.error))
            return
        image_id = self.ids[index]
        if image_id in self.journal.ids:  # used by an image of an earlier run
            image_id, self.free = self.free, self.free + 1
        self.journal.append(self.format.entry(image_id, result))

    def entries(self) -> Iterator[dict]:
        """Yield the entries written so far."""
        return self.journal.entries()

    def finish(self) -> None:
        """Write the file, if there are any captions, and delete the journal."""
        if len(self.journal):
            with (
                atomic_write(self.format.path) as temporary,
                # Bytes of a file name that are not UTF-8 are written as \\udcXX, which JSON reads back.
                open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
            ):
                self.format.write(file, self.journal.entries(self.format.sort_key), self.failed)
        self.journal.remove()


@contextmanager
def results_file(
    path: Path, ids: Sequence[int], *, resume: bool = False, **options: Any
) -> Iterator[Results]:
    """Context manager for a results file, which is written when the block ends without an error.

    If the block raises, the journal stays. With `resume`, the entries of a journal or of a complete file are kept.
    `options` are arguments of `ResultsFormat`. Raises UserError if the file cannot be written, or if the existing
    entries were written with other settings.
    """
    format = format_of(path)(path, **options)
    continues = (resume or was_restarted()) and journal_of(path).exists()
    if continues:
        journal = Journal.reopen(journal_of(path), format.settings)
    else:
        kept = finished(format) if resume and path.exists() else ()
        journal = Journal.begin(journal_of(path), format.settings, kept)
    results = Results(format, journal, ids)
    try:
        yield results
        results.finish()
    finally:
        if continues or journal.added:
            journal.close()
        else:
            journal.remove()  # it holds nothing that the results file does not


def finished(format: ResultsFormat) -> Iterator[dict]:
    """Yield the entries of a complete file. Raises UserError if the file is damaged or of another model."""
    try:
        for number, entry in enumerate(format.read()):
            if not isinstance(entry["image_id"], int) or not isinstance(entry["file_name"], str):
                raise TypeError
            if number == 0:
                format.require_compatible(entry)
            yield entry
    except PermissionError:
        raise
    except (ValueError, KeyError, TypeError, OSError, csv.Error) as error:
        raise UserError(
            f"--resume: {format.path} was not written by {program_name('caption.py')}; move it away or name "
            "another --output"
        ) from error


def image_ids(paths: Sequence[Path]) -> list[int]:
    """Image ids from file names (000139.jpg, COCO_val2014_000000000042.jpg) if all have distinct ones; else 1, 2..."""
    numbers = [int(match[1]) for path in paths if (match := COCO_NAME.fullmatch(path.stem))]
    if len(set(numbers)) == len(paths):
        return numbers
    return list(range(1, len(paths) + 1))
