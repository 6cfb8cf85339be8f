"""Peak memory of a call, in a process of its own so that nothing else counts."""

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path

from sca_caption.runtime.errors import UserError

PAGE = 4096  # nothing takes less
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_growth(prepare: Callable[..., tuple], call: Callable[..., object], *arguments) -> int:
    """Bytes that `call(*prepare(*arguments))` holds at its peak, above what `prepare` left. Both are module-level.

    Raises UserError where the system does not say (it is Linux that does).
    """
    if not RESET.exists():
        raise UserError("peak memory is measured on Linux only; leave it out on this system")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare, call, arguments))


def _measure(prepare: Callable[..., tuple], call: Callable[..., object], arguments: tuple) -> int:
    prepared = prepare(*arguments)
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc: freed memory would hide what the call takes
        ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")  # the peak starts again at what is held now
    before = _status("VmHWM")
    call(*prepared)
    return max(PAGE, _status("VmHWM") - before)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
