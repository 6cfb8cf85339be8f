"""CaptionWriter against a reference implementation with lists of words."""

import collections
import random
import subprocess
import sys

import h5py
import numpy as np
import pytest

from sca_caption.datasets import hdf5_captions
from sca_caption.datasets.hdf5_captions import MAX_WORDS, RECORDS_PER_CALL, CaptionWriter
from sca_caption.datasets.hdf5_reader import SPLITS
from sca_caption.datasets.sources.records import Record
from sca_caption.vocab import SPECIALS, UNK, _spacy_tokenizer, has_words, tokenize
from tests.helpers.made_photos import record

WORDS = [
    *"adbeg",
    "dog",
    "runs",
    "man's",
    "t-shirt",
    "isn't",
    ",",
    ".",
    "!",
    "été",
    "<unk>",
    '"quoted"',
    "3.5",
    "cannot",
]


def records(count: int, longest: int) -> list[Record]:
    """Records with random captions in random splits. Every seventh record has a caption without words."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        captions = [
            " ".join(rng.choices(WORDS, k=rng.randint(1, longest))) + " dog" for _ in range(rng.randint(1, 5))
        ]
        captions += [" . "] if number % 7 == 0 else []
        made.append(record(number, ("train", *rng.choices(SPLITS, k=count))[number], captions, b""))
    return made


def written(made: list[Record], path, steps: int, min_count: int) -> tuple[CaptionWriter, dict, dict]:
    """The CaptionWriter, its report, and the written datasets. `steps`: calls of tokenize_some before finish."""
    captions = CaptionWriter(made)
    for _ in range(steps):
        captions.tokenize_some()
    captions.finish()
    splits = np.array([SPLITS.index(record.split) for record in made], np.uint8)
    with h5py.File(path, "w") as file:
        report = captions.write(file, splits, min_count)
        stored = {name: dataset[()] for name, dataset in file["captions"].items()}
    return captions, report, stored


@pytest.mark.parametrize("longest", [9, MAX_WORDS + 30])
@pytest.mark.parametrize("steps", [0, 3])
def test_written_captions_equal_the_reference(tmp_path, monkeypatch, longest, steps):
    monkeypatch.setattr(hdf5_captions, "BLOCK", 16)
    made = [*records(60, longest), record(60, "val", ("a rare one",), b"")]
    captions, report, stored = written(made, tmp_path / "x.h5", steps, min_count=9)

    rows = [(row, text) for row, each in enumerate(made) for text in each.captions if has_words(text)]
    tokens = [tokenize(text) for _, text in rows]
    split_of = [made[row].split for row, _ in rows]
    counts = collections.Counter(
        word for words, split in zip(tokens, split_of, strict=True) if split == "train" for word in words
    )
    vocabulary = sorted((w for w, n in counts.items() if n >= 9), key=lambda word: (-counts[word], word))
    ids = {word: number for number, word in enumerate(vocabulary, len(SPECIALS))}
    cut = [words[:MAX_WORDS] for words in tokens]
    assert stored["image"].tolist() == [row for row, _ in rows]
    assert [text.decode() for text in stored["text"]] == [text for _, text in rows]
    assert stored["length"].tolist() == list(map(len, cut))
    assert stored["tokens"].shape == (len(rows), max(map(len, cut)))
    for found, words in zip(stored["tokens"], cut, strict=True):
        assert found[: len(words)].tolist() == [ids.get(word, UNK) for word in words]
        assert not found[len(words) :].any()
    assert captions.problems == [(each.file_name, "a caption without words; skipped") for each in made[::7]]
    assert report["vocabulary"] == len(vocabulary) < len(set().union(*tokens))
    assert report["captions"] == {split: split_of.count(split) for split in SPLITS}
    assert report["longest"] == max(map(len, tokens))
    assert report["truncated"] == sum(len(words) > MAX_WORDS for words in tokens)
    for split, share in report["coverage"].items():
        words = [word for each, s in zip(tokens, split_of, strict=True) if s == split for word in each]
        assert share == pytest.approx(sum(word in ids for word in words) / len(words))


def test_tokenizing_follows_new_records_and_catches_up():
    made, kept = records(12, 3), []
    captions = CaptionWriter(kept)
    captions.tokenize_some()
    captions.loading.join()
    for number, each in enumerate(made):
        kept.append(each)
        captions.tokenize_some()
        assert captions.done == number + 1
    kept += made
    captions.tokenize_some()
    assert captions.done == len(made) + RECORDS_PER_CALL
    captions.finish()
    assert captions.done == len(kept) == 2 * len(made)


def test_tokens_of_a_word_do_not_depend_on_its_context():
    rng = random.Random(1)
    for _ in range(500):
        text = " ".join(
            rng.choices([*WORDS, "u.s.", "o'clock", "(small)", "man's/dog's", "\u00a0", "10am", "--"], k=12)
        )
        whole = [token.text for token in _spacy_tokenizer()(text.lower()) if has_words(token.text)]
        assert tokenize(text) == whole


@pytest.mark.slow
def test_tokenizing_does_not_import_torch_and_leaves_it_importable():
    program = "import sys\nfrom sca_caption.vocab import tokenize\nprint(tokenize('A dog'))\n"
    program += "assert 'torch' not in sys.modules\nimport torch\nprint(torch.ones(1).item())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "['a', 'dog']\n1.0\n"
