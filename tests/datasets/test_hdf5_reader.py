"""The data file read back: all fields, in other processes, and from damaged files."""

import collections
import io
import json
import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sca_caption.datasets import hdf5_images
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.datasets.sources.texts import Texts
from sca_caption.images import ImageError, fit
from sca_caption.vocab import UNK, Vocabulary, tokenize
from tests.helpers.made_photos import SMALL, change, dataset, encoded, message, photo, record, write


def test_every_field_is_read_back(tmp_path):
    captions = [
        ("A dog's red t-shirt.", "two dogs", "a dog"),
        ("a\tcat \n sleeps", "…", "a caf\u00e9 \ud83d cat\0"),
        ("a zebra",),
        ("dog " * 130,),
    ]
    source = dataset(4)
    for row, texts in enumerate(captions):
        change(source, row, captions=texts, file_name=f"naïve {row} 画.png")
    source.problems.append(("row 7", "not a caption line"))
    report = write(source, tmp_path / "made.h5", encoding="raw", min_count=1)
    data = CaptionDataset(tmp_path / "made.h5")

    assert len(data) == 4
    assert [data.file_name(i) for i in range(4)] == [f"naïve {i} 画.png" for i in range(4)]
    assert [data.image_id(i) for i in range(4)] == [1000, 1001, 1002, 1003]
    assert [data.indices(split).tolist() for split in ("train", "val", "test")] == [[0, 1], [2], [3]]
    assert (data.transform, data.encoding) == (SMALL, "raw")
    assert (data.source, data.min_count) == ("made for a test", 1)
    for i in range(4):
        assert np.array_equal(data.image(i), fit(photo(i), SMALL))
    assert data.references(0) == ["A dog's red t-shirt.", "two dogs", "a dog"]
    assert data.references(1) == ["a cat sleeps", "a café ? cat"]

    in_train = " ".join(captions[0] + captions[1]).replace("\ud83d", "?").replace("\0", " ")
    counts = collections.Counter(tokenize(in_train))
    assert data.vocabulary.words[4:] == tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    vocabulary = data.vocabulary.words
    words = [[[vocabulary[i] for i in caption] for caption in data.captions(row)] for row in range(4)]
    assert words[0] == [["a", "dog", "'s", "red", "t-shirt"], ["two", "dogs"], ["a", "dog"]]
    assert words[1] == [["a", "cat", "sleeps"], ["a", "café", "cat"]]
    assert words[2] == [["a", "<unk>"]]  # zebra occurs in val only
    assert words[3] == [["dog"] * 100]

    assert report.images == {"train": 2, "val": 1, "test": 1}
    assert report.captions == {"train": 5, "val": 1, "test": 1}
    assert report.coverage == {"train": 1.0, "val": 0.5, "test": 1.0}
    assert (report.vocabulary, report.longest, report.truncated) == (len(counts), 130, 1)
    assert report.skipped == []
    problems = [("row 7", "not a caption line"), ("naïve 1 画.png", "a caption without words; skipped")]
    assert report.problems == data.skipped == problems
    assert "notes       2 on the captions: 1 not a caption line; 1 a caption without words" in str(report)


def test_vocabulary_has_frequent_words_of_train_only(tmp_path):
    source = dataset(6)
    texts = ["one two three", "one two", "one", "four four four", "five five five", "one two three"]
    for row, text in enumerate(texts):
        change(source, row, captions=(text,))
    report = write(source, tmp_path / "made.h5", min_count=2)
    data = CaptionDataset(tmp_path / "made.h5")
    assert data.vocabulary == Vocabulary(["four", "one", "two"])
    assert data.captions(4) == [[UNK] * 3]
    assert data.captions(5) == [[5, 6, UNK]]
    assert report.coverage == {"train": 8 / 9, "val": 0.0, "test": 2 / 3}


def with_texts() -> tuple[Source, Texts]:
    """Photographs whose train captions have the words one (3), two (2), three (1), and texts of three groups."""
    source = dataset(4)
    for row, text in enumerate(["one two", "one one two three", "six six", "one"]):
        change(source, row, captions=(text,))
    captions = ["three four", "Four, four!", "five six " + "four " * 120, "three"]
    return source, Texts("a.csv", captions, [0, 0, 1, 2], {"of train photographs": 7}, [("row 1", "odd")])


def test_texts_are_read_back_and_their_frequent_words_are_in_the_vocabulary(tmp_path):
    source, texts = with_texts()
    report = write(source, tmp_path / "made.h5", min_count=2, min_count_texts=3, texts=texts)
    data = CaptionDataset(tmp_path / "made.h5")
    # four occurs 123 times in the texts; three occurs once in train and twice in the texts, six once in the texts.
    assert data.vocabulary == Vocabulary(["four", "one", "two"])
    assert data.captions(1) == [[5, 5, 6, UNK]]
    assert data.text_groups == 3
    assert data.text_captions(0) == [[UNK, 4], [4, 4]]
    assert data.text_captions(1) == [[UNK, UNK] + [4] * 98]
    assert data.text_captions(2) == [[UNK]]
    for group in (-1, 3):
        with pytest.raises(IndexError, match=f"group {group} of 3 groups"):
            data.text_captions(group)
    copy = pickle.loads(pickle.dumps(data))
    assert not [name for name in vars(copy) if name.startswith(("_text", "_first_text"))]
    assert copy.text_captions(0) == data.text_captions(0)

    assert "texts       4 captions in 3 groups kept; 7 left out: 7 of train photographs\n" in str(report)
    assert "3 words with at least 2 occurrences in train or 3 in the texts; covered: train 83.33%" in str(
        report
    )
    assert ("row 1", "odd") in data.skipped
    with h5py.File(tmp_path / "made.h5", locking=False) as file:
        assert dict(file["texts"].attrs) == {"source": "a.csv", "min_count": 3}
        assert file["texts/group"][:].tolist() == [0, 0, 1, 2]
        assert file["texts/length"][:].tolist() == [2, 2, 100, 1]
        assert file["texts/tokens"].shape == (4, 100)


def test_a_word_of_train_keeps_its_least_count_and_the_order_is_of_both_counts(tmp_path):
    source, texts = with_texts()
    write(source, tmp_path / "made.h5", min_count=1, min_count_texts=124, texts=texts)
    # one 3 + 0, three 1 + 2, two 2 + 0; of the same count the alphabet decides; four is below both counts.
    assert CaptionDataset(tmp_path / "made.h5").vocabulary == Vocabulary(["one", "three", "two"])
    write(source, tmp_path / "other.h5", vocabulary=Vocabulary(["six", "four"]), texts=texts)
    data = CaptionDataset(tmp_path / "other.h5")
    assert data.text_captions(0) == [[UNK, 5], [5, 5]] and data.captions(2) == [[4, 4]]
    assert data.min_count == 0


def test_a_file_without_texts_has_no_groups(tmp_path):
    write(dataset(4), tmp_path / "made.h5")
    data = CaptionDataset(tmp_path / "made.h5")
    assert data.text_groups == 0
    with pytest.raises(IndexError, match="group 0 of 0 groups"):
        data.text_captions(0)
    with h5py.File(tmp_path / "made.h5", locking=False) as file:
        assert "texts" not in file


def test_jpeg_of_model_size_is_stored_unchanged_and_others_are_close(tmp_path):
    square = photo(1, (32, 32))
    finished = encoded(square, "JPEG", quality=70)
    exif = Image.Exif()
    exif[0x0112] = 6
    unfinished = {
        "another size": encoded(photo(1, (33, 32)), "JPEG"),
        "turned": encoded(square, "JPEG", exif=exif.tobytes()),
        "grey": encoded(square.convert("L"), "JPEG"),
        "CMYK": encoded(square.convert("CMYK"), "JPEG"),
        "PNG": encoded(square),
        "large metadata": encoded(square, "JPEG", comment=b"x" * 9000),
    }
    records = [record(i, data=data) for i, data in enumerate([finished, *unfinished.values()])]
    write(Source("made", "made", records), tmp_path / "made.h5", quality=95)
    data = CaptionDataset(tmp_path / "made.h5")
    assert data.jpeg(0) == finished
    for i, original in enumerate(unfinished.values(), 1):
        assert data.jpeg(i) != original
        with Image.open(io.BytesIO(data.jpeg(i))) as stored:
            assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (32, 32))
    wanted = [square, photo(1, (33, 32)), square.transpose(Image.Transpose.ROTATE_270), square.convert("L")]
    for i, image in enumerate(wanted):
        difference = data.image(i).astype(int) - fit(image.convert("RGB"), SMALL)
        assert np.abs(difference).mean() < 4, i
    assert "preprocess with --encoding features" in message(lambda: data.features(0))


def halves(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An encoder with two outputs: the means of quadrants (B, 3, 2, 2) and maxima (B, 3)."""
    quarters = pixels.reshape(-1, 2, 16, 2, 16, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    return quarters, pixels.max((1, 2))


def test_features_equal_the_output_of_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_images, "BATCH_SIZE", 4)  # two full batches and a rest of two
    description = {"backbone": "halves"}
    write(dataset(), tmp_path / "made.h5", encoding="features", encode=halves, features_of=description)
    data = CaptionDataset(tmp_path / "made.h5")
    assert data.features_of == description
    for i in range(10):
        quarters, maxima = halves(fit(photo(i), SMALL)[None])
        found = data.features(i)
        assert [array.dtype for array in found] == [np.float16] * 2
        assert np.array_equal(found[0], quarters[0].astype(np.float16))
        assert np.array_equal(found[1], maxima[0].astype(np.float16))
    assert "preprocess with --encoding jpeg" in message(lambda: data.image(0))
    text = message(lambda: data.require_features_of("halves", [], "se"))
    assert text.startswith(f"{data.path} has features of a backbone without") and "--encoding jpeg" in text

    def huge(pixels):
        return [pixels.mean((1, 2)) * 1e9]

    text = message(lambda: write(dataset(), tmp_path / "huge.h5", encoding="features", encode=huge))
    assert "65504" in text and "--layers" in text
    assert [path.name for path in tmp_path.iterdir()] == ["made.h5"]


class Images(Dataset):
    """A Dataset of pixels, captions, references and file names, for a DataLoader."""

    def __init__(self, path):
        self.data = CaptionDataset(path)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        data = self.data
        return data.image(index), data.captions(index), data.references(index), data.file_name(index)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_as_this_process(tmp_path, method):
    write(dataset(), tmp_path / "made.h5")
    images = Images(tmp_path / "made.h5")
    here = [images[i] for i in range(10)]  # so the file is open when the worker starts
    loader = DataLoader(images, batch_size=None, num_workers=1, multiprocessing_context=method)
    for a, b in zip(here, loader, strict=True):
        assert np.array_equal(a[0], b[0])
        assert a[1:] == tuple(b[1:])


def read_all(path, queue) -> None:
    data = CaptionDataset(path)
    queue.put([data.jpeg(i) for _ in range(20) for i in range(10)])


def test_processes_read_while_the_file_is_replaced(tmp_path):
    path = tmp_path / "made.h5"
    write(dataset(), path)
    data = CaptionDataset(path)
    wanted = [data.jpeg(i) for _ in range(20) for i in range(10)]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    readers = [context.Process(target=read_all, args=(path, queue)) for _ in range(2)]
    for reader in readers:
        reader.start()
    write(dataset(), path)
    assert [queue.get(timeout=120) for _ in readers] == [wanted, wanted]
    for reader in readers:
        reader.join()
    assert [data.jpeg(i) for _ in range(20) for i in range(10)] == wanted  # still from the replaced file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "made.h5"
    write(dataset(), path)
    return path


def remake(path, made, **attributes):
    path.write_bytes(made.read_bytes())
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs[name] = value


AGAIN = "; make it again with preprocess.py"


def test_a_file_without_permission_is_not_called_damaged(made, monkeypatch):
    """The tests' user may read every file, so opening it fails in another way."""

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", denied)
    message(lambda: CaptionDataset(made), "no permission", str(made))


def test_unusable_files_are_user_errors(tmp_path, made, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.h5"

    def says(*parts: str) -> None:
        message(lambda: CaptionDataset(path), f"data file {path}", *parts)

    says("no data file", f"python preprocess.py --dataset NAME --output {path}")
    (tmp_path / "photographs.h5").touch()
    for wrong, right in {"flikr8k": "flickr8k", "photograps": "photographs"}.items():
        message(lambda wrong=wrong: CaptionDataset(f"{wrong}.h5"), f"did you mean {right}?")
    text = message(lambda: CaptionDataset("data/flickr8k.h5"), "data/flickr8k.h5")
    assert text.endswith("python preprocess.py --dataset flickr8k")
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        says("not an HDF5 file", AGAIN)
    whole = made.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        says("damaged", AGAIN)
    remake(path, made, format_version=2)
    says("version 2", "version 1", AGAIN)
    remake(path, made, complete=False)
    says("incomplete", "interrupted", AGAIN)
    remake(path, made, format="something")
    says("not of format sca_caption", AGAIN)
    remake(path, made, vocabulary="[")
    says("format")
    path.unlink()
    path.mkdir()
    says("not an HDF5 file", AGAIN)


@pytest.mark.parametrize("name", ["images/split", "images/image_id", "captions/text", "captions/tokens"])
@pytest.mark.parametrize("way", ["external storage", "external link", "soft link", "virtual dataset"])
def test_files_that_take_values_from_others_are_refused(name, way, tmp_path, made):
    """A file of another person must not bring a file of this machine into captions."""
    path, secret = tmp_path / "x.h5", tmp_path / "secret"
    path.write_bytes(made.read_bytes())
    secret.write_bytes(made.read_bytes())
    with h5py.File(path, "r+") as file:
        shape, kind = file[name].shape, file[name].dtype
        file.move(name, "texts_old")
        if way == "external storage":
            kind = "S8" if kind.kind == "O" else kind
            file.create_dataset(name, shape, kind, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        elif way == "external link":
            file[name] = h5py.ExternalLink(str(secret), name)
        elif way == "soft link":
            file[name] = h5py.SoftLink("/texts_old")
        else:
            layout = h5py.VirtualLayout(shape, kind)
            layout[...] = h5py.VirtualSource(str(secret), name, shape)
            file.create_virtual_dataset(name, layout)
    message(lambda: CaptionDataset(path), name, AGAIN)


BROKEN = {  # what a damaged or made file may hold, by dataset: a function of the right values
    "images/split": [lambda a: a + 3, lambda a: a[:-1], lambda a: a.astype(float), lambda a: a[:, None]],
    "images/offsets": [lambda a: a[::-1], lambda a: a + 1, lambda a: a[:-1], lambda a: -a],
    "images/data": [lambda a: a[:-1], lambda a: a.astype("u4"), lambda a: a[:, None]],
    "images/image_id": [lambda a: a.astype("S4"), lambda a: a[:3]],
    "images/file_name": [lambda a: np.arange(len(a)), lambda a: a[:3]],
    "captions/image": [lambda a: a[::-1], lambda a: a + 1, lambda a: a * 2, lambda a: a[:-1]],
    "captions/length": [lambda a: a + 999, lambda a: -a, lambda a: a[:-1]],
    "captions/tokens": [lambda a: a[:, 0], lambda a: a[:-1], lambda a: a.astype(float), lambda a: a + 999],
    "captions/text": [lambda a: a[:-1], lambda a: np.arange(len(a))],
}


@pytest.mark.parametrize("name, change", [(name, change) for name in BROKEN for change in BROKEN[name]])
def test_every_dataset_must_be_as_the_schema_says(name, change, tmp_path, made):
    path = tmp_path / "x.h5"
    path.write_bytes(made.read_bytes())
    with h5py.File(path, "r+") as file:
        values = file[name][:]
        del file[name]
        file[name] = change(values)
    message(lambda: CaptionDataset(path).captions(0), f"data file {path}", AGAIN)


@pytest.mark.parametrize("name", BROKEN)
def test_a_missing_dataset_is_said(name, tmp_path, made):
    path = tmp_path / "x.h5"
    path.write_bytes(made.read_bytes())
    with h5py.File(path, "r+") as file:
        del file[name]
    message(lambda: CaptionDataset(path), f"data file {path}", AGAIN)


@pytest.mark.parametrize(
    "attributes",
    [
        {"vocabulary": "3"}, {"vocabulary": '["a", 3]'}, {"vocabulary": '["a", "a"]'}, {"vocabulary": "[" * 9999},
        {"transform": "{}{}"}, {"transform": '{"size": 9}'}, {"transform": '{"colour": 9}'}, {"transform": "[]"},
        {"encoding": "raw"}, {"encoding": "png"}, {"min_count": "many"}, {"format": [1, 2]},
    ],
    ids=str,
)  # fmt: skip
def test_every_attribute_must_be_as_the_schema_says(attributes, tmp_path, made):
    path = tmp_path / "x.h5"
    remake(path, made, **attributes)
    if attributes != {"transform": '{"size": 9}'}:  # of images that are made to fit when they are read
        message(lambda: CaptionDataset(path))


def test_damaged_image_is_named(tmp_path, made):
    path = tmp_path / "x.h5"
    path.write_bytes(made.read_bytes())
    with h5py.File(path, "r+") as file:
        start = int(file["images/offsets"][3])
        file["images/data"][start : start + 2] = 0
    with pytest.raises(ImageError, match=r"x\.h5, image photo 3\.png: not an image"):
        CaptionDataset(path).image(3)


def test_unknown_split_lists_the_choices(made):
    data = CaptionDataset(made)
    message(lambda: data.indices("dev"), "split 'dev'", "test, train, val")


def test_vocabulary_as_large_as_that_of_coco(tmp_path):
    words = [
        f"w{number:05d}{'x' * 20}" for number in range(10_000)
    ]  # HDF5's usual limit of an attribute: 64 kB
    source = dataset(3, captions=tuple(" ".join(words[i : i + 90]) for i in range(0, 10_000, 90)))
    write(source, tmp_path / "made.h5")
    assert CaptionDataset(tmp_path / "made.h5").vocabulary.words[4:] == tuple(words)


def test_images_without_ids_get_their_row_number(tmp_path):
    write(dataset(image_id=None), tmp_path / "made.h5")
    data = CaptionDataset(tmp_path / "made.h5")
    assert [data.image_id(i) for i in range(10)] == list(range(10))
    assert json.loads(json.dumps(data.image_id(3))) == 3  # an int, not numpy's
