"""Locks: who has one, and that processes which were forked meanwhile have no part in it."""

import os
from contextlib import closing
from multiprocessing import get_context

import pytest

from sca_caption.runtime.errors import UserError
from sca_caption.runtime.file_locks import OpenFolder, lock, lock_alone

pytest.importorskip("fcntl")


@pytest.fixture(params=["file", "folder"])
def opened(request, tmp_path):
    """opened() -> a file or a folder, opened once more."""
    (tmp_path / "file").write_bytes(b"as before")
    return lambda: OpenFolder(tmp_path) if request.param == "folder" else open(tmp_path / "file", "r+b")


def test_one_at_a_time(opened):
    with closing(opened()) as first, closing(opened()) as second:
        lock(first)
        with pytest.raises(BlockingIOError):
            lock(second)
        with pytest.raises(UserError, match="taken"):
            lock_alone(second, "taken")
        first.close()
        lock_alone(second, "taken")


def wait_for_end(file, pipe):
    if not isinstance(file, OpenFolder):
        os.write(file.fileno(), b"written by a child")
    pipe.send("begun")
    pipe.recv()


def test_a_fork_neither_keeps_the_lock_nor_ends_it(opened, tmp_path):
    """As when a program is killed, while its workers still live."""
    fork = get_context("fork")
    ours, theirs = fork.Pipe()
    with closing(opened()) as first, closing(opened()) as second:
        lock(first)
        child = fork.Process(target=wait_for_end, args=(first, theirs))
        child.start()
        assert ours.recv() == "begun"
        with pytest.raises(BlockingIOError):
            lock(second)
        first.close()
        lock(second)
        ours.send("end")
        child.join()
        with closing(opened()) as third, pytest.raises(BlockingIOError):
            lock(third)
    assert child.exitcode == 0 and (tmp_path / "file").read_bytes() == b"as before"
