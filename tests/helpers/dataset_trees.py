"""Writes data sets as they are distributed, with stand-ins for the images, and looks at what was read."""

import pickle
import zipfile
from pathlib import Path


def image(name: str) -> bytes:
    """Stand in for an image file: readers pass the bytes on without opening them."""
    return f"bytes of {name}".encode()


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pack(path: Path, files: dict[str, str | bytes]) -> Path:
    """Write a zip whose members are stored and deflated in turn, with macOS's droppings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, content) in enumerate(files.items()):
            archive.writestr(name, content, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2])
            archive.writestr(f"__MACOSX/{name}", b"\0")
    return path


def contents(source) -> dict[str, tuple]:
    return {record.file_name: (record.captions, record.split) for record in source.records}


def readable(source) -> set[str]:
    """Return the names of the images that can be read, after a trip through pickle; check their bytes."""
    names = set()
    for record in pickle.loads(pickle.dumps(source.records)):
        try:
            assert record.read() == image(Path(record.file_name).name)
            names.add(record.file_name)
        except FileNotFoundError as error:
            assert record.file_name in str(error)
    return names
