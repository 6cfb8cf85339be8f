"""Captions of many images in a file: COCO's results format as .json, .jsonl or .csv, or a page to look at, .html.

What is done is kept in a journal (see `journal`) until the file is complete, so that a run can go on where another was
killed, and memory does not grow with the number of images.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sca_caption.atomic import replacing
from sca_caption.distributed import restarted
from sca_caption.errors import UserError
from sca_caption.journal import Journal, journal_of, require_same

COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d+)")
ESCAPED_BYTE = re.compile(
    r"\\u(dc[89a-f][0-9a-f])"
)  # as "backslashreplace" writes a name's byte that is no UTF-8


class Kind:
    """How entries are made of results, written to a file of one kind and read back from it.

    An entry is {"image_id", "file_name", "caption", numbers...} and, with several captions, "captions", their list; and
    where the settings say "with_attention", "attention": see `attention_trace.numbers`.

    Args:
        numbers: fields of a Caption that it has, "score" and perhaps "confidence". settings: what the captions were
        made with, JSON-able. words: the vocabulary of their tokens. path: of the file.
    """

    pictured = False  # whether entries need the image small and what was attended in it

    def __init__(self, path: Path, numbers: Sequence[str], settings: dict, words: "Vocabulary"):  # noqa: F821
        self.path, self.numbers, self.settings, self.words = path, numbers, settings, words

    def entry(self, image_id: int, result: "Result") -> dict:  # noqa: F821
        captions = [
            {"caption": caption.text} | {name: round(getattr(caption, name), 4) for name in self.numbers}
            for caption in result.captions
        ]
        entry = {"image_id": image_id, "file_name": str(result.item)} | captions[0]
        if len(captions) > 1:
            logs = ({"log_prob": round(caption.log_prob, 4)} for caption in result.captions)
            entry["captions"] = [each | log for each, log in zip(captions, logs, strict=True)]
        if self.settings.get("with_attention"):
            from sca_caption.attention_trace import numbers  # here, as PyTorch takes its time

            words = self.words.spelled(result.captions[0].tokens)
            entry["attention"] = numbers(result.trace, words)
        return entry

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        """Write all entries. failed: why other images have none."""
        raise NotImplementedError

    def read(self) -> Iterator[dict]:
        """The entries of the file. Raises ValueError, KeyError or TypeError where it is none of this kind."""
        raise NotImplementedError

    def require_alike(self, entry: dict) -> None:
        """Raise UserError where an entry that was read cannot be of the same model and settings."""
        numbers = [name for name in ("score", "confidence") if name in entry]
        if numbers != list(self.numbers):
            require_same(self.path, {"checkpoint": numbers}, {"checkpoint": self.numbers})
        count, expected = len(entry.get("captions", [entry])), self.settings["num_captions"]
        if count > expected or (count == 1) != (expected == 1):
            require_same(self.path, {"num_captions": count}, {"num_captions": expected})


class JsonArray(Kind):
    """COCO's results format: a list, an entry a line."""

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        start = "[\n"
        for entry in entries:
            file.write(start + json.dumps(entry, ensure_ascii=False))
            start = ",\n"
        file.write("\n]\n")

    def read(self) -> Iterator[dict]:
        yield from json.loads(self.path.read_bytes())


class JsonLines(Kind):
    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def read(self) -> Iterator[dict]:
        with open(self.path, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())


class Table(Kind):
    """CSV: a row a caption."""

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image_id", "file_name", "caption", *self.numbers)

    def write(self, file: TextIO, entries: Iterable[dict], failed: Sequence[str]) -> None:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(self.columns)
        for entry in entries:
            for caption in entry.get("captions", [entry]):
                rows.writerow((entry | caption)[name] for name in self.columns)

    def read(self) -> Iterator[dict]:
        entry: dict = {}
        with open(self.path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or self.columns)[:4] != self.columns[:4]:
                raise ValueError(f"columns {rows.fieldnames}")
            for row in rows:
                image_id, name = int(row.pop("image_id")), row.pop("file_name")
                name = ESCAPED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), name)
                caption = {
                    key: float(value) if key in ("score", "confidence") else value
                    for key, value in row.items()
                }
                if entry and (entry["image_id"], entry["file_name"]) == (image_id, name):
                    entry.setdefault("captions", [entry["first"]]).append(caption)
                    continue
                if entry:
                    yield without_first(entry)
                entry = {"image_id": image_id, "file_name": name, **caption, "first": caption}
        if entry:
            yield without_first(entry)


def without_first(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key != "first"}


KINDS: dict[str, type[Kind]] = {".json": JsonArray, ".jsonl": JsonLines, ".csv": Table}


def check_results_file(path: Path, resume: bool = False) -> None:
    """Raise UserError for what cannot be the name of a results file, and where an interrupted run's would be lost."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"--output {path}: unknown kind {path.suffix!r}; one of: {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: no folder {path.parent}; make it first")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file")
    if journal_of(path).exists() and not resume and not restarted():
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

    def write(self, index: int, result: "Result") -> None:  # noqa: F821
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

    def finish(self, doubtful_first: bool) -> None:
        """Write the file and drop the journal; no file where there are no captions."""
        if len(self.journal):
            with (
                replacing(self.kind.path) as temporary,
                # A file name's bytes that are no UTF-8 come out as \\udcXX, which JSON reads back.
                open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
            ):
                entries = self.journal.entries(trust if doubtful_first else None)
                self.kind.write(file, entries, self.failed)
        self.journal.remove()


@contextmanager
def results_file(
    path: Path, ids: Sequence[int], *, resume: bool = False, doubtful_first: bool = False, **of_kind
) -> Iterator[Results]:
    """A results file that is written when the block ends well. of_kind: what `Kind` takes.

    When the block raises, its journal stays for `resume`, which keeps what that, or a complete file, has. Raises
    UserError where the file cannot be written, and where what is there was made with other settings.
    """
    kind = KINDS[path.suffix.lower()](path, **of_kind)
    going_on = (resume or restarted()) and journal_of(path).exists()
    if going_on:
        journal = Journal.reopen(journal_of(path), kind.settings)
    else:
        kept = finished(kind) if resume and path.exists() else ()
        journal = Journal.begin(journal_of(path), kind.settings, kept)
    results = Results(kind, journal, ids)
    try:
        yield results
        results.finish(doubtful_first)
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


def trust(entry: dict) -> float:
    return entry.get("confidence", entry["score"])


def image_ids(paths: Sequence[Path]) -> list[int]:
    """The numbers that the names are (000139.jpg, COCO_val2014_000000000042.jpg) if all differ; or 1, 2..."""
    numbers = [int(match[1]) for path in paths if (match := COCO_NAME.fullmatch(path.stem))]
    if len(set(numbers)) == len(paths):
        return numbers
    return list(range(1, len(paths) + 1))
