"""Selection of the device, the number of usable CPU cores, and what a fork leaves of them."""

import os
import sys
import time
from typing import TYPE_CHECKING

from sca_caption.runtime.errors import UserError

if TYPE_CHECKING:
    import torch


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(name: str = "auto") -> "torch.device":
    """The device called `name`; "auto" is the first GPU, or the CPU. Raises UserError if it is not available."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        reason = "" if reason.startswith("Expected one of") else f" ({reason})"  # a long list
        raise UserError(f"no device {name!r}{reason}; use auto, cpu or cuda") from error
    return device


def bfloat16_speed() -> float:
    """Speed of matrix products in bfloat16 on this CPU, compared with float32, as measured in a few milliseconds.

    Above 1 with AMX or AVX512-BF16. Without them bfloat16 is emulated and can take many times longer than float32.
    """
    import torch

    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix, times = torch.ones(256, 256, dtype=dtype), []
        for _ in range(4):  # the first prepares the library
            began = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - began)
        seconds.append(min(times))
    return seconds[0] / seconds[1]


def require_usable(made_in: int, survives_fork: bool) -> None:
    """Raise UserError for a model that the process `made_in` loaded, if this one is its fork and cannot use it."""
    if made_in != os.getpid() and not survives_fork:
        raise UserError(
            "the model was loaded before this process was forked, which neither a GPU nor onnxruntime survives; load it "
            "in each process (gunicorn without --preload), or start processes with multiprocessing's spawn"
        )


def _use_one_thread() -> None:
    """After a fork, compute in one thread: OpenMP's others are gone, and PyTorch would wait for them for ever."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)
