"""The benchmark of guidance: which captions name an object, which hallucinate, and the tables of both."""

from types import SimpleNamespace

import pytest
from PIL import Image

from sca_caption import checkpoint
from sca_caption.benchmarks import guidance
from sca_caption.config import SearchConfig
from sca_caption.datasets.sources.records import Source
from sca_caption.guidance.hallucination import PresenceClassifier
from sca_caption.guidance.object_nouns import read_nouns
from sca_caption.images import Transform
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import message, record, write
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner


@pytest.mark.parametrize(
    ("name", "caption", "counts"),
    [
        ("bass", "two fishes on a plate", True),
        ("bass", "a man is fishing", False),
        ("wild_cat", "cattle on a field", False),
        ("butterfly", "butterflies on a leaf", True),
        ("soccer_ball", "a balloon", False),
        ("chair", "an armchair", False),
        ("cup", "a cup of coffee", True),
    ],
)
def test_which_captions_name_the_object(name, caption, counts):
    assert guidance.names(name, caption) is counts


def test_every_class_can_be_named_by_a_noun_of_the_table():
    nouns = [noun.name for noun in read_nouns()]
    unnamed = [name for name in guidance.ACCEPTED if not any(guidance.names(name, noun) for noun in nouns)]
    assert unnamed == []


class MadePipeline:
    """Captions say the file's name while objects are on, else always the same."""

    def __init__(self, objects=True):
        self.objects, self.search = objects, SearchConfig()

    def with_search(self, search, objects):
        return MadePipeline(objects)

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
    monkeypatch.setattr(guidance.CaptionPipeline, "load", lambda checkpoint: MadePipeline())
    monkeypatch.setattr(guidance, "without", lambda pipeline, name: pipeline)
    assert guidance.main(["objects", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| ant | 0 | 50 |",
        "| barrel | 0 | 100 |",
        "| bass | 0 | 100 |",
        "| pizza | 100 | 0 |",
        "| **2 classes, chosen on** | 0.0 | 75.0 |",
        "| **2 classes, reported** | 50.0 | 50.0 |",
    ]


def test_mistakes_are_one_line(folder, tiny_checkpoint, capsys):
    assert guidance.main(["objects", str(folder), "--checkpoint", str(tiny_checkpoint)]) == 2
    assert "'objects'" in capsys.readouterr().err
    assert "has none of the folders" in message(lambda: guidance.photographs_of(folder / "ant", 3))
    assert len(guidance.photographs_of(folder, 1)["ant"]) == 1


@pytest.mark.parametrize(("captions", "references", "wanted"), [
    (["a dog runs"], [["a cat", "grass"]], (1, 0)),
    (["a dog runs"], [["a cat", "a puppy sits"]], (0, 0)),
    (["a cat"], [["two dogs", "a cat"]], (0, 1)),
    (["a cat"], [["a cat", "a cat"]], (0, 0)),
    (["a dog", "a man", "puppies"], [["a man"], ["a dog"], ["grass"]], (2, 1)),
])  # fmt: skip
def test_hallucinated_and_missed_images(captions, references, wanted):
    words = frozenset({"dog", "dogs", "puppy", "puppies"})
    several = [[text.split() for text in texts] for texts in references]
    assert guidance.counts([text.split() for text in captions], several, words) == wanted


def test_a_captioner_that_hallucinates_dogs(tmp_path, capsys, tiny_checkpoint):
    model, words = tiny_captioner(), Vocabulary(TINY_WORDS)
    model.word.bias.data[words.encode(["dog"])] += 9
    presence = PresenceClassifier((64,), ("dogs",))
    presence.classifier.bias.fill_(-9)
    presence.classifier.weight.zero_()
    made = checkpoint.Checkpoint(model, words, Transform(32), guides={"presence": presence})
    checkpoint.save(tmp_path / "best.pt", made)
    texts = ["red grass", "blue water", "a dog sits"]
    records = [record(i, "val", [text]) for i, text in enumerate(texts)] + [record(3)]
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    flags = ["hallucination", "--data", str(tmp_path / "made.h5"), "--checkpoint"]
    assert guidance.main([*flags, str(tmp_path / "best.pt")]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("3 images, CIDEr ") and last == "| dogs | 2 | 0 | 0 | 1 |"
    assert guidance.main([*flags, str(tiny_checkpoint)]) == 2
    assert "fit" in capsys.readouterr().err
