"""The benchmark of everyday photographs: what counts as invented, and its table on generated images."""

from dataclasses import replace

import pytest

from sca_caption import checkpoint
from sca_caption.benchmarks import everyday
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.shapes import read_shapes
from sca_caption.evaluation.cider import cider
from sca_caption.evaluation.meteor_spice import MetricUnavailable
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.words import PredictedWords
from sca_caption.images import Transform
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import error_line, write
from tests.helpers.tiny_captioner import TINY, TINY_WORDS, tiny_captioner

MISTAKES = [
    ("A man on a bench.", ["A bench.", "An empty bench."], ["people"]),
    ("Two surfers.", ["A beach.", "The sea."], ["people"]),
    ("A man on a bench.", ["A hand on a bench."], []),
    ("A girl on a bench.", ["A giraffe in his pen."], ["people"]),
    ("A dog and a cat.", ["Two cows."], ["dogs", "animals"]),
    ("A puppy.", ["A dog."], []),
    ("A hot dog.", ["A sandwich."], []),
    ("A dog.", ["A hot dog."], ["dogs"]),
    ("Cats on a bed.", ["A kitten."], []),
    ("A cow.", ["A sheep."], ["animals"]),
    ("A cow.", ["An animal in a field."], []),
    ("An animal.", ["Zebras."], []),
    ("An animal.", ["A house."], ["animals"]),
    ("A bird.", ["A seagull."], []),
    ("A brown bear.", ["A brown teddy bear."], ["animals"]),
    ("A crane.", ["A house."], []),
    ("A red bus.", ["A blue bus."], ["colour"]),
    ("Three men.", ["Two women.", "Two ladies."], ["number", "gender"]),
]


@pytest.mark.parametrize(("caption", "references", "wanted"), MISTAKES)
def test_mistakes(caption, references, wanted):
    assert everyday.mistakes(everyday.split(caption), [everyday.split(text) for text in references]) == wanted


@pytest.fixture
def without_java(monkeypatch):
    def fails():
        raise MetricUnavailable("needs Java")

    monkeypatch.setattr("sca_caption.evaluation.meteor_spice.find_java", fails)


def test_a_row_counts_images(without_java):
    captions, references, _ = zip(*MISTAKES, strict=True)
    row = everyday.cells(*everyday.measure(captions, references))
    wanted = cider(*tokens(captions, references))[0]
    # The main nouns of 4 of 18 captions are in their references: puppy, cat, bird, bus.
    assert row[0] == f"{wanted:.1f}" and row[2:] == ["-", "22.2", "3", "2", "4", "1", "1", "1"]


def tokens(captions, references):
    return [ptb_tokenize(text) for text in captions], [
        [ptb_tokenize(text) for text in texts] for texts in references
    ]


def test_ways_of_captioning():
    assert everyday.ways(["a"], by_guide=False) == {"a": ("a",)}
    assert everyday.ways([], by_guide=True) == {"none": ()}
    assert everyday.ways(["a"], by_guide=True) == {"a": ("a",), "none": ()}
    assert everyday.ways(["a", "b"], by_guide=True) == {
        "a, b": ("a", "b"),
        "none": (),
        "a": ("a",),
        "b": ("b",),
    }
    assert everyday.ways(["a", "b", "c"], by_guide=True) == {
        "a, b, c": ("a", "b", "c"),
        "none": (),
        "a": ("a",),
        "b": ("b",),
        "c": ("c",),
        "all but a": ("b", "c"),
        "all but b": ("a", "c"),
        "all but c": ("a", "b"),
    }


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A data file of which two images are val."""
    path = tmp_path_factory.mktemp("shapes") / "shapes.h5"
    write(read_shapes(count=20), path)
    return path


@pytest.fixture
def guided(tmp_path):
    """A captioner that invents dogs, and a guide that prevents it."""
    model, words = tiny_captioner(config=replace(TINY, word_rank=4)), Vocabulary(TINY_WORDS)
    model.word.bias.data[words.encode(["dog"])] += 9
    model.word_predictor.up.bias.data.fill_(-9)
    made = checkpoint.Checkpoint(model, words, Transform(32), guides={"words": PredictedWords({"dogs": 0.5})})
    checkpoint.save(tmp_path / "best.pt", made)
    return tmp_path / "best.pt"


def test_the_table_of_generated_images(shapes, guided, without_java, capsys):
    flags = ["--data", str(shapes), "--checkpoint", str(guided), "--by-guide", "--captions"]
    assert everyday.main(flags) == 0
    out, err = capsys.readouterr()
    assert err == "METEOR is missing: needs Java\n"
    printed = out.splitlines()
    captions = [line.split("\t") for line in printed[:4]]
    assert printed[4:6] == ["2 images of shapes.h5, val", ""] and len(printed) == 10
    rows = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in printed[8:]}
    assert list(rows) == ["words", "none"]
    data = CaptionDataset(shapes)
    indices = data.indices("val").tolist()
    for way, cells in rows.items():
        texts = [text for name, _, text, _ in captions if name == way]
        wanted = cider(*tokens(texts, [data.references(row) for row in indices]))[0]
        assert cells[1] == f"{wanted:.1f}" and cells[3] == "-"
    assert [rows[way][6] for way in rows] == ["0", "2"]
    assert [file for _, file, *_ in captions[:2]] == [data.file_name(row) for row in indices]
    assert all("dogs" in mistakes.split() for way, *_, mistakes in captions if way == "none")

    assert everyday.main([*flags[:4], "--without", "words"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == printed[-1]


def test_mistakes_of_users_are_one_line(shapes, tiny_checkpoint, capsys):
    flags = ["--data", str(shapes), "--checkpoint", str(tiny_checkpoint)]
    status = everyday.main([*flags, "--without", "words"])
    assert "no guide 'words'" in error_line(status, *capsys.readouterr())
