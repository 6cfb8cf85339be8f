"""Data sets for classification on small folders of generated images: classes, splits, pixels and errors."""

import hashlib
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sca_caption import images
from sca_caption.datasets import classification as classification_data
from sca_caption.datasets import image_folders, shapes
from sca_caption.datasets.classification import LabelledImages, open_dataset
from sca_caption.runtime.errors import UserError
from tests.helpers.made_photos import message
from tests.helpers.odd_folders import lock, odd_folder

COLOURS = {"apple": "red", "cherry": "maroon", "leaf": "green", "plum": "purple"}


def tree(root: Path, classes=("apple", "leaf"), count: int = 5, ending: str = ".png") -> Path:
    """Write a folder per class with `count` images of its colour and of different sizes."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture = Image.new("RGB", (8 + index, 6), COLOURS.get(name, "grey"))
            picture.save(root / name / f"image_{index}{ending}")
    return root


def names(data: LabelledImages, split: str) -> list[str]:
    return [data.file_name(index) for index in data.indices(split)]


def check_pixels(data: LabelledImages) -> None:
    """Assert that each image is in the folder of its class and has its colour."""
    for index, label in enumerate(data.labels):
        picture, name = data.pixels(index), data.classes[label]
        assert f"/{name}/" in f"/{data.file_name(index)}"
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        red, green, _ = picture[0, 0].astype(int)
        assert (red > green) == (name != "leaf")


def test_class_folders_are_split_per_class(tmp_path):
    data = open_dataset("folder", tree(tmp_path / "fruit", ("leaf", "apple", "plum"), count=10))
    assert data.classes == ("apple", "leaf", "plum") and data.name == "folder"
    assert data.labels.dtype == np.int64 and data.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert np.bincount(data.labels[data.indices("val")]).tolist() == [2, 2, 2]
    together = np.concatenate([data.indices("train"), data.indices("val")])
    assert sorted(together) == list(range(30)) and len(data) == 30
    assert names(data, "test") == names(data, "val")
    assert "80/20" in data.splits_note and "seed 0" in data.splits_note
    check_pixels(data)


def test_val_has_the_lowest_hashes_of_the_names(tmp_path):
    root = tree(tmp_path / "fruit", count=7)
    splits = {}
    for seed in (0, 1, 0):
        data = open_dataset("folder", root, seed)
        found = names(data, "val")
        assert splits.setdefault(seed, found) == found
        for name in ("apple", "leaf"):
            files = [f"{name}/image_{index}.png" for index in range(7)]
            ordered = sorted(files, key=lambda file: hashlib.sha256(f"{seed}/{file}".encode()).digest())
            assert [file for file in found if file.startswith(name)] == [ordered[0]]  # 7 / 5 rounds to 1
    assert splits[0] != splits[1]


def test_a_number_of_training_images_per_class(tmp_path):
    """Caltech-101's usual protocol: as many of each class, and all others to test; another seed, other images."""
    root = tree(tmp_path / "101_ObjectCategories", count=7)
    shutil.copy(root / "apple/image_0.png", root / "apple/image_7.png")
    trained = {}
    for seed in (0, 1):
        for name, place in (("caltech101", tmp_path), ("folder", root)):
            data = open_dataset(name, place, seed, per_class=5)
            assert np.bincount(data.labels[data.indices("train")]).tolist() == [5, 5]
            assert np.bincount(data.labels[data.indices("val")]).tolist() == [3, 2]
            assert len({*names(data, "train"), *names(data, "val")}) == len(data) == 15
            files = [f"leaf/image_{index}.png" for index in range(7)]
            last = sorted(files, key=lambda file: hashlib.sha256(f"{seed}/{file}".encode()).digest())[2:]
            assert {file for file in names(data, "train") if "leaf" in file} == set(last)
            assert "5 training images" in data.splits_note and f"seed {seed}" in data.splits_note
        trained[seed] = set(names(data, "train"))
    assert trained[0] != trained[1]
    message(lambda: open_dataset("folder", root, per_class=7), "'leaf'", "7 images", "--train-per-class")
    message(lambda: open_dataset("shapes", per_class=7), "--train-per-class 7", "shapes")


def test_split_folders(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        tree(tmp_path / split, count=count, ending=".jpg")
    data = open_dataset("folder", tmp_path)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        assert len(data.indices(split)) == 2 * count
        assert all(name.startswith(f"{split}/") for name in names(data, split))
    check_pixels(data)
    shutil.rmtree(tmp_path / "val")
    data = open_dataset("folder", tmp_path)
    assert names(data, "val") == names(data, "test") and len(names(data, "test")) == 6
    assert "validation" in data.splits_note


def test_subfolders_of_a_class_are_searched_and_other_files_skipped(tmp_path):
    tree(tmp_path, count=2)
    tree(tmp_path / "apple" / "more", ("cherry",), count=1)
    (tmp_path / "apple" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("no class")
    data = open_dataset("folder", tmp_path)
    assert data.classes == ("apple", "leaf")
    assert "apple/more/cherry/image_0.png" in names(data, "train") + names(data, "val") and len(data) == 5


def test_links_of_a_class_are_followed_and_closed_folders_refused(tmp_path, photos, monkeypatch):
    for name in ("cat", "dog"):
        odd_folder(tmp_path / "odd" / name, photos[0])
        (tmp_path / "odd" / name / "photos/broken.jpg").unlink()
        (tmp_path / "root").mkdir(exist_ok=True)
        (tmp_path / "root" / name).symlink_to(f"../odd/{name}/photos")
    inside = ("a.jpg", "again.jpg", "b/c.jpg", "linked/e.jpg", "shut/d.jpg")
    data = open_dataset("folder", tmp_path / "root")
    assert {data.file_name(i) for i in range(len(data))} == {
        f"{c}/{i}" for c in ("cat", "dog") for i in inside
    }
    for closed in ("root/dog/shut", "root"):
        lock(monkeypatch, tmp_path / closed)
        with pytest.raises(UserError, match=f"{closed} cannot be listed \\(Permission denied\\)"):
            open_dataset("folder", tmp_path / "root")


def test_pixels_are_upright_rgb(tmp_path):
    tree(tmp_path, count=2)
    Image.new("L", (4, 9), 100).save(tmp_path / "apple" / "image_0.png")
    turned, exif = Image.new("RGB", (12, 5), "red"), Image.Exif()
    exif[images.ORIENTATION] = 6
    turned.save(tmp_path / "apple" / "image_1.png", exif=exif)
    data = open_dataset("folder", tmp_path)
    assert data.pixels(0).shape == (9, 4, 3) and data.pixels(1).shape == (12, 5, 3)


def test_data_set_pickles_without_its_cache(tmp_path):
    data = open_dataset("folder", tree(tmp_path, count=3))
    first = data.pixels(0)
    assert data.pixels(np.int64(0)) is first  # cached, also for integers of numpy
    size = len(pickle.dumps(data))
    copy = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(open_dataset("folder", tmp_path))) == size
    assert np.array_equal(copy.pixels(0), first) and copy.classes == data.classes


def test_large_data_set_is_not_cached(tmp_path, monkeypatch):
    root = tree(tmp_path, count=3)  # 2 x (8 + 9 + 10) x 6 pixels of three bytes
    assert open_dataset("folder", root)._source.decoded_bytes() == 2 * 27 * 6 * 3
    monkeypatch.setattr(classification_data, "CACHE_BYTES", 2 * 27 * 6 * 3)
    data = open_dataset("folder", root)
    assert data.pixels(0) is not data.pixels(0)


def test_shapes():
    data = open_dataset("shapes")
    assert len(data.classes) == 15 and data.classes[:2] == ("blue circle", "blue square")
    assert [len(data.indices(split)) for split in ("train", "val", "test")] == [2000, 500, 500]
    assert len(np.unique(np.concatenate([data.indices(s) for s in ("train", "val", "test")]))) == 3000
    for split in ("train", "val", "test"):
        counts = np.bincount(data.labels[data.indices(split)], minlength=15)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(open_dataset("shapes").pixels(7), data.pixels(7))
    assert not np.array_equal(open_dataset("shapes", seed=1).pixels(7), data.pixels(7))


def test_drawn_shape_agrees_with_its_class():
    data = open_dataset("shapes")
    for index in range(0, 3000, 97):
        colour, kind = data.classes[data.labels[index]].split()
        picture = data.pixels(index).astype(int)
        assert picture.shape == (64, 64, 3)
        distance = {name: np.abs(picture - level).max(2) for name, level in shapes.COLOURS.items()}
        area = {name: (away < 30).sum() for name, away in distance.items()}
        assert max(area, key=area.get) == colour and area[colour] > 60, index
        rows = (distance[colour] < 30).sum(1)
        rows = rows[rows > 0]
        filled = area[colour] / (len(rows) * rows.max())  # fraction of the bounding box
        expected = {"square": filled > 0.95, "circle": 0.7 < filled < 0.95, "triangle": filled < 0.7}
        assert expected[kind], index


def test_caltech101(tmp_path):
    root = tree(tmp_path / "caltech101" / "101_ObjectCategories", ("apple", "leaf", "BACKGROUND_Google"))
    for given in (tmp_path, tmp_path / "caltech101", root):
        data = open_dataset("caltech101", given)
        assert data.classes == ("apple", "leaf") and len(data) == 10
        assert names(data, "val") == names(open_dataset("folder", _without_background(root)), "val")
    with pytest.raises(UserError, match="has no 101_ObjectCategories; unpack"):
        open_dataset("caltech101", root / "apple")


def _without_background(root: Path) -> Path:
    copy = root.parent / "copy"
    if not copy.exists():
        shutil.copytree(root, copy, ignore=lambda *_: ["BACKGROUND_Google"])
    return copy


def test_imagenet(tmp_path):
    for split in ("train", "val"):
        tree(tmp_path / split, ("n01440764", "n02012849", "n03126707"), count=2)
    assert open_dataset("imagenet", tmp_path).classes == ("n01440764", "n02012849", "n03126707")
    mapping = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
    (tmp_path / "LOC_synset_mapping.txt").write_text(mapping)
    data = open_dataset("imagenet", tmp_path)
    assert data.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert names(data, "test") == names(data, "val") and data.file_name(0).startswith("train/n01440764/")
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(UserError, match="train/WNID"):
        open_dataset("imagenet", tmp_path)


def test_cifar_as_folders(tmp_path):
    classes = [f"class{index}" for index in range(10)]
    tree(tmp_path / "train", classes, count=3)
    tree(tmp_path / "test", classes, count=1)
    data = open_dataset("cifar10", tmp_path)
    assert len(data.indices("train")) == 30 and names(data, "val") == names(data, "test")
    assert all(name.startswith("test/") for name in names(data, "val")) and "official" in data.splits_note
    with pytest.raises(UserError, match=r"has 10 classes, cifar100 has 100.*--root"):
        open_dataset("cifar100", tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match="neither cifar-10-batches-py nor train/CLASS and test/CLASS; unpack"):
        open_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_official_files(name, tmp_path, monkeypatch):
    count, per_file = int(name[5:]), 20 if name == "cifar10" else 200
    root, rng, written = made_cifar(name, tmp_path, monkeypatch, per_file), np.random.default_rng(1), []
    data = open_dataset(name, tmp_path)
    files = 5 if name == "cifar10" else 1
    assert len(data.indices("train")) == files * per_file and len(data.indices("val")) == per_file
    assert data.indices("test") is data.indices("val") and len(data.classes) == count
    for _ in range(files + 1):
        written.append(rng.integers(0, 256, (per_file, 3, 32, 32), np.uint8))
    planes = np.concatenate(written)
    for index in (0, per_file, len(data) - 1):
        assert np.array_equal(data.pixels(index), planes[index].transpose(1, 2, 0))
        assert data.labels[index] == index % per_file % count
    assert data.file_name(1) == "train/00001" and data.file_name(len(data) - per_file) == "test/00000"
    assert len(open_dataset(name, root)) == len(data)  # with the folder itself as the root


@pytest.mark.parametrize("altered", ["test_batch", "batches.meta"])
def test_modified_pickle_is_not_loaded(altered, tmp_path, monkeypatch):
    root = made_cifar("cifar10", tmp_path, monkeypatch, 10)
    marker = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return Path.touch, (marker,)

    (root / altered).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="MD5 sums"):
        open_dataset("cifar10", tmp_path)
    assert not marker.exists()


def made_cifar(name: str, folder: Path, monkeypatch, per_file: int) -> Path:
    """Write random images in CIFAR's format, and replace torchvision's official MD5 sums by those of the files."""
    from sca_caption.runtime.torchvision_compat import torchvision

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    root, count, rng = folder / kind.base_folder, int(name[5:]), np.random.default_rng(1)
    root.mkdir()

    def write(file: str, content: dict) -> str:
        (root / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((root / file).read_bytes()).hexdigest()

    key = "labels" if name == "cifar10" else "fine_labels"
    sums = {}
    for file, _ in kind.train_list + kind.test_list:
        pixels = rng.integers(0, 256, (per_file, 3, 32, 32), np.uint8)
        sums[file] = write(
            file, {"data": pixels.reshape(per_file, -1), key: [i % count for i in range(per_file)]}
        )
    meta = {**kind.meta}
    meta["md5"] = write(meta["filename"], {meta["key"]: [f"class{index:02d}" for index in range(count)]})
    monkeypatch.setattr(kind, "train_list", [[file, sums[file]] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, sums[file]] for file, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", meta)
    return root


def test_unusable_folders_are_user_errors(tmp_path, monkeypatch):
    def assert_error(match: str, name: str = "folder", root: Path | None = tmp_path) -> None:
        with pytest.raises(UserError, match=match) as caught:
            open_dataset(name, root)
        assert "\n" not in str(caught.value)

    monkeypatch.chdir(tmp_path)
    assert_error(
        "unknown dataset for classification 'cifar'; one of: caltech101, cifar10, cifar100, folder", "cifar"
    )
    assert_error(
        "cifar10 not found: data/cifar10 is no such folder; unpack cifar-10-python.tar.gz", "cifar10", None
    )
    assert_error(
        "caltech101 not found: .*gone is no such folder; unpack 101_Obj", "caltech101", tmp_path / "gone"
    )
    assert_error("no classes in .*: it has no folders; make one folder of images per class")
    (tmp_path / "file").touch()
    assert_error("file is a file; give it one folder of images", "folder", tmp_path / "file")
    tree(tmp_path, ("apple",))
    assert_error("only one class in .*, 'apple'; a classifier needs at least two")
    (tmp_path / "plum").mkdir()
    (tmp_path / "plum" / "readme.txt").touch()
    assert_error("class 'plum' is empty: no images in .*plum; add images or remove the folder")
    Image.new("RGB", (3, 3)).save(tmp_path / "plum" / "only.png")
    assert_error("class 'plum' has one image in .*plum; add")


def test_splits_with_different_classes_are_an_error(tmp_path):
    tree(tmp_path / "train", ("apple", "cherry"))
    with pytest.raises(UserError, match="has train but no val; add val/CLASS"):
        open_dataset("folder", tmp_path)
    tree(tmp_path / "val", ("apple", "leaf", "plum"))
    wrong = "train and val have different classes .cherry only in train; leaf, plum only in val.; make them the same"
    with pytest.raises(UserError, match=wrong):
        open_dataset("folder", tmp_path)
    with pytest.raises(UserError, match="unknown split 'valid'; one of: test, train, val"):
        open_dataset("shapes").indices("valid")


def test_damaged_image_is_named(tmp_path):
    tree(tmp_path, count=2)
    (tmp_path / "leaf" / "image_1.png").write_bytes(b"nonsense")
    data = open_dataset("folder", tmp_path)
    with pytest.raises(UserError, match=r"leaf.image_1\.png: not an image"):
        data.pixels(3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems require UTF-8 names")
def test_file_names_that_are_not_utf_8(tmp_path):
    tree(tmp_path, count=2)
    odd = tmp_path / "leaf" / "caf\udce9.png"
    (tmp_path / "leaf" / "image_1.png").rename(odd)
    data = open_dataset("folder", tmp_path)
    assert data.file_name(2) == "leaf/caf\udce9.png" and data.pixels(2).shape == (6, 9, 3)


def test_first_few():
    assert image_folders.first_few(["a", "b"]) == "a, b"
    assert image_folders.first_few(list("abcde")) == "a, b, c and 2 more"
