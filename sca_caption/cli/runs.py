"""Training runs on disk: what train.py checks before it starts or resumes one."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sca_caption.config import RunConfig
from sca_caption.runtime.distributed import was_restarted
from sca_caption.runtime.errors import UserError, warn

if TYPE_CHECKING:
    from sca_caption.checkpoint import Checkpoint


def given(arguments: argparse.Namespace, *configs: type) -> dict:
    """Settings that were given as flags."""
    names = {f.name for c in configs for f in dataclasses.fields(c)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def resumes(arguments: argparse.Namespace, output: Path) -> bool:
    """Whether to resume the run in `output`: if --resume is given, or if torchrun restarted it.

    False for a run that ended before its first epoch was complete, which is started anew.
    """
    if (output / "last.pt").exists():
        return arguments.resume or was_restarted()
    if arguments.resume and output.is_dir():
        warn(f"the run in {output} has no complete epoch (no last.pt); starting it anew")
        return False
    return arguments.resume


def resumable(output: Path, task: str = "caption") -> "Checkpoint":
    """The checkpoint to resume the run in `output` from. Raises UserError if there is none."""
    from sca_caption import checkpoint

    if not (output / "last.pt").exists():
        raise UserError(
            f"--resume: there is no run in {output} (no last.pt); leave --resume out to start one"
        )
    found = checkpoint.load(output / "last.pt", task)
    if not {"config", "history", "data"} <= set(found.training):
        raise UserError(f"{output / 'last.pt'} has no state of a training run, as best.pt; start a new run")
    return found


def check_same_settings(found: dict[str, Any], train_config: RunConfig, model_config: object) -> None:
    """Raise UserError if a flag contradicts the run that is resumed."""
    kept = {**vars(train_config), **vars(model_config)}
    for name, value in found.items():
        if (tuple(value) if isinstance(value, list) else value) != kept[name]:
            raise UserError(
                f"--resume keeps the run's own settings; it has {name}={kept[name]}, found {value}: leave the flag out, "
                f"or start another run with another --output"
            )


def check_no_run_in(output: Path) -> None:
    """Raise UserError if the folder holds a run."""
    if (output / "last.pt").exists():
        raise UserError(
            f"{output} already holds a run; continue it with --resume, or choose another --output"
        )
