"""Atomic files and folders: content of the folder after success and after each kind of failure."""

import errno
import os

import pytest

from sca_caption.runtime.atomic_files import (
    MACHINE,
    atomic_folder,
    atomic_write,
    check_writable,
    locked,
    temporary_path,
)
from sca_caption.runtime.errors import UserError


def test_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("error", [ValueError("no"), UserError("no"), KeyboardInterrupt(), BrokenPipeError()])
def test_old_file_is_kept_after_any_exception(tmp_path, error):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["scores.json"]


def test_full_disk_is_a_user_error(tmp_path):
    path = tmp_path / "why.png"
    with pytest.raises(UserError) as caught, atomic_write(path, "--explain") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for part in (f"cannot write {path}", "No space left on device", "free space", "--explain"):
        assert part in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_missing_folder_is_created_only_with_make_folder(tmp_path):
    path = tmp_path / "runs" / "a" / "best.pt"
    with pytest.raises(UserError, match="No such file or directory"), atomic_write(path) as temporary:
        temporary.write_text("content")
    with atomic_write(path, make_folder=True) as temporary:
        temporary.write_text("content")
    assert path.read_text() == "content"
    with pytest.raises(UserError, match=r"best\.pt"), atomic_write(path / "x", make_folder=True):
        pytest.fail("the block must not run")


def test_block_that_writes_no_file_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new.json")
    with pytest.raises(UserError, match=r"cannot write --explain .*: it is a folder; give a file"):
        check_writable(tmp_path, "--explain")
    with pytest.raises(UserError, match=r"cannot write --output .*x\.json: no folder .*no; create it"):
        check_writable(tmp_path / "no" / "x.json")


def can_replace(folder) -> bool:
    return (folder / "model.json").exists()


def test_folder_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with atomic_folder(path, can_replace) as temporary:
            assert not list(temporary.iterdir())
            (temporary / "model.json").write_text(content)
            (temporary / content).mkdir()
            assert not path.exists() or (path / "first").is_dir()
        assert (path / "model.json").read_text() == content and os.listdir(path.parent) == ["model"]
    assert sorted(os.listdir(path)) == ["model.json", "second"]


@pytest.mark.parametrize("error", [ValueError("no"), UserError("no"), KeyboardInterrupt()])
def test_old_folder_is_kept_after_any_exception(tmp_path, error):
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.json").write_text("old")
    with pytest.raises(type(error)) as caught, atomic_folder(path, can_replace) as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert caught.value is error
    assert (path / "model.json").read_text() == "old" and os.listdir(tmp_path) == ["model"]


def test_only_replaceable_and_empty_folders_are_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    for path, reason in (("photos", "has other files"), ("photos/a.jpg", "it is a file; give a folder")):
        with pytest.raises(UserError, match=reason), atomic_folder(tmp_path / path, can_replace):
            pytest.fail("the block must not run")
    with (
        pytest.raises(UserError, match="Not a directory"),
        atomic_folder(tmp_path / "photos/a.jpg/x", can_replace),
    ):
        pytest.fail("the block must not run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.jpg", "photos"]
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty", can_replace) as temporary:
        (temporary / "model.json").write_text("new")
    assert os.listdir(tmp_path / "empty") == ["model.json"]


def test_temporary_files_of_ended_processes_are_removed(tmp_path, ended):
    own, parent = f"{MACHINE}-{os.getpid()}", f"{MACHINE}-{os.getppid()}"
    kept = {f".a.json.{name}.tmp" for name in (parent, f"other-{ended}", f"{MACHINE}-x")}
    kept |= {f".b.json.{MACHINE}-{ended}.tmp", f"a.json.{MACHINE}-{ended}.tmp"}
    for name in kept | {f".a.json.{MACHINE}-{ended}.tmp"}:
        (tmp_path / name).write_text("half")
    with atomic_write(tmp_path / "a.json") as temporary:
        assert temporary.name == f".a.json.{own}.tmp"
        temporary.write_text("whole")
    assert set(os.listdir(tmp_path)) == kept | {"a.json"}


@pytest.mark.parametrize("path_exists", [True, False])
def test_temporary_folders_of_ended_processes(tmp_path, ended, path_exists):
    """One that was killed between its two renames had moved the old folder away."""
    path = tmp_path / "model"
    for name in ["model"] * path_exists + [f".model.{MACHINE}-{ended}.{ending}" for ending in ("tmp", "old")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(name)
    with pytest.raises(UserError, match="stop"), atomic_folder(path, can_replace):
        raise UserError("stop")
    assert os.listdir(tmp_path) == ["model"]
    wanted = "model" if path_exists else f".model.{MACHINE}-{ended}.old"
    assert (path / "model.json").read_text() == wanted
    assert temporary_path(path, "tmp").parent == tmp_path


def test_a_folder_is_locked_until_the_end_of_the_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path, "taken by another"):
            with pytest.raises(UserError, match="taken by another"), locked(tmp_path, "taken by another"):
                pytest.fail("the block must not run")
            assert os.listdir(tmp_path) == []
