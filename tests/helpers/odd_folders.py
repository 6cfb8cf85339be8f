"""A folder of photographs with what folders on disk also hold: links, loops, pipes, and folders without permission."""

import errno
import os
import shutil
from pathlib import Path


def odd_folder(root: Path, photograph: Path) -> Path:
    """root/photos: a.jpg, again.jpg (a link), broken.jpg (a broken one), b/c.jpg, linked/e.jpg, shut/d.jpg."""
    folder, elsewhere = root / "photos", root / "elsewhere"
    for inside in ("b", "shut", ".hidden", "__MACOSX"):
        (folder / inside).mkdir(parents=True)
        shutil.copy(photograph, folder / inside / {"b": "c.jpg", "shut": "d.jpg"}.get(inside, "x.jpg"))
    elsewhere.mkdir()
    shutil.copy(photograph, folder / "a.jpg")
    shutil.copy(photograph, elsewhere / "e.jpg")
    (folder / "again.jpg").symlink_to("a.jpg")
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "b/up").symlink_to("..")  # a loop
    (elsewhere / "back").symlink_to("../photos")  # a loop over two links
    os.mkfifo(folder / "pipe.jpg")
    return folder


def lock(monkeypatch, *folders: Path) -> None:
    """Refuse to list these folders, as the system refuses anyone but root."""
    scandir, closed = os.scandir, {os.fspath(folder) for folder in folders}

    def refusing(path="."):
        if os.fspath(path) in closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
