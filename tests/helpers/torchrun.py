"""Starts two processes of distributed_worker.py with torchrun, as users start a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed"
)


def torchrun(*arguments: object, cwd: Path, restarts: int = 0, **environment: str):
    """The finished torchrun: its `stdout` and `stderr` hold those of both processes. environment: BLOW."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", str(restarts), str(HERE / "distributed_worker.py")]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=900,
    )
