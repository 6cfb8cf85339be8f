"""Image classification data in folders, one folder per class, with or without a folder per split."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from sca_caption.images import EXTENSIONS, ImageError, open_image, opened
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.folders import list_folder, walk

HELD_OUT = 0.2  # fraction of each class used for validation if there are no folders for splits


@dataclass(frozen=True)
class ImageFiles:
    """Image files below `root`, read on demand.

    The paths are bytes in one array. Worker processes would copy a list of a million strings, because counting references
    to a string writes to its memory page.
    """

    root: Path
    paths: np.ndarray  # (N,) bytes, relative to root

    @classmethod
    def of(cls, root: Path, paths: list[str]) -> "ImageFiles":
        return cls(root, np.array([os.fsencode(path) for path in paths]))

    def file_name(self, index: int) -> str:
        return os.fsdecode(bytes(self.paths[index]))

    def pixels(self, index: int) -> np.ndarray:
        """Image `index`, upright RGB: uint8 (H, W, 3). Raises ImageError with the path."""
        return np.array(open_image(self.root / self.file_name(index)))

    def decoded_bytes(self, samples: int = 50) -> int:
        """Estimated memory of all images, decoded, from the headers of at most `samples` files."""
        sizes = []
        for index in np.linspace(0, len(self.paths) - 1, min(samples, len(self.paths))).astype(int):
            try:
                with opened(self.root / self.file_name(index)) as image:
                    sizes.append(image.width * image.height * 3)
            except ImageError:  # `pixels` raises it again
                continue
        return int(np.mean(sizes) * len(self.paths)) if sizes else 0


def list_folders(root: Path) -> list[str]:
    """Sorted names of the folders in `root`, without hidden ones. Raises UserError if it cannot be listed."""
    try:
        return [entry.name for entry in list_folder(root)[1]]
    except OSError as error:
        refuse(root, error)


def refuse(folder: Path, error: OSError) -> NoReturn:
    """Raise UserError for a folder that cannot be listed: a class must not lack images without a word."""
    raise UserError(f"{folder} cannot be listed ({error.strerror}); change its permissions") from error


def find_classes(folder: Path, exclude: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Class -> paths of its images relative to `folder`, both sorted. Subfolders of a class are searched too.

    exclude: folders that are no classes. Raises UserError if there are fewer than two classes, if a class has no images,
    and if a folder cannot be listed.
    """
    found = {}
    for name in list_folders(folder):
        if name in exclude:
            continue
        inside = folder / name
        files = [
            path
            for path, entry in walk(inside, refuse)
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS
        ]
        if not files:
            raise UserError(
                f"class {name!r} is empty: no images in {inside}; add images or remove the folder"
            )
        found[name] = sorted(f"{name}/{path}" for path in files)
    if not found:
        raise UserError(f"no classes in {folder}: it has no folders; make one folder of images per class")
    if len(found) == 1:
        raise UserError(
            f"only one class in {folder}, {next(iter(found))!r}; a classifier needs at least two; add folders"
        )
    return found


def read_split_folders(
    root: Path, folders: dict[str, str]
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray], ImageFiles]:
    """Read root/FOLDER/CLASS/image. Returns classes, labels (N,), the indices of each split, and the files.

    folders: split -> FOLDER. Raises UserError if two splits have different classes.
    """
    paths: list[str] = []
    labels: list[int] = []
    splits: dict[str, np.ndarray] = {}
    classes: list[str] = []
    for split, folder in folders.items():
        found = find_classes(root / folder)
        classes = classes or list(found)
        if list(found) != classes:
            first = folders[next(iter(folders))]
            missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
            differ = [f"{first_few(missing)} only in {first}"] * bool(missing) + [
                f"{first_few(extra)} only in {folder}"
            ] * bool(extra)
            raise UserError(
                f"{root}: {first} and {folder} have different classes ({'; '.join(differ)}); make them the same"
            )
        start = len(paths)
        for label, name in enumerate(classes):
            paths += [os.path.join(folder, path) for path in found[name]]
            labels += [label] * len(found[name])
        splits[split] = np.arange(start, len(paths))
    return classes, np.array(labels, np.int64), splits, ImageFiles.of(root, paths)


def read_class_folders(
    root: Path, seed: int, exclude: tuple[str, ...] = (), per_class: int = 0
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray], ImageFiles]:
    """Read root/CLASS/image. Returns classes, labels (N,), the indices of each split, and the files.

    `per_class` images of each class are train and the others val; 0: a fifth of each class, at least one image, is val.
    The val images are those with the lowest SHA-256 of seed and path, so the split is the same on every machine. Raises
    UserError for a class with one image, or with no more than `per_class`.
    """
    found = find_classes(root, exclude)
    paths: list[str] = []
    labels: list[int] = []
    is_val: list[bool] = []
    for label, (name, files) in enumerate(found.items()):
        if len(files) < 2:
            raise UserError(f"class {name!r} has one image in {root / name}; add at least one for validation")
        if len(files) <= per_class:
            raise UserError(
                f"class {name!r} has {len(files)} images in {root / name}, none left for validation after {per_class} "
                f"for training; give a smaller --train-per-class"
            )
        digests = {
            path: hashlib.sha256(f"{seed}/{path}".encode("utf-8", "surrogatepass")).digest() for path in files
        }
        count = len(files) - per_class if per_class else max(1, round(HELD_OUT * len(files)))
        lowest = set(sorted(files, key=digests.__getitem__)[:count])
        paths += files
        labels += [label] * len(files)
        is_val += [path in lowest for path in files]
    held_out = np.array(is_val)
    splits = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}
    return list(found), np.array(labels, np.int64), splits, ImageFiles.of(root, paths)


def first_few(names: list[str], limit: int = 3) -> str:
    """The first `limit` names and the number of others, for error messages."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
