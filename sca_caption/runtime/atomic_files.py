"""Files and folders that are written completely or not at all."""

import contextlib
import glob
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sca_caption.runtime.errors import UserError
from sca_caption.runtime.file_locks import OpenFolder, lock_alone

# In temporary names: whose process ids they have.
MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike, flag: str = "--output", ending: str = "tmp", make_folder: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `path`. At the end of the block, the file written to it replaces `path`.

    If the block raises an exception, the temporary file is removed and `path` is unchanged. If the block writes no file,
    `path` is unchanged too. Temporary files that killed processes of this machine left are removed. An OSError of the
    block is raised as UserError, which tells to change `flag`.
    """
    path = Path(path)
    temporary = temporary_path(path, ending)
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        for left in abandoned(path, ending):
            with contextlib.suppress(OSError):  # another process removes it too
                left.unlink()
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    except BrokenPipeError:  # of stdout, not of the file: its reader has ended
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"cannot write {path} ({reason}); free space or choose another {flag}") from error
    finally:
        with contextlib.suppress(OSError):  # it does not exist any more
            temporary.unlink()


def temporary_path(path: Path, ending: str) -> Path:
    """The name under which this process writes `path`."""
    return path.with_name(f".{path.name}.{MACHINE}-{os.getpid()}.{ending}")


def abandoned(path: Path, ending: str) -> list[Path]:
    """Temporary files or folders of `path` whose process, of this machine, has ended without removing them."""
    found = path.parent.glob(f".{glob.escape(path.name)}.{MACHINE}-*.{ending}")
    processes = {each: re.search(r"-(\d{1,9})\.[a-z]+$", each.name) for each in found}
    return [each for each, process in processes.items() if process and not _runs(int(process[1]))]


def _runs(process: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextlib.contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """Lock an existing folder against other processes that lock it. Raises UserError with `taken` if one has done so.

    The lock ends with the block, and with the process. File systems without locks are not locked.
    """
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError):
            lock_alone(opened.enter_context(contextlib.closing(OpenFolder(folder))), taken)
        yield


def check_writable(path: Path, flag: str = "--output") -> None:
    """Raise UserError if `path` is a folder, or its folder does not exist or gives no permission.

    Call it before computing the content.
    """
    if path.is_dir():
        raise UserError(f"cannot write {flag} {path}: it is a folder; give a file")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {flag} {path}: no folder {path.parent}; create it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {flag} {path}: no permission in {path.parent}; choose another folder")


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike, can_replace: Callable[[Path], bool], flag: str = "--output"
) -> Iterator[Path]:
    """Like `atomic_write` for a folder: yield a new, empty folder that replaces `path` at the end of the block.

    can_replace: returns True for a folder that may be replaced. An empty folder is always replaced. Raises UserError
    before the block for any other folder and for a file, and for an OSError of the block.
    """
    path = Path(path).absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write {flag} {path}: it is a file; give a folder")
    temporary, old = temporary_path(path, "tmp"), temporary_path(path, "old")
    try:
        for left in abandoned(path, "old"):
            if not path.exists():  # killed between the two renames below
                left.rename(path)
        for left in (*abandoned(path, "tmp"), *abandoned(path, "old")):
            shutil.rmtree(left, ignore_errors=True)
        if path.exists() and any(path.iterdir()) and not can_replace(path):
            raise UserError(f"{flag} {path} has other files; give a new or an empty folder")
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"cannot write {path} ({reason}); free space or choose another {flag}") from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
