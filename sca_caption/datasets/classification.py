"""Data sets of images with one class each, by name, as they lie on disk (layouts: data/README.md).

Whatever the layout, what comes out is a LabelledImages: classes, labels, splits, and pixels of any one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sca_caption.datasets import shapes
from sca_caption.datasets.image_folders import folders_of, from_classes, from_splits
from sca_caption.runtime.errors import UserError, choice

SPLITS = ("train", "val", "test")
KEPT_BYTES = 1 << 30  # a set that takes less decoded stays in memory once read
SHAPES_COUNTS = {"train": 2000, "val": 500, "test": 500}
SHAPES_SIZE = 64  # pixels, width and height


class Pictures(Protocol):
    """Where the pixels come from; picklable."""

    def pixels(self, index: int) -> np.ndarray: ...

    def file_name(self, index: int) -> str: ...

    def decoded_bytes(self) -> int: ...


class LabelledImages:
    """A data set for classification.

    name: as `open_dataset` takes it. classes: names, in the order of the labels. labels: int64 (N,), of all splits.
    splits_note: where the splits come from, in a phrase. An image is its index in `labels`.

    Pickles without the images it keeps, so that workers of a DataLoader can have it.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        labels: np.ndarray,
        splits: dict[str, np.ndarray],
        pictures: Pictures,
        splits_note: str,
    ):
        assert len(set(classes)) == len(classes) and {"train", "val"} <= set(splits)
        self.name, self.classes, self.labels, self.splits_note = name, tuple(classes), labels, splits_note
        self._splits = {"test": splits["val"], **splits}
        self._pictures = pictures
        self._keep = 0 < pictures.decoded_bytes() < KEPT_BYTES
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": {}}

    def indices(self, split: str) -> np.ndarray:
        """The images of "train", "val" or "test". A set without a test split of its own is tested on val."""
        return self._splits[choice(split, SPLITS, "split")]

    def pixels(self, index: int) -> np.ndarray:
        """An image, upright RGB at the file's own size: uint8 (H, W, 3), not to be written to.

        Raises ImageError, a UserError with the path, where the file cannot be read.
        """
        index = int(index)
        if index in self._kept:
            return self._kept[index]
        pixels = self._pictures.pixels(index)
        if self._keep:
            self._kept[index] = pixels
        return pixels

    def file_name(self, index: int) -> str:
        """The image's path below the root of the data set, or a made-up name where there is no file."""
        return self._pictures.file_name(int(index))


def open_dataset(name: str, root: str | Path | None = None, seed: int = 0) -> LabelledImages:
    """Open a data set by name; `root` is its folder, by default data/NAME.

    `seed` decides which pictures `shapes` draws, and which images are for validation where the files do not say
    (caltech101, folder without splits); elsewhere it has no effect.

    Raises UserError for an unknown name, a folder that is missing or holds something else, an empty class, and
    splits whose classes differ.
    """
    opener = OPENERS[choice(name, OPENERS, "dataset for classification")]
    root = Path(root) if root is not None else Path("data") / name
    if name != "shapes" and not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise UserError(
            f"{name} not found: {root} is {found}; {EXPECTED[name]}, or give its folder with --root DIR"
        )
    return opener(name, root, seed)


EXPECTED = {
    "cifar10": "unpack cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) there",
    "cifar100": "unpack cifar-100-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) there",
    "caltech101": "unpack 101_ObjectCategories (https://data.caltech.edu/records/mzrjq-6wc02) there",
    "imagenet": "make it hold train/WNID and val/WNID (data/README.md says how)",
    "folder": "make it hold a folder of images for each class, or train/CLASS and val/CLASS",
}


def open_cifar(name: str, root: Path, seed: int) -> LabelledImages:
    """The official Python files, or the same pictures as files in train/CLASS and test/CLASS."""
    count = int(name.removeprefix("cifar"))
    official = f"cifar-{count}-batches-py" if count == 10 else "cifar-100-python"
    note = "the official split, its test images for validation too, as usual"
    if root.name == official:
        root = root.parent
    if (root / official).is_dir():
        classes, labels, splits, pictures = read_cifar(count, root, official)
    elif {"train", "test"} <= set(folders_of(root)):
        classes, labels, splits, pictures = from_splits(root, {"train": "train", "val": "test"})
    else:
        raise UserError(
            f"{name} not found: {root} holds neither {official} nor train/CLASS and test/CLASS; {EXPECTED[name]}"
        )
    if len(classes) != count:
        raise UserError(
            f"{root} has {len(classes)} classes, {name} has {count}; give the right --dataset or --root"
        )
    return LabelledImages(name, classes, labels, splits, pictures, note)


def read_cifar(
    count: int, root: Path, official: str
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray], "Decoded"]:
    """Classes, labels, splits and pictures of the official files."""
    from sca_caption.runtime.torchvision_compat import torchvision

    opener = torchvision.datasets.CIFAR10 if count == 10 else torchvision.datasets.CIFAR100
    try:  # The files are pickles, which could run anything: torchvision compares each with its MD5 before opening it.
        parts = [opener(root, train) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(
            f"{root / official} is incomplete or altered: its MD5 sums are not the official ones; unpack it again"
        ) from error
    pixels = np.concatenate([part.data for part in parts])  # (60000, 32, 32, 3)
    labels = np.concatenate([part.targets for part in parts]).astype(np.int64)
    bounds = len(parts[0].data)
    splits = {"train": np.arange(bounds), "val": np.arange(bounds, len(labels))}
    return parts[0].classes, labels, splits, Decoded(pixels, bounds)


def open_caltech101(name: str, root: Path, seed: int) -> LabelledImages:
    """101_ObjectCategories in torchvision's layout; BACKGROUND_Google, which is no category, is left out."""
    categories = "101_ObjectCategories"
    places = [root / "caltech101" / categories, root / categories, root]
    folder = next((place for place in places if place.name == categories and place.is_dir()), None)
    if folder is None:
        raise UserError(f"{name} not found: {root} holds no {categories}; {EXPECTED[name]}")
    *found, files = from_classes(folder, seed, leave_out=("BACKGROUND_Google",))
    return LabelledImages(name, *found, files, f"80/20 in each class by hash, seed {seed}")


def open_imagenet(name: str, root: Path, seed: int) -> LabelledImages:
    """train/WNID and val/WNID. Classes in the order of the WNIDs, as in published weights."""
    if not {"train", "val"} <= set(folders_of(root)):
        raise UserError(f"{name} not found: {root} lacks train/WNID or val/WNID; {EXPECTED[name]}")
    wnids, labels, splits, files = from_splits(root, {"train": "train", "val": "val"})
    classes = readable(wnids, root / "LOC_synset_mapping.txt")
    return LabelledImages(name, classes, labels, splits, files, "train and val of the folders")


def readable(wnids: Sequence[str], mapping: Path) -> list[str]:
    """The first synonym of each WNID ("n01440764 tench, Tinca tinca"), with the WNID where two have the same."""
    if not mapping.is_file():
        return list(wnids)
    lines = mapping.read_text(encoding="utf-8", errors="replace").splitlines()
    synonyms = dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    names = [synonyms.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return [
        name if names.count(name) == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    ]


def open_folder(name: str, root: Path, seed: int) -> LabelledImages:
    """train/CLASS and val/CLASS, perhaps test/CLASS; or CLASS alone, divided by hash."""
    there = set(folders_of(root))
    if "train" not in there:
        *found, files = from_classes(root, seed)
        return LabelledImages(name, *found, files, f"80/20 in each class by hash, seed {seed}")
    if not there & {"val", "test"}:
        raise UserError(
            f"{root} has train but no val; add val/CLASS, or put the folders of the classes in {root} itself"
        )
    folders = {split: split for split in SPLITS if split in there}
    note = ", ".join(folders) + " of the folders"
    if "val" not in there:
        folders["val"], note = folders.pop("test"), "train and test of the folders, test for validation too"
    return LabelledImages(name, *from_splits(root, folders), note)


def open_shapes(name: str, root: Path, seed: int) -> LabelledImages:
    """Generated pictures of one shape; the class is its colour and kind. `root` is not read."""
    count = sum(SHAPES_COUNTS.values())
    labels = np.arange(count) % len(shapes.CLASSES)
    ends = np.cumsum(list(SHAPES_COUNTS.values()))
    splits = dict(zip(SHAPES_COUNTS, np.split(np.arange(count), ends[:-1]), strict=True))
    return LabelledImages(name, shapes.CLASSES, labels, splits, Drawn(seed), f"generated, seed {seed}")


OPENERS = {
    "caltech101": open_caltech101, "cifar10": open_cifar, "cifar100": open_cifar, "folder": open_folder,
    "imagenet": open_imagenet, "shapes": open_shapes,
}  # fmt: skip
NAMES = tuple(OPENERS)


@dataclass(frozen=True)
class Decoded:
    """Pictures that are in memory already: uint8 (N, H, W, 3), those for training first."""

    array: np.ndarray
    train: int  # how many

    def pixels(self, index: int) -> np.ndarray:
        return self.array[index]

    def file_name(self, index: int) -> str:
        return f"train/{index:05d}" if index < self.train else f"test/{index - self.train:05d}"

    def decoded_bytes(self) -> int:
        return 0  # nothing more to keep


@dataclass(frozen=True)
class Drawn:
    """Pictures of one shape, drawn when they are needed."""

    seed: int

    def pixels(self, index: int) -> np.ndarray:
        return np.array(shapes.draw(shapes.labelled_scene(self.seed, index), SHAPES_SIZE))

    def file_name(self, index: int) -> str:
        return f"shapes_{index:05d}.png"

    def decoded_bytes(self) -> int:
        return sum(SHAPES_COUNTS.values()) * SHAPES_SIZE**2 * 3
