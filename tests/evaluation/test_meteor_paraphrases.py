"""Filter of METEOR's paraphrase table against examples by hand and against brute force."""

import gzip
import itertools
import random
import re

import pytest

from sca_caption.evaluation import meteor_paraphrases as paraphrases
from sca_caption.evaluation.meteor_paraphrases import filter_table

PAIRS = [
    ("man", "guy"),
    ("a man", "a guy"),
    ("in the photograph", "in the photographs"),
    ("dog 's", "dogs"),
    ("café", "cafe"),
    ("10 year old", "decade old"),
    ("us", "usa"),
    ("photographically", "man"),
]


def write(path, pairs, line="0.5\n{}\n{}\n"):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(line.format(*pair) for pair in pairs)


def read(path):
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert lines[::3] == ["0.5"] * (len(lines) // 3)
    return list(zip(lines[1::3], lines[2::3], strict=True))


def filtered(tmp_path, pairs, sentences, **options):
    write(tmp_path / "whole.gz", pairs, **options)
    filter_table(tmp_path / "whole.gz", sentences, tmp_path / "part.gz")
    return read(tmp_path / "part.gz")


@pytest.mark.parametrize(
    ("sentence", "kept"),
    [
        ("a man and a guy", [("man", "guy"), ("a man", "a guy")]),
        ("A Man 's guy", [("man", "guy"), ("a man", "a guy")]),  # METEOR lower-cases its input
        ("man", []),
        ("the photograph in photographs", [("in the photograph", "in the photographs")]),
        ("dog dogs", [("dog 's", "dogs")]),  # words with other characters are always kept
        ("cafe", [("café", "cafe")]),
        ("10-year-old , decade", [("10 year old", "decade old")]),  # METEOR splits at hyphens
        ("u.s. usa", [("us", "usa")]),  # METEOR may remove full stops
        ("", []),
    ],
)
def test_pairs_are_kept_if_all_their_words_occur(tmp_path, sentence, kept):
    assert filtered(tmp_path, PAIRS, [sentence]) == kept


@pytest.mark.parametrize("block", [32, 200, 1 << 18])  # bytes: less than a pair, a few pairs, all pairs
def test_kept_pairs_equal_brute_force(tmp_path, monkeypatch, block):
    monkeypatch.setattr(paraphrases, "BLOCK", block)
    rng = random.Random(0)
    # Words of at most eight bytes, whose hashes are all different.
    words = ["".join(letters) for letters in itertools.product("abc1", repeat=3)] + ["'s", "é", "longword"]
    phrases = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(600)]
    pairs = list(zip(phrases[::2], phrases[1::2], strict=True))
    present = rng.sample(words, 50)
    fits = [all(w in present or re.search("[^a-z0-9]", w) for w in f"{a} {b}".split()) for a, b in pairs]
    assert 10 < sum(fits) < 250
    assert filtered(tmp_path, pairs, [" ".join(present)]) == list(itertools.compress(pairs, fits))


def test_spaces_around_a_phrase_are_ignored(tmp_path):
    kept = filtered(tmp_path, PAIRS, ["man guy"], line="0.5\n{} \n {}\n")
    assert kept == [("man ", " guy")]


def test_empty_table(tmp_path):
    assert filtered(tmp_path, [], ["man"]) == []
