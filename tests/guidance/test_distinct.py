"""Captions that differ in content: the documented rule by hand, and on captioners given as tables."""

import itertools

import pytest

from sca_caption.decoding.stepper import Hypothesis
from sca_caption.guidance.distinct import MAX_OVERLAP, content_of, overlap, select_distinct
from sca_caption.vocab import Vocabulary
from tests.helpers.table_captioner import in_python

WORDS = [
    "a",
    "in",
    "of",
    "man",
    "men",
    "blue",
    "shirt",
    "wearing",
    "group",
    "dog",
    "dogs",
    "running",
    "grass",
    "on",
]
VOCABULARY = Vocabulary(WORDS)


def hypothesis(text, score, finished=True):
    return Hypothesis(VOCABULARY.encode(text.split()), score, score, finished)


def texts(found):
    return [VOCABULARY.decode(each.tokens) for each in found]


def test_content_is_the_singular_of_what_is_no_function_word():
    found = dict(zip(WORDS, content_of(VOCABULARY)[4:], strict=True))
    assert {word for word, content in found.items() if content is None} == {
        "a",
        "in",
        "of",
        "on",
        "wearing",
        "group",
    }
    assert found["men"] == found["man"] and found["dogs"] == found["dog"] == "dog"


def test_overlap():
    assert overlap("abc", "abd") == 2 / 4 and overlap("ab", "ab") == 1 and overlap("a", "b") == 0
    assert overlap("", "") == 1 and overlap("", "a") == 0


def test_near_duplicates_are_passed_over():
    ranked = [
        hypothesis("a man in a blue shirt", -1.0),
        hypothesis("a man wearing a blue shirt", -1.1),
        hypothesis("a man in a shirt", -1.2),
        hypothesis("a dog running", -1.5),
    ]
    others = [hypothesis("men running on grass", -1.3), hypothesis("a group of dogs on grass", -0.5)]
    content = content_of(VOCABULARY)
    found = select_distinct(ranked, others, 3, content)
    # The first stays first, although another has a higher score; a dog running shares a third with each before it.
    assert texts(found) == ["a man in a blue shirt", "a group of dogs on grass", "men running on grass"]
    assert texts(select_distinct(ranked, (), 2, content)) == ["a man in a blue shirt", "a dog running"]
    # Where all overlap more than half, the least is taken.
    assert texts(select_distinct(ranked[:3], (), 3, content)) == [
        "a man in a blue shirt", "a man in a shirt", "a man wearing a blue shirt",
    ]  # fmt: skip


def test_finished_captions_and_forced_words_come_first():
    ranked = [hypothesis("a man in a shirt", -1.0), hypothesis("a dog running", -1.2, finished=False)]
    others = [hypothesis("a man wearing a blue shirt", -3.0)]
    content = content_of(VOCABULARY)
    assert texts(select_distinct(ranked, others, 2, content))[1] == "a man wearing a blue shirt"
    forced = [VOCABULARY.encode(["dog", "dogs"])]
    assert texts(select_distinct(ranked, others, 2, content, forced))[1] == "a dog running"


# A captioner that says "a man" in seven ways before it says anything else.
MANNERS = {"in": 8, "with": 7, "wearing": 6}
CASE = {
    "words": ["<pad>", "<bos>", "<eos>", "<unk>", "a", "man", "dog", "grass", "on", "hat", "shirt", *MANNERS],
    "counts": {
        "<bos>": {"a": 1}, "a": {"man": 30, "dog": 2},
        "man": MANNERS, "in": {"a": 1}, "with": {"a": 1}, "wearing": {"a": 1},
        **{f"{manner} a": {"shirt": 20, "hat": 1} for manner in MANNERS},
        "dog": {"on": 1}, "on": {"grass": 1},
    },
    "guides": [],
    "images": [{}],
}  # fmt: skip


@pytest.mark.parametrize("beam_size", [4, 6])
def test_captions_of_a_table_differ(beam_size):
    search = {"beam_size": beam_size, "num_captions": 3, "max_length": 8, "diversity": 3.0}
    (best,) = in_python(CASE | {"search": search | {"num_captions": 1, "distinct": True}})
    (nbest,) = in_python(CASE | {"search": search})
    (found,) = in_python(CASE | {"search": search | {"distinct": True}})
    assert found[0] == best[0] == nbest[0], "the first caption is that of one caption"
    vocabulary = Vocabulary(CASE["words"][4:])
    content = content_of(vocabulary)

    def overlaps(captions):
        words = [{content[i] for i in vocabulary.encode(c["text"].split())} - {None} for c in captions]
        return [overlap(*pair) for pair in itertools.combinations(words, 2)]

    assert max(overlaps(nbest)) == 1
    assert len(found) == 3 and max(overlaps(found)) <= MAX_OVERLAP
    assert "a dog on grass" in [caption["text"] for caption in found]
