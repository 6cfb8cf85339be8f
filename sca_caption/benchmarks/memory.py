"""Peak memory of a call, measured in a process of its own."""

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sca_caption.runtime.errors import UserError

PAGE = 4096  # bytes; the smallest value that is reported
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_growth(prepare: Callable[..., tuple], call: Callable[..., object], *arguments: Any) -> int:
    """Peak memory of `call(*prepare(*arguments))` in bytes, above the memory in use after `prepare`.

    Both functions must be at the top level of a module. Raises UserError on systems other than Linux.
    """
    check_measurable()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare, call, arguments))


def check_measurable() -> None:
    """Raise UserError on systems other than Linux."""
    if not RESET.exists():
        raise UserError("peak memory is measured on Linux only; leave it out on this system")


def peak() -> int:
    """Peak resident memory of this process in bytes, since its start or `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Set the peak of this process to the memory that it uses now."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc would reuse freed memory, which is not counted
        ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")


def _measure(prepare: Callable[..., tuple], call: Callable[..., object], arguments: tuple) -> int:
    prepared = prepare(*arguments)
    reset_peak()
    before = peak()
    call(*prepared)
    return max(PAGE, peak() - before)


def _status(name: str) -> int:
    """A value of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
