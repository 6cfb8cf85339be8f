"""The one walk over folders: which files of a folder count, how links are followed, and what is reported."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

Report = Callable[[Path, OSError], None]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over: a dot file, or a folder that macOS adds to zips."""
    return name.startswith(".") or name.lower() == "__macosx"


def list_folder(folder: str | os.PathLike[str]) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """The files and the folders of a folder, without hidden ones, each sorted by name; links count as their targets.

    Files are regular files and broken links, which raise OSError when they are opened. Pipes, sockets and devices are
    left out. Raises OSError for a folder that cannot be listed.
    """
    with os.scandir(folder) as listing:
        entries = sorted(
            (entry for entry in listing if not is_hidden(entry.name)), key=lambda entry: entry.name
        )
    kinds = [_kind(entry) for entry in entries]
    files, folders = (
        [entry for entry, kind in zip(entries, kinds, strict=True) if kind == wanted]
        for wanted in ("file", "folder")
    )
    return files, folders


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        is_broken = entry.is_symlink() and not os.path.exists(entry.path)
        return "file" if entry.is_file() or is_broken else "other"
    except OSError:  # a link that leads back to itself, or into a folder without permission: opening it tells
        return "file"


def walk(
    root: str | os.PathLike[str], report: Report, enter: Callable[[str, int], bool] = lambda path, depth: True
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the path relative to `root`, with slashes, and the entry of every file below `root`.

    The files of a folder come before those of the folders in it, both sorted. Links are followed, except to a folder that
    contains the link. Folders that cannot be listed are reported. enter(path, depth): whether to enter a folder; depth is
    0 for the folders of `root`.
    """

    def visit(folder: Path, prefix: str, above: frozenset) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            status = os.stat(folder)
            files, folders = list_folder(folder)
        except OSError as error:
            report(folder, error)
            return
        identity = status.st_dev, status.st_ino
        if identity in above:
            return
        yield from ((prefix + entry.name, entry) for entry in files)
        for entry in folders:
            path = prefix + entry.name
            if enter(path, path.count("/")):
                yield from visit(folder / entry.name, path + "/", above | {identity})

    return visit(Path(root), "", frozenset())
