"""Data sets for image classification, by name, in their usual layouts on disk (data/README.md).

`open_dataset` returns a LabelledImages for every layout: classes, labels, splits and the pixels of each image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sca_caption.datasets import shapes
from sca_caption.datasets.image_folders import list_folders, read_class_folders, read_split_folders
from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.programs import LAYOUTS

SPLITS = ("train", "val", "test")
CACHE_BYTES = 1 << 30  # a data set with fewer decoded bytes is kept in memory after it was read
SHAPES_COUNTS = {"train": 2000, "val": 500, "test": 500}
SHAPES_SIZE = 64  # pixels, width and height of an image


class ImageSource(Protocol):
    """The images behind a LabelledImages. Can be pickled."""

    def pixels(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3)."""

    def file_name(self, index: int) -> str:
        """The path of an image, relative to the data set's root."""

    def decoded_bytes(self) -> int:
        """Estimated memory of all images; 0 to disable the cache."""


class LabelledImages:
    """A data set for classification. An image is identified by its index in `labels`.

    name: the name for `open_dataset`. classes: names, in the order of the labels. labels: int64 (N,), of all splits.
    splits_note: the origin of the splits, as a phrase.

    Can be pickled for the workers of a DataLoader; cached images are left out.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        labels: np.ndarray,
        splits: dict[str, np.ndarray],
        source: ImageSource,
        splits_note: str,
    ):
        assert len(set(classes)) == len(classes) and {"train", "val"} <= set(splits)
        self.name, self.classes, self.labels, self.splits_note = name, tuple(classes), labels, splits_note
        self._splits = {"test": splits["val"], **splits}
        self._source = source
        self._use_cache = 0 < source.decoded_bytes() < CACHE_BYTES
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}

    def indices(self, split: str) -> np.ndarray:
        """Indices of the images of "train", "val" or "test". Without a test split, "test" is the same as "val"."""
        return self._splits[choice(split, SPLITS, "split")]

    def pixels(self, index: int) -> np.ndarray:
        """An image, upright RGB at its original size: uint8 (H, W, 3). Do not modify it, because it may be cached.

        Raises ImageError with the path if the file cannot be read.
        """
        index = int(index)
        if index in self._cache:
            return self._cache[index]
        pixels = self._source.pixels(index)
        if self._use_cache:
            self._cache[index] = pixels
        return pixels

    def file_name(self, index: int) -> str:
        """The path of an image relative to the data set's root, or a generated name if there is no file."""
        return self._source.file_name(int(index))


def open_dataset(
    name: str, root: str | Path | None = None, seed: int = 0, per_class: int = 0
) -> LabelledImages:
    """Open a data set by name.

    root: its folder, by default data/NAME. seed: of the generated images of `shapes`, and of the validation split of
    data sets without splits (caltech101, folder); otherwise without effect. per_class: their training images of each
    class; the others are for validation; 0: four fifths.

    Raises UserError for an unknown name, a folder that is missing or lacks the data set, an empty class, splits with
    different classes, and `per_class` for a data set that has splits, or not below the size of a class.
    """
    opener = OPENERS[choice(name, OPENERS, "dataset for classification")]
    root = Path(root) if root is not None else Path("data") / name
    if name != "shapes" and not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise UserError(
            f"{name} not found: {root} is {found}; {EXPECTED[name]}, or give its folder with --root DIR"
        )
    if per_class and (name not in UNSPLIT or (name == "folder" and "train" in list_folders(root))):
        raise UserError(
            f"--train-per-class {per_class}: {name} has its own splits; leave it out, or choose fewer images with --limit"
        )
    return opener(name, root, seed, per_class) if name in UNSPLIT else opener(name, root, seed)


EXPECTED = {
    "cifar10": "unpack cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) into it",
    "cifar100": "unpack cifar-100-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) into it",
    "caltech101": "unpack 101_ObjectCategories (https://data.caltech.edu/records/mzrjq-6wc02) into it",
    "imagenet": f"give it folders train/WNID and val/WNID (see {LAYOUTS})",
    "folder": "give it one folder of images per class, or folders train/CLASS and val/CLASS",
}


def open_cifar(name: str, root: Path, seed: int) -> LabelledImages:
    """CIFAR-10 or CIFAR-100 from the official Python files, or from image files in train/CLASS and test/CLASS."""
    count = int(name.removeprefix("cifar"))
    official = f"cifar-{count}-batches-py" if count == 10 else "cifar-100-python"
    source: ImageSource
    note = "official splits; the test images are also used for validation, as is usual"
    if root.name == official:
        root = root.parent
    if (root / official).is_dir():
        classes, labels, splits, source = read_cifar(count, root, official)
    elif {"train", "test"} <= set(list_folders(root)):
        classes, labels, splits, source = read_split_folders(root, {"train": "train", "val": "test"})
    else:
        raise UserError(
            f"{name} not found: {root} has neither {official} nor train/CLASS and test/CLASS; {EXPECTED[name]}"
        )
    if len(classes) != count:
        raise UserError(f"{root} has {len(classes)} classes, {name} has {count}; change --dataset or --root")
    return LabelledImages(name, classes, labels, splits, source, note)


def read_cifar(
    count: int, root: Path, official: str
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray], "ArrayImages"]:
    """Read the official files. Returns classes, labels, splits and images. Raises UserError if their MD5 sums differ."""
    from sca_caption.runtime.torchvision_compat import torchvision

    opener = torchvision.datasets.CIFAR10 if count == 10 else torchvision.datasets.CIFAR100
    try:  # pickles can run code, so torchvision checks the MD5 sum of each file first
        parts = [opener(root, train) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(
            f"{root / official} is incomplete or modified: its MD5 sums are not the official ones; unpack it again"
        ) from error
    pixels = np.concatenate([part.data for part in parts])  # (60000, 32, 32, 3)
    labels = np.concatenate([part.targets for part in parts]).astype(np.int64)
    bounds = len(parts[0].data)
    splits = {"train": np.arange(bounds), "val": np.arange(bounds, len(labels))}
    return parts[0].classes, labels, splits, ArrayImages(pixels, bounds)


def open_caltech101(name: str, root: Path, seed: int, per_class: int = 0) -> LabelledImages:
    """Caltech-101 (101_ObjectCategories), without BACKGROUND_Google, which is no category."""
    categories = "101_ObjectCategories"
    places = [root / "caltech101" / categories, root / categories, root]
    folder = next((place for place in places if place.name == categories and place.is_dir()), None)
    if folder is None:
        raise UserError(f"{name} not found: {root} has no {categories}; {EXPECTED[name]}")
    classes, labels, splits, files = read_class_folders(folder, seed, ("BACKGROUND_Google",), per_class)
    return LabelledImages(name, classes, labels, splits, files, hash_note(seed, per_class))


def hash_note(seed: int, per_class: int) -> str:
    """The origin of splits that `read_class_folders` makes."""
    return f"{f'{per_class} training images' if per_class else '80/20'} per class by hash, seed {seed}"


def open_imagenet(name: str, root: Path, seed: int) -> LabelledImages:
    """ImageNet from train/WNID and val/WNID. Classes are in the order of WNIDs, as for published weights."""
    if not {"train", "val"} <= set(list_folders(root)):
        raise UserError(f"{name} not found: {root} has no train/WNID or no val/WNID; {EXPECTED[name]}")
    wnids, labels, splits, files = read_split_folders(root, {"train": "train", "val": "val"})
    classes = synset_names(wnids, root / "LOC_synset_mapping.txt")
    return LabelledImages(name, classes, labels, splits, files, "folders train and val")


def synset_names(wnids: Sequence[str], mapping: Path) -> list[str]:
    """The first synonym per WNID ("n01440764 tench, Tinca tinca"), followed by the WNID if two WNIDs share it.

    mapping: LOC_synset_mapping.txt. Returns the WNIDs if it does not exist.
    """
    if not mapping.is_file():
        return list(wnids)
    lines = mapping.read_text(encoding="utf-8", errors="replace").splitlines()
    synonyms = dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    names = [synonyms.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return [
        name if names.count(name) == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    ]


def open_folder(name: str, root: Path, seed: int, per_class: int = 0) -> LabelledImages:
    """Folders train/CLASS, val/CLASS and optionally test/CLASS, or folders CLASS, which are split by hash."""
    folder_names = set(list_folders(root))
    if "train" not in folder_names:
        classes, labels, splits, files = read_class_folders(root, seed, per_class=per_class)
        return LabelledImages(name, classes, labels, splits, files, hash_note(seed, per_class))
    if not folder_names & {"val", "test"}:
        raise UserError(f"{root} has train but no val; add val/CLASS, or put the class folders into {root}")
    folders = {split: split for split in SPLITS if split in folder_names}
    note = "folders " + ", ".join(folders)
    if "val" not in folder_names:
        folders["val"], note = folders.pop("test"), "folders train and test; test is also used for validation"
    return LabelledImages(name, *read_split_folders(root, folders), note)


def open_shapes(name: str, root: Path, seed: int) -> LabelledImages:
    """Generated images of one shape. The class is its colour and kind. `root` is ignored."""
    count = sum(SHAPES_COUNTS.values())
    labels = np.arange(count) % len(shapes.CLASSES)
    ends = np.cumsum(list(SHAPES_COUNTS.values()))
    splits = dict(zip(SHAPES_COUNTS, np.split(np.arange(count), ends[:-1]), strict=True))
    return LabelledImages(
        name, shapes.CLASSES, labels, splits, GeneratedImages(seed), f"generated, seed {seed}"
    )


OPENERS: dict[str, Callable[..., LabelledImages]] = {
    "caltech101": open_caltech101, "cifar10": open_cifar, "cifar100": open_cifar, "folder": open_folder,
    "imagenet": open_imagenet, "shapes": open_shapes,
}  # fmt: skip
NAMES = tuple(OPENERS)
UNSPLIT = ("caltech101", "folder")  # without official splits, unless the folder has train


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, uint8 (N, H, W, 3), the training images first."""

    array: np.ndarray
    train: int  # number of training images

    def pixels(self, index: int) -> np.ndarray:
        return self.array[index]

    def file_name(self, index: int) -> str:
        return f"train/{index:05d}" if index < self.train else f"test/{index - self.train:05d}"

    def decoded_bytes(self) -> int:
        return 0  # no cache, because they are in memory


@dataclass(frozen=True)
class GeneratedImages:
    """Images of one shape, drawn on demand."""

    seed: int

    def pixels(self, index: int) -> np.ndarray:
        return np.array(shapes.draw(shapes.labelled_scene(self.seed, index), SHAPES_SIZE))

    def file_name(self, index: int) -> str:
        return f"shapes_{index:05d}.png"

    def decoded_bytes(self) -> int:
        return sum(SHAPES_COUNTS.values()) * SHAPES_SIZE**2 * 3
