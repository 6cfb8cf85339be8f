"""Images sorted into folders that are named after their classes: how such trees are found, read and split."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sca_caption.images import find_images, open_image
from sca_caption.runtime.errors import UserError

HELD_OUT = 0.2  # share of each class that is kept for validation where the folders make no splits
HIDDEN = (".", "__MACOSX")


@dataclass(frozen=True)
class Files:
    """Image files below `root`, read when they are needed.

    The paths are bytes in one array: a list of a million strings would be copied into every worker process, as
    counting references to a string writes to its page.
    """

    root: Path
    paths: np.ndarray  # (N,) bytes, relative to root

    @classmethod
    def of(cls, root: Path, paths: list[str]) -> "Files":
        return cls(root, np.array([os.fsencode(path) for path in paths]))

    def file_name(self, index: int) -> str:
        return os.fsdecode(bytes(self.paths[index]))

    def pixels(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), upright. Raises ImageError with the path."""
        return np.array(open_image(self.root / self.file_name(index)))

    def decoded_bytes(self, looked_at: int = 50) -> int:
        """About how much memory all of them take decoded, from the headers of some."""
        sizes = []
        for index in np.linspace(0, len(self.paths) - 1, min(looked_at, len(self.paths))).astype(int):
            try:
                with Image.open(self.root / self.file_name(index)) as image:
                    sizes.append(image.width * image.height * 3)
            except Exception:  # a damaged image: `pixels` will say so
                continue
        return int(np.mean(sizes) * len(self.paths)) if sizes else 0


def folders_of(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted; hidden ones are passed over."""
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(HIDDEN)
    )


def find_classes(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Class -> paths of its images relative to `folder`, both sorted; images may lie deeper in a class's folder.

    Raises UserError for no folders, a class without images, and a single class.
    """
    found = {}
    for name in folders_of(folder):
        if name in leave_out:
            continue
        inside = folder / name
        files = [path for path in find_images([inside]) if path != inside]  # itself where there are none
        if not files:
            raise UserError(
                f"class {name!r} is empty: no images in {inside}; put some there or remove the folder"
            )
        found[name] = sorted(path.relative_to(folder).as_posix() for path in files)
    if not found:
        raise UserError(
            f"no classes in {folder}: it holds no folders; make one folder of images for each class"
        )
    if len(found) == 1:
        raise UserError(f"only one class in {folder}, {next(iter(found))!r}; a classifier needs at least two")
    return found


def from_splits(
    root: Path, folders: dict[str, str]
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray], Files]:
    """Classes, labels (N,), indices of each split, and files of a tree root/FOLDER/CLASS/image.

    `folders` names the folder of each split. Raises UserError where the classes of two splits differ.
    """
    paths, labels, splits, classes = [], [], {}, None
    for split, folder in folders.items():
        found = find_classes(root / folder)
        classes = classes or list(found)
        if list(found) != classes:
            first = folders[next(iter(folders))]
            lacking, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
            differ = [f"{some(lacking)} only in {first}"] * bool(lacking) + [
                f"{some(extra)} only in {folder}"
            ] * bool(extra)
            raise UserError(
                f"{root}: {first} and {folder} have different classes ({'; '.join(differ)}); make them the same"
            )
        start = len(paths)
        for label, name in enumerate(classes):
            paths += [os.path.join(folder, path) for path in found[name]]
            labels += [label] * len(found[name])
        splits[split] = np.arange(start, len(paths))
    return classes, np.array(labels, np.int64), splits, Files.of(root, paths)


def from_classes(
    root: Path, seed: int, leave_out: tuple[str, ...] = ()
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray], Files]:
    """Classes, labels (N,), indices of each split, and files of a tree root/CLASS/image, split class by class.

    A fifth of each class, at least one image, is for validation: those whose names, with the seed, have the lowest
    SHA-256, so that the split is the same on every machine. Raises UserError for a class of a single image.
    """
    found = find_classes(root, leave_out)
    paths, labels, held_out = [], [], []
    for label, (name, files) in enumerate(found.items()):
        if len(files) < 2:
            raise UserError(
                f"class {name!r} has one image in {root / name}; a split for validation needs at least two"
            )
        digests = {
            path: hashlib.sha256(f"{seed}/{path}".encode("utf-8", "surrogatepass")).digest() for path in files
        }
        count = max(1, round(HELD_OUT * len(files)))
        lowest = set(sorted(files, key=digests.__getitem__)[:count])
        paths += files
        labels += [label] * len(files)
        held_out += [path in lowest for path in files]
    held_out = np.array(held_out)
    splits = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}
    return list(found), np.array(labels, np.int64), splits, Files.of(root, paths)


def some(names: list[str], most: int = 3) -> str:
    """The first few of a list, in words."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
