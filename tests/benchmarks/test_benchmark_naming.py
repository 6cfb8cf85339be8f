"""Which captions count as naming an object, and how they are counted."""

from types import SimpleNamespace

import pytest
from PIL import Image

from sca_caption.benchmarks import naming
from sca_caption.guidance.object_nouns import read_nouns
from sca_caption.inference import captioning
from tests.helpers.made_photos import message


@pytest.mark.parametrize(
    ("name", "caption", "counts"),
    [
        ("bass", "two fishes on a plate", True),
        ("bass", "a man is fishing", False),
        ("wild_cat", "a cat on a mat", True),
        ("wild_cat", "cattle on a field", False),
        ("butterfly", "butterflies on a leaf", True),
        ("watch", "a man with watches", True),
        ("soccer_ball", "a balloon", False),
        ("chair", "an armchair", False),
        ("flamingo", "a pink bird", False),
        ("cup", "a cup of coffee", True),
    ],
)
def test_what_counts(name, caption, counts):
    assert naming.names(name, caption) is counts


def test_every_class_can_be_named_by_a_noun_of_the_table():
    nouns = [noun.name for noun in read_nouns()]
    assert [name for name in naming.ACCEPTED if not any(naming.names(name, noun) for noun in nouns)] == []


class FakeDescriber:
    """Says what is in the file's name, with objects; without, always the same."""

    namer = object()

    def __init__(self, checkpoint, objects):
        self.objects = objects
        self.namer = checkpoint and objects

    def stream(self, paths):
        for path in paths:
            text = path.stem.replace("_", " ") if self.objects else "a pizza"
            yield SimpleNamespace(captions=[SimpleNamespace(text=text)])


@pytest.fixture
def folder(tmp_path):
    files = {
        "ant": ["an_ant", "a_dog"],
        "barrel": ["barrels"],
        "bass": ["a_fish", "a_bass"],
        "pizza": ["a_man"],
    }
    for name, stems in {**files, "brain": ["a_brain"]}.items():
        (tmp_path / name).mkdir()
        for stem in stems:
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{stem}.png")
    return tmp_path


def test_shares_of_classes(folder, monkeypatch, capsys):
    monkeypatch.setattr(captioning, "CaptionPipeline", FakeDescriber)
    assert naming.main([str(folder), "--checkpoint", "named"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| ant | 0 | 50 |",
        "| barrel | 0 | 100 |",
        "| bass | 0 | 100 |",
        "| pizza | 100 | 0 |",
        "| **2 classes, chosen on** | 0.0 | 75.0 |",
        "| **2 classes, reported** | 50.0 | 50.0 |",
    ]


def test_mistakes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(captioning, "CaptionPipeline", FakeDescriber)
    assert naming.main([str(folder)]) == 2
    assert "no part that names objects" in capsys.readouterr().err
    assert "has none of the folders" in message(lambda: naming.photographs_of(folder / "ant", 3))
    assert len(naming.photographs_of(folder, 1)["ant"]) == 1
