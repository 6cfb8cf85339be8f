"""Selection of the device, and the number of usable CPU cores."""

import os
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
        raise UserError(
            f"no device {name!r} ({' '.join(str(error).split())[:120]}); use cpu or auto"
        ) from error
    return device
