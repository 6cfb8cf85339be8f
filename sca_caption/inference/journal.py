"""What a long run has done so far, line by line in a file beside the one that it will become.

A journal is JSON lines: {"settings": {...}} first, then an entry for each image. It grows by whole lines that reach the
system at once, so a process that is killed loses only what it had not finished, and a last line that is torn is dropped.
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

EARLIER = {"mention": "force_words", "with_attention": "save_attention"}  # current names of earlier settings
SYNCED = 16  # entries after which the disk must have them: what a power cut may cost


def journal_of(output: Path) -> Path:
    """The journal of a run that writes `output`."""
    return output.with_name(output.name + ".partial")


class Journal:
    """A journal that is open for more entries, which are dicts with "file_name" and "image_id".

    names: how many entries each file name has. ids: of all entries. added: how many came since it was opened.
    """

    def __init__(self, path: Path, file: BinaryIO, names: Counter[str], ids: set[int]):
        self.path, self.file, self.names, self.ids, self.added = path, file, names, ids, 0

    @classmethod
    def begin(cls, path: Path, settings: dict, entries: Iterable[dict] = ()) -> "Journal":
        """A new journal, which holds some entries already. Raises UserError where it cannot be written."""
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            file.write(_line({"settings": settings}))
            file.writelines(map(_line, entries))
        return cls.reopen(path, settings)

    @classmethod
    def reopen(cls, path: Path, settings: dict) -> "Journal":
        """Go on with a journal that a run with the same settings left.

        Raises UserError for other settings, for what is no journal, and while another run writes it.
        """
        names, ids, end = Counter(), set(), 0
        try:
            file = open(path, "r+b")  # noqa: SIM115 (stays open)
            try:
                _lock(file, path)
                for value, end in _whole_lines(file):  # noqa: B007 (where the last whole line ends)
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
            raise UserError(f"{path} is not what an interrupted run leaves; delete it") from error
        except OSError as error:
            raise UserError(
                f"cannot go on with {path} ({error.strerror}); delete it to start anew"
            ) from error
        return cls(path, file, names, ids)

    def append(self, entry: dict) -> None:
        """Write an entry, at once. Raises UserError where the disk is full."""
        try:
            self.file.write(_line(entry))
            self.file.flush()
            self.added += 1
            if self.added % SYNCED == 0:
                os.fsync(self.file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror}); free space, then go on with --resume"
            ) from error
        self.names[entry["file_name"]] += 1
        self.ids.add(entry["image_id"])

    def __len__(self) -> int:
        return self.names.total()

    def entries(self, key: Callable[[dict], Any] | None = None) -> Iterator[dict]:
        """All entries as they came, or sorted by `key`; only where each begins is held in memory.

        Raises UserError where some are gone: another program has written to the file.
        """
        begins, start = [], 0
        with open(self.path, "rb") as file:
            for value, end in _whole_lines(file):
                if "settings" not in value:
                    begins.append((key(value) if key else 0, start))
                start = end
            if len(begins) != len(self):
                raise UserError(
                    f"{self.path} has {len(begins)} of {len(self)} captions: another program changed it; "
                    f"delete it and run again"
                )
            for _, begin in sorted(begins):
                file.seek(begin)
                yield json.loads(file.readline())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which has been told
            self.file.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep other runs from writing the journal until it is closed or the process ends, in whatever way."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another run is writing {path}; wait until it ends") from error
    except OSError:  # file systems without locks
        return


def require_same(path: Path, old: dict, new: dict) -> None:
    """Raise UserError where what is in `path` was made with other settings."""
    old = {EARLIER.get(name, name): value for name, value in current_names(old, SearchConfig).items()}
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            flag = "--" + name.replace("_", "-")
            how = (
                "by another model"
                if name == "checkpoint"
                else f"with {flag} {_shown(old.get(name))}, now it is {_shown(new.get(name))}"
            )
            raise UserError(
                f"--resume: {path} was made {how}; give what it was made with, or delete it to start anew"
            )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _line(value: dict) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"  # ASCII: a name's bytes that are no UTF-8 survive


def _whole_lines(file: BinaryIO) -> Iterator[tuple[dict, int]]:
    """Each line's value with where the line ends, up to one that is torn."""
    end = 0
    for text in iter(file.readline, b""):
        end += len(text)
        try:
            value = json.loads(text) if text.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            return
        yield value, end
