"""Worker processes end with the program that started them."""

import os
import select
import signal
import time

import torch.utils.data._utils.worker
from torch.utils.data import Dataset

from sca_caption.config import TrainConfig
from sca_caption.training import batches


class Slow(Dataset):
    def __getitem__(self, key):
        time.sleep(0.05)
        return key


class Blind:
    """As torch's watchdog is in a worker that starts while its program is killed."""

    def is_alive(self):
        return True


def wait_for_end(pipe: int, seconds: float) -> bool:
    """Read all of a pipe. Returns whether its other end is still open after so many seconds."""
    until = time.monotonic() + seconds
    while select.select([pipe], [], [], max(0, until - time.monotonic()))[0]:
        if not os.read(pipe, 4096):
            return False
    return True


def test_workers_of_a_killed_training_end_though_they_started_while_it_was_killed(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils.worker, "ManagerWatchdog", Blind)
    ours, theirs = os.pipe()  # its other end is open as long as a process lives that has it
    process = os.fork()
    if not process:
        os.setsid()
        config = TrainConfig(workers=2, batch_size=1)
        for batch in batches.loader(Slow(), [0] * 1000, config):
            os.write(theirs, bytes([int(batch)]))
        os._exit(1)
    os.close(theirs)
    assert os.read(ours, 1) == b"\0"  # both workers have started
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    open_after = wait_for_end(ours, 20)
    os.close(ours)
    if open_after:
        os.killpg(process, signal.SIGKILL)
    assert not open_after, "a worker lives on"
