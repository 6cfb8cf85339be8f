"""The journal of a captioning run: entries written so far, in a file beside the results file.

A journal has JSON lines: {"settings": {...}} first, then one entry per image. Each line is passed to the operating
system as soon as it is complete, so a killed process loses only unfinished images. An incomplete last line is ignored.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sca_caption.config import SearchConfig, current_names
from sca_caption.runtime.atomic_files import atomic_write
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.file_locks import lock_alone
from sca_caption.runtime.json_text import parse_json

# Current names of earlier settings.
EARLIER_NAMES = {
    "mention": "force_words",
    "with_attention": "save_attention",
    "no_objects": "no_guidance",
}
IS_WRITTEN = "another run is writing {}; wait until it ends"
SYNC_INTERVAL = 16  # entries between two fsync calls: the most that a power cut can lose


def journal_of(output: Path) -> Path:
    """The path of the journal for the results file `output`."""
    return output.with_name(output.name + ".partial")


def check_not_written(path: Path) -> None:
    """Raise UserError if a run is writing the journal `path`."""
    with open(path, "rb") as file:
        lock_alone(file, IS_WRITTEN.format(path))


class Journal:
    """An open journal. Entries are dicts with "file_name" and "image_id".

    Attributes:
        names: number of entries per file name.
        ids: image ids of all entries.
        added: number of entries added since the journal was opened.
    """

    def __init__(self, path: Path, file: BinaryIO, names: Counter[str], ids: set[int]):
        self.path, self.file, self.names, self.ids, self.added = path, file, names, ids, 0

    @classmethod
    def begin(cls, path: Path, settings: dict, entries: Iterable[dict] = ()) -> "Journal":
        """Create a journal with the given entries. Raises UserError if it cannot be written."""
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            file.write(_line({"settings": settings}))
            file.writelines(map(_line, entries))
        return cls.reopen(path, settings)

    @classmethod
    def reopen(cls, path: Path, settings: dict) -> "Journal":
        """Open the journal of an interrupted run to add entries.

        Raises UserError if its settings differ, if it is not a journal, or while another run writes to it.
        """
        names: Counter[str] = Counter()
        ids: set[int] = set()
        end = 0
        try:
            file = open(path, "r+b")  # noqa: SIM115 (stays open)
            try:
                lock_alone(file, IS_WRITTEN.format(path))
                for value, end in _whole_lines(file):  # noqa: B007 (`end` is used below)
                    if "settings" in value:
                        require_same(path, value["settings"], settings)
                    else:
                        names[value["file_name"]] += 1
                        ids.add(value["image_id"])
                if not end:
                    raise KeyError("settings")
                file.truncate(end)
                file.seek(end)
            except BaseException:
                file.close()
                raise
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not the journal of an interrupted run; delete it") from error
        except OSError as error:
            raise UserError(f"cannot continue {path} ({error.strerror}); delete it to start again") from error
        return cls(path, file, names, ids)

    def append(self, entry: dict) -> None:
        """Write an entry to the file at once. Raises UserError if the disk is full."""
        try:
            self.file.write(_line(entry))
            self.file.flush()
            self.added += 1
            if self.added % SYNC_INTERVAL == 0:
                os.fsync(self.file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror}); free space, then continue with --resume"
            ) from error
        self.names[entry["file_name"]] += 1
        self.ids.add(entry["image_id"])

    def __len__(self) -> int:
        return self.names.total()

    def entries(self, key: Callable[[dict], Any] | None = None) -> Iterator[dict]:
        """Yield all entries, in order or sorted by `key`. Only the sort keys and offsets are held in memory.

        Raises UserError if another program has changed the file.
        """
        offsets, start = [], 0
        with open(self.path, "rb") as file:
            for value, end in _whole_lines(file):
                if "settings" not in value:
                    offsets.append((key(value) if key else 0, start))
                start = end
            if len(offsets) != len(self):
                raise UserError(
                    f"{self.path} has {len(offsets)} of {len(self)} captions: another program changed it; "
                    f"delete it and run again"
                )
            for _, offset in sorted(offsets):
                file.seek(offset)
                yield json.loads(file.readline())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full; `append` has reported it
            self.file.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


def require_same(path: Path, old: dict, new: dict, flag: str = "--resume") -> None:
    """Raise UserError if the settings of the entries in `path` differ from those of this run, to which `flag` adds."""
    old = {EARLIER_NAMES.get(name, name): value for name, value in current_names(old, SearchConfig).items()}
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            setting = "--" + name.replace("_", "-")
            how = (
                "by another model"
                if name == "checkpoint"
                else f"with {setting} {_shown(old.get(name))}, now it is {_shown(new.get(name))}"
            )
            raise UserError(
                f"{flag}: {path} was written {how}; repeat the earlier options, or delete it to start again"
            )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _line(value: dict) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"  # ASCII keeps bytes of names that are not UTF-8


def _whole_lines(file: BinaryIO) -> Iterator[tuple[dict, int]]:
    """Yield the value of each line with the offset of its end, up to the first incomplete line."""
    end = 0
    for text in iter(file.readline, b""):
        end += len(text)
        try:
            value = parse_json(text) if text.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            return
        yield value, end
