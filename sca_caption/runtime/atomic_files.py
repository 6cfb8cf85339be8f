"""Files that are written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sca_caption.runtime.errors import UserError


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, flag: str = "--output", ending: str = "tmp", make_folder: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `path`, to be written to; it takes the name `path` when the block ends well.

    When the block raises, the temporary file is removed and `path` stays as it was, and so it does where the block
    leaves no temporary file. Raises UserError, which names `flag` as what to change, for any OSError in the block.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{ending}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    except BrokenPipeError:  # of a stream: whoever read what the program prints went away
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"cannot write {path} ({reason}); free space or choose another {flag}") from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or its folder cannot be
            temporary.unlink()


def check_writable(path: Path, flag: str = "--output") -> None:
    """Raise UserError where `path` cannot be the name of a new file, before work is spent on its content."""
    if path.is_dir():
        raise UserError(f"cannot write {flag} {path}: it is a folder, name a file")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {flag} {path}: no folder {path.parent}, make it")


@contextlib.contextmanager
def replacing_folder(
    path: str | os.PathLike, is_ours: Callable[[Path], bool], flag: str = "--output"
) -> Iterator[Path]:
    """The same for a folder: yield a new, empty one beside `path`, which takes its name when the block ends well.

    A folder that `is_ours` says yes to, or an empty one, is replaced. Raises UserError for any other and for a file
    before the block runs, and for any OSError in the block.
    """
    path = Path(path).absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write {flag} {path}: it is a file, name a folder")
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{ending}") for ending in ("tmp", "old"))
    try:
        if path.exists() and any(path.iterdir()) and not is_ours(path):
            raise UserError(f"{flag} {path} holds other files; name a new folder, or an empty one")
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
