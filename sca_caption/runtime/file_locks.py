"""Locks of files and folders against other processes, by flock. They end when the file is closed or the process ends.

Processes that are forked later share an open file, and with it the lock, which would last until they end as well:
workers outlive a program that is killed. In them such files are therefore open on nothing.
"""

import errno
import os
import weakref
from pathlib import Path
from typing import Protocol

from sca_caption.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked
    fcntl = None  # type: ignore[assignment]


class OpenFile(Protocol):
    """What is locked: an open file, or an `OpenFolder`."""

    @property
    def closed(self) -> bool: ...
    def fileno(self) -> int: ...


class OpenFolder:
    """A folder, to be locked. Raises OSError if it cannot be opened."""

    def __init__(self, path: Path):
        self.descriptor, self.closed = os.open(path, os.O_RDONLY), False

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self.descriptor)


_locked: "weakref.WeakSet[OpenFile]" = weakref.WeakSet()


def lock(file: OpenFile, wait: bool = False) -> None:
    """Lock an open file. If another process has locked it: wait, or raise BlockingIOError.

    Raises OSError if the file system or the operating system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    _locked.add(file)


def lock_alone(file: OpenFile, taken: str) -> None:
    """Lock an open file, where there are locks. Raises UserError with `taken` if another process has locked it."""
    try:
        lock(file)
    except BlockingIOError as error:
        raise UserError(taken) from error
    except OSError:
        pass


def _leave_locks_to_parent() -> None:
    for file in _locked:
        if not file.closed:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, file.fileno(), inheritable=False)
            os.close(nothing)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_parent)
