"""Mixture: rows, styles and word ids of several data files against their captions written out by hand."""

import pickle

import numpy as np
import pytest

from sca_caption.datasets.hdf5_reader import SPLITS, CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.datasets.sources.records import Source
from sca_caption.images import Transform
from sca_caption.vocab import UNK
from tests.helpers.made_photos import message, record, write
from tests.helpers.mixtures import texts_of

# Per file: split and captions of each image, and per text group its captions.
DOGS = (
    [("train", ["a dog runs", "the dog"]), ("val", ["two cats", "a dog"]), ("train", ["a dog"])],
    [["a red dog", "the ball"], ["dog runs"]],
)
CATS = (
    [("train", ["the cats sleep", "a cat"]), ("test", ["a dog sleeps"]), ("train", ["a dog sleeps"])],
    [["two cats"]],
)
# By their counts in train and in the texts, then alphabetically.
DOG_WORDS = ["dog", "a", "runs", "the", "ball", "red"]
CAT_WORDS = ["a", "cats", "cat", "dog", "sleep", "sleeps", "the", "two"]
UNION = [*DOG_WORDS, "cats", "cat", "sleep", "sleeps", "two"]


def source(images, first: int = 0) -> Source:
    records = [record(first + i, split, captions) for i, (split, captions) in enumerate(images)]
    return Source("made", "made for a test", records)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[CaptionDataset]:
    """dogs.h5 and cats.h5, and between them bare.h5 without texts."""
    folder = tmp_path_factory.mktemp("mixture")
    for first, (name, (images, groups)) in enumerate({"dogs": DOGS, "cats": CATS}.items()):
        given = {"encoding": "raw", "texts": texts_of(groups), "min_count_texts": 1}
        write(source(images, 10 * first), folder / f"{name}.h5", **given)
    write(source([("train", ["a boat"])], 20), folder / "bare.h5", encoding="raw")
    return [CaptionDataset(folder / f"{name}.h5") for name in ("dogs", "bare", "cats")]


@pytest.fixture
def dogs_and_cats(files) -> Mixture:
    return Mixture([files[0], files[2]])


def test_the_vocabulary_has_the_words_of_the_first_file_and_then_those_of_the_others(files, dogs_and_cats):
    assert [list(file.vocabulary.words[4:]) for file in (files[0], files[2])] == [DOG_WORDS, CAT_WORDS]
    assert list(dogs_and_cats.vocabulary.words[4:]) == UNION
    assert list(Mixture([files[2], files[0]]).vocabulary.words[4:]) == [*CAT_WORDS, "runs", "ball", "red"]


def test_rows_of_the_files_follow_each_other(files, dogs_and_cats):
    mixture = dogs_and_cats
    assert len(mixture) == 6 and mixture.parts == [range(3), range(3, 6)]
    assert {split: mixture.indices(split).tolist() for split in SPLITS} == {
        "train": [0, 2, 3, 5],
        "val": [1],
        "test": [4],
    }
    assert mixture.styles == ("dogs", "cats")
    assert [mixture.style(row) for row in range(6)] == [0, 0, 0, 1, 1, 1]
    for row in range(6):
        file, own = (files[0], row) if row < 3 else (files[2], row - 3)
        assert np.array_equal(mixture.image(row), file.image(own))
        assert mixture.file_name(row) == file.file_name(own) == f"photo {own + 10 * (row > 2)}.png"
        assert mixture.references(row) == file.references(own) == (DOGS[0] + CATS[0])[row][1]


def test_captions_have_the_ids_of_the_common_vocabulary(dogs_and_cats):
    mixture = dogs_and_cats
    for row, (_, captions) in enumerate(DOGS[0] + CATS[0]):
        # "two cats" stands among the dogs' validation images, whose file knows neither word.
        known = UNION if row > 2 else DOG_WORDS
        wanted = [[word if word in known else "<unk>" for word in caption.split()] for caption in captions]
        assert [list(mixture.vocabulary.to_words(ids)) for ids in mixture.captions(row)] == wanted
    assert mixture.captions(1)[0] == [UNK, UNK]
    # A word has the same id in both files.
    assert mixture.captions(4) == [mixture.vocabulary.encode(["a", "dog", "sleeps"])]


def test_text_groups_follow_each_other(files, dogs_and_cats):
    for mixture, styles in ((dogs_and_cats, [0, 0, 1]), (Mixture(files), [0, 0, 2])):
        assert mixture.text_groups == 3
        assert [mixture.text_style(group) for group in range(3)] == styles
        found = [
            [" ".join(mixture.vocabulary.to_words(ids)) for ids in mixture.text_captions(group)]
            for group in range(3)
        ]
        assert found == DOGS[1] + CATS[1]
    assert Mixture([files[1]]).text_groups == 0


def test_a_single_file_equals_its_data_set(files):
    file, mixture = files[0], Mixture([files[0]])
    assert mixture.styles == () and mixture.parts == [range(3)]
    for name in ("path", "transform", "encoding", "vocabulary", "text_groups"):
        assert getattr(mixture, name) == getattr(file, name), name
    assert mixture.vocabulary is file.vocabulary
    assert all(np.array_equal(mixture.indices(split), file.indices(split)) for split in SPLITS)
    for row in range(len(file)):
        assert mixture.captions(row) == file.captions(row)
        assert mixture.references(row) == file.references(row) and mixture.style(row) == 0
        assert np.array_equal(mixture.image(row), file.image(row))
    for group in range(file.text_groups):
        assert mixture.text_captions(group) == file.text_captions(group) and mixture.text_style(group) == 0


def test_it_can_be_pickled(dogs_and_cats):
    dogs_and_cats.captions(0)  # opens the files
    copied = pickle.loads(pickle.dumps(dogs_and_cats))
    assert [copied.captions(row) for row in range(6)] == [dogs_and_cats.captions(row) for row in range(6)]
    assert copied.text_captions(2) == dogs_and_cats.text_captions(2)


def encode(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels.mean((1, 2), dtype=np.float32)]


def test_features_are_read_from_the_files_and_must_be_of_one_cnn(tmp_path):
    for name, layers in (("one", ["a"]), ("two", ["a"]), ("other", ["b"])):
        about = {"backbone": "toy", "layers": layers}
        options = {"encoding": "features", "encode": encode, "features_of": about}
        write(source(DOGS[0], len(name)), tmp_path / f"{name}.h5", **options)
    one, two, other = (CaptionDataset(tmp_path / f"{name}.h5") for name in ("one", "two", "other"))
    mixture = Mixture([one, two])
    for row in range(6):
        (found,), (wanted,) = mixture.features(row), (two if row > 2 else one).features(row % 3)
        assert np.array_equal(found, wanted)
    mixture.require_features_of("toy", ["a"])
    message(lambda: mixture.require_features_of("toy", ["b"]), "one.h5", "cut at a", "cut at b")
    message(lambda: Mixture([one, other]).require_features_of("toy", ["a"]), "other.h5", "cut at b")


def test_files_that_cannot_be_mixed_are_refused(files, tmp_path):
    dogs = files[0]
    for folder, options in (
        ("same", {"encoding": "raw"}),
        ("size", {"encoding": "raw", "transform": Transform(48)}),
        ("encoding", {"encoding": "jpeg"}),
    ):
        name = "dogs" if folder == "same" else folder
        (tmp_path / folder).mkdir()
        write(source(DOGS[0]), tmp_path / folder / f"{name}.h5", **options)
    others = {each.name: CaptionDataset(next(each.iterdir())) for each in tmp_path.iterdir()}
    text = message(lambda: Mixture([dogs, files[1], others["same"]]))
    assert text == "two data files are named dogs; rename one"
    message(lambda: Mixture([dogs, others["size"]]), "size.h5", "dogs.h5", "another transform", "48", "32")
    message(lambda: Mixture([dogs, others["encoding"]]), "encoding.h5", "dogs.h5", "(jpeg, raw)")
