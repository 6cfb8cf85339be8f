"""Files written whole or not at all: what stands in the folder after success and after every kind of failure."""

import errno
import os

import pytest

from sca_caption.runtime.atomic_files import atomic_folder, atomic_write, check_writable
from sca_caption.runtime.errors import UserError


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("error", [ValueError("no"), UserError("no"), KeyboardInterrupt(), BrokenPipeError()])
def test_whatever_is_raised_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["scores.json"]


def test_a_full_disk_is_said_in_one_line(tmp_path):
    path = tmp_path / "why.png"
    with pytest.raises(UserError) as caught, atomic_write(path, "--explain") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = f"cannot write {path} (No space left on device); free space or choose another --explain"
    assert str(caught.value) == message and os.listdir(tmp_path) == []


def test_a_folder_that_is_missing_is_an_error_or_made(tmp_path):
    path = tmp_path / "runs" / "a" / "best.pt"
    with pytest.raises(UserError, match="No such file or directory"), atomic_write(path) as temporary:
        temporary.write_text("content")
    with atomic_write(path, make_folder=True) as temporary:
        temporary.write_text("content")
    assert path.read_text() == "content"
    with pytest.raises(UserError, match=r"best\.pt"), atomic_write(path / "x", make_folder=True):
        pytest.fail("the block must not run")


def test_without_a_temporary_file_nothing_changes(tmp_path):
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


def is_ours(folder) -> bool:
    return (folder / "ours").exists()


def test_a_folder_appears_whole_and_replaces_its_like(tmp_path):
    path = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with atomic_folder(path, is_ours) as temporary:
            assert not list(temporary.iterdir())
            (temporary / "ours").write_text(content)
            (temporary / content).mkdir()
            assert not path.exists() or (path / "first").is_dir()
        assert (path / "ours").read_text() == content and os.listdir(path.parent) == ["model"]
    assert sorted(os.listdir(path)) == ["ours", "second"]


@pytest.mark.parametrize("error", [ValueError("no"), UserError("no"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "model"
    path.mkdir()
    (path / "ours").write_text("old")
    with pytest.raises(type(error)) as caught, atomic_folder(path, is_ours) as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert caught.value is error
    assert (path / "ours").read_text() == "old" and os.listdir(tmp_path) == ["model"]


def test_what_is_not_ours_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    for path, said in (("photos", "has other files"), ("photos/a.jpg", "it is a file; give a folder")):
        with pytest.raises(UserError, match=said), atomic_folder(tmp_path / path, is_ours):
            pytest.fail("the block must not run")
    with (
        pytest.raises(UserError, match="Not a directory"),
        atomic_folder(tmp_path / "photos/a.jpg/x", is_ours),
    ):
        pytest.fail("the block must not run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.jpg", "photos"]
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty", is_ours) as temporary:
        (temporary / "ours").write_text("new")
    assert os.listdir(tmp_path / "empty") == ["ours"]
