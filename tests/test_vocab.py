"""Tokenizer of captions, and the vocabulary: words to ids and back."""

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sca_caption.runtime.errors import UserError
from sca_caption.vocab import BOS, EOS, PAD, SPECIALS, UNK, Vocabulary, has_words, tokenize


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog runs .", "a dog runs"),
        ("A man's t-shirt isn't red.", "a man 's t-shirt is n't red"),
        ("a man 's hat", "a man 's hat"),  # as Flickr8k writes it
        ("They’re 2-year-olds; can't swim!", "they 're 2-year-olds ca n't swim"),
        ('"Quoted", (bracketed) & boys\' toys', "quoted bracketed boys toys"),
        ("dogs/cats at 5:30pm -- o'clock", "dogs cats at 5:30pm o'clock"),
        ("running—fast", "running fast"),
        ("CAFE\u0301", "caf\u00e9"),
        ("  \t\n", ""),
        (" ... -- ' !", ""),
        ("犬", "犬"),
    ],
)
def test_tokenize(text, words):
    assert tokenize(text) == words.split()
    assert has_words(text) == bool(words)


@given(st.text(), st.text())
def test_tokens_are_lower_case_words_of_each_part(one, other):
    words = tokenize(one)
    assert all(has_words(word) and word == word.lower() and not word.isspace() for word in words)
    assert has_words(one) == bool(words)
    assert tokenize(f"{one} {other}") == words + tokenize(other)


def test_build_sorts_by_count_then_alphabet_and_drops_rare_words():
    captions = [["b", "a", "c"], ["b", "a", "<unk>"], ["d", "a", "b", "c"], ["a", "b", "<unk>"]]
    vocabulary = Vocabulary.build(captions, min_count=2)
    assert vocabulary.words == ("<pad>", "<bos>", "<eos>", "<unk>", "a", "b", "c")
    assert len(vocabulary) == 7
    assert "c" in vocabulary
    assert "d" not in vocabulary


@given(
    st.lists(
        st.sampled_from(["a", "man", "dogs", "they", "is", "n't", "'s", "'d", "t-shirt", "犬"]), min_size=1
    )
)
def test_captions_of_known_words_come_back(words):
    vocabulary = Vocabulary.build([words], min_count=1)
    ids = vocabulary.encode(words)
    assert vocabulary.to_words(ids) == tuple(words)
    text = vocabulary.decode(ids)
    assert text.replace(" ", "") == "".join(words) and vocabulary.decode([*ids, EOS, *ids]) == text


def test_encode_and_decode_are_inverse_and_unknown_words_become_unk():
    text = "a man's dogs don't swim and they'd see it"
    vocabulary = Vocabulary.build([tokenize(text)], min_count=1)
    ids = vocabulary.encode(tokenize(text))
    assert vocabulary.decode(ids) == text
    assert min(ids) == len(SPECIALS)
    assert vocabulary.encode(["man", "zebra"])[1] == UNK


def test_decode_stops_at_eos_and_skips_pad_and_bos():
    vocabulary = Vocabulary(["'s", "dog", "'70s"])
    assert vocabulary.decode([BOS, PAD, 5, 5, EOS, 5, PAD]) == "dog dog"
    assert vocabulary.decode([4, 5]) == "'s dog"  # no preceding word to join
    assert vocabulary.decode([5, 6]) == "dog '70s"  # not in CLITICS
    assert vocabulary.decode([]) == ""


def test_ids_of_special_tokens():
    assert [Vocabulary([]).words[i] for i in (PAD, BOS, EOS, UNK)] == ["<pad>", "<bos>", "<eos>", "<unk>"]


def test_equality_and_fingerprint_depend_on_words_and_their_order():
    one, same, other = Vocabulary(["a", "b"]), Vocabulary(("a", "b")), Vocabulary(["b", "a"])
    assert one == same == pickle.loads(pickle.dumps(one))
    assert one.fingerprint == same.fingerprint
    assert one != other
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("words", [["a", "b", "a"], ["<eos>"]])
def test_repeated_words_are_refused(words):
    with pytest.raises(UserError, match="repeats"):
        Vocabulary(words)


WITHOUT_SPACY = """
import sys
sys.modules["spacy"] = sys.modules["nltk"] = sys.modules["pycocoevalcap"] = None
import sca_caption.datasets.hdf5_reader, sca_caption.images
from sca_caption.vocab import Vocabulary, tokenize
assert Vocabulary(["dog"]).decode([4]) == "dog"
try:
    tokenize("a dog")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_only_tokenizing_needs_spacy_and_names_the_package():
    run = subprocess.run([sys.executable, "-c", WITHOUT_SPACY], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("UserError tokenizing captions needs spaCy")
    assert run.stdout.rstrip().endswith("pip install spacy")
