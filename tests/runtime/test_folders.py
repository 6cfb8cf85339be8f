"""The walk over folders: its order, links, loops, pipes and folders that cannot be listed."""

import os

from sca_caption.runtime.folders import list_folder, walk
from tests.helpers.odd_folders import lock, odd_folder


def test_links_are_followed_once_and_what_cannot_be_listed_is_reported(tmp_path, photos, monkeypatch):
    folder = odd_folder(tmp_path / "odd", photos[0])
    reported = []

    def report(path, error):
        reported.append((path, error.strerror))

    found = [path for path, _ in walk(folder, report)]
    assert found == ["a.jpg", "again.jpg", "broken.jpg", "b/c.jpg", "linked/e.jpg", "shut/d.jpg"]
    assert not reported
    lock(monkeypatch, folder / "shut")
    assert [path for path, _ in walk(folder, report)] == found[:-1]
    assert reported == [(folder / "shut", "Permission denied")]


def test_two_links_to_one_folder_are_both_followed(tmp_path):
    """COCO's train2014 and val2014 may be links to one folder of images."""
    (tmp_path / "root").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").touch()
    for name in ("train2014", "val2014"):
        (tmp_path / "root" / name).symlink_to("../images")
    found = [path for path, _ in walk(tmp_path / "root", lambda *_: None)]
    assert found == ["train2014/a.jpg", "val2014/a.jpg"]


def test_enter_limits_the_walk(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    for path in ("a/1", "a/b/2", "a/b/c/3"):
        (tmp_path / path).touch()
    asked = []

    def enter(path, depth):
        asked.append((path, depth))
        return depth < 2

    assert [path for path, _ in walk(tmp_path, lambda *_: None, enter)] == ["a/1", "a/b/2"]
    assert asked == [("a", 0), ("a/b", 1), ("a/b/c", 2)]


def test_names_that_lead_back_to_themselves_are_files(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    files, folders = list_folder(os.fsencode(tmp_path).decode())
    assert [entry.name for entry in files] == ["loop.jpg"] and not folders
