"""How people and dogs that are not there are counted."""

import pytest

from sca_caption import checkpoint
from sca_caption.benchmarks import invented
from sca_caption.datasets.sources.records import Source
from sca_caption.guidance.hallucination import Subjects
from sca_caption.images import Transform
from sca_caption.vocab import Vocabulary
from tests.conftest import TINY_WORDS, tiny_captioner
from tests.helpers.made_photos import record, write


@pytest.mark.parametrize(("captions", "references", "wanted"), [
    (["a dog runs"], [["a cat", "grass"]], (1, 0)),
    (["a dog runs"], [["a cat", "a puppy sits"]], (0, 0)),
    (["a cat"], [["two dogs", "a cat"]], (0, 1)),
    (["a cat"], [["a cat", "a cat"]], (0, 0)),
    (["a dog", "a man", "puppies"], [["a man"], ["a dog"], ["grass"]], (2, 1)),
])  # fmt: skip
def test_counts(captions, references, wanted):
    words = frozenset({"dog", "dogs", "puppy", "puppies"})
    several = [[text.split() for text in texts] for texts in references]
    assert invented.counts([text.split() for text in captions], several, words) == wanted


def test_a_captioner_that_likes_dogs(tmp_path, capsys, tiny_checkpoint):
    model = tiny_captioner()
    words = Vocabulary(TINY_WORDS)
    model.word.bias.data[words.encode(["dog"])] += 9
    subjects = Subjects((64,), ("dogs",))
    subjects.classifier.bias.fill_(-9)
    subjects.classifier.weight.zero_()
    checkpoint.save(
        tmp_path / "best.pt", checkpoint.Checkpoint(model, words, Transform(32), subjects=subjects)
    )
    texts = ["red grass", "blue water", "a dog sits"]
    records = [record(i, "val", [text]) for i, text in enumerate(texts)] + [record(3)]
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    flags = ["--data", str(tmp_path / "made.h5"), "--checkpoint"]
    assert invented.main([*flags, str(tmp_path / "best.pt")]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("3 images, CIDEr ") and last == "| dogs | 2 | 0 | 0 | 1 |"
    assert invented.main([*flags, str(tiny_checkpoint)]) == 2
    assert "learn_subjects" in capsys.readouterr().err
