"""Cases of searches with guides, which Python and the browser page's JavaScript must answer with the same captions.

search_cases.json holds captioners (tables of counts, see `helpers.table_captioner`) with their guides, and cases. Each
case names its captioner, the guides that act, with the fields that it changes, and the captions expected of each image,
best first; captions are finished unless "finished" is false.
"""

import itertools
import json
import math
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers.node import needs_node, node
from tests.helpers.table_captioner import JAVASCRIPT, for_javascript, in_python, row_of, table_of, whole

GIVEN = json.loads(Path(__file__).with_name("search_cases.json").read_text(encoding="utf-8"))
CASES = {case["name"]: whole(GIVEN["captioners"], case) for case in GIVEN["cases"]}
IMAGES = [(name, image) for name, case in CASES.items() for image in range(len(case["images"]))]


def expected(name: str, image: int) -> list[dict]:
    return [
        {"finished": True, "confidence": None} | each for each in CASES[name]["images"][image]["captions"]
    ]


def agree(found: list[list[dict]], name: str) -> None:
    assert len(found) == len(CASES[name]["images"])
    for image, captions in enumerate(found):
        assert captions == [pytest.approx(each, abs=2e-6) for each in expected(name, image)], f"image {image}"


@pytest.mark.parametrize("name", CASES)
def test_python(name):
    agree(in_python(CASES[name]), name)


@pytest.fixture(scope="module")
def of_javascript(tmp_path_factory) -> dict[str, list[list[dict]]]:
    """The captions of every case, from one run of node."""
    cases = [for_javascript(case) for case in CASES.values()]
    return dict(zip(CASES, node(JAVASCRIPT, cases, tmp_path_factory.mktemp("node")), strict=True))


@needs_node
@pytest.mark.parametrize("name", CASES)
def test_javascript(name, of_javascript):
    agree(of_javascript[name], name)


# ---- the file against formulas and against enumeration -------------------------------------------------------------


def log_prob_of(name: str, image: int, words: Sequence[str], finished: bool = True) -> float:
    """By the table: the sum of ln(count / sum of the counts)."""
    case, total = CASES[name], 0.0
    read = ["<bos>", *words, *["<eos>"] * finished]
    for length, word in enumerate(read[1:], 1):
        row = row_of(table_of(case, image), read[:length])
        total += math.log(row[word] / sum(row.values()))
    return total


@pytest.mark.parametrize("name, image", IMAGES)
def test_log_probabilities_and_scores_follow_from_the_counts(name, image):
    search = CASES[name].get("search", {})
    for caption in expected(name, image):
        words, finished = caption["text"].split(), caption["finished"]
        assert caption["log_prob"] == pytest.approx(log_prob_of(name, image, words, finished), abs=2e-6)
        if not search.get("rerank_weight"):
            length = (len(words) + finished) ** search.get("length_penalty", 0.0)
            assert caption["score"] == pytest.approx(caption["log_prob"] / length, abs=2e-6)


def every_caption(name: str, image: int, max_length: int = 8) -> Iterator[tuple[float, list[str]]]:
    """The log-probabilities and words of all finished captions of fewer than `max_length` words."""
    table = table_of(CASES[name], image)
    growing: list[list[str]] = [[]]
    for _ in range(max_length):
        grown = [[*words, word] for words in growing for word in row_of(table, ["<bos>", *words])]
        yield from (
            (log_prob_of(name, image, words[:-1]), words[:-1]) for words in grown if words[-1] == "<eos>"
        )
        growing = [words for words in grown if words[-1] != "<eos>"]


def best_of(captions) -> list[tuple[str, float]]:
    """Texts and scores, best first."""
    return [(" ".join(words), score) for score, words in sorted(captions, key=lambda each: -each[0])]


def listed(name: str, image: int = 0) -> list[tuple[str, float]]:
    return [(each["text"], pytest.approx(each["score"], abs=2e-6)) for each in expected(name, image)]


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("beam search", lambda words: True),
        ("a minimum length", lambda words: len(words) >= 4),
        ("repeated conjuncts", lambda words: len(words) >= 4),
        ("no repeated words", lambda words: len(words) >= 4 and len(set(words)) == len(words)),
        ("no bad endings", lambda words: words[-1] not in ("a", "the", "with", "and")),
        ("a forced word", lambda words: "runs" in words),
        ("two forced words", lambda words: {"cat", "runs"} <= {*words} and words.count("a") < 3),
    ],
)
def test_enumeration_finds_the_best_captions(name, allowed):
    captions = [each for each in every_caption(name, 0) if allowed(each[1])]
    if "block_ngrams" in CASES[name].get("search", {}):
        captions = [each for each in captions if not repeats_bigram(each[1])]
    assert best_of(captions)[: len(listed(name))] == listed(name)


def repeats_bigram(words: list[str]) -> bool:
    pairs = [*itertools.pairwise(words)]
    return len(set(pairs)) < len(pairs)


def test_enumeration_reranks_by_the_cosine_with_the_expected_words():
    name = "consensus reranking"
    case = CASES[name]
    (idf,) = [guide["idf"] for guide in case["guides"]]

    def rated(predicted: list[float], caption: tuple[float, list[str]]) -> tuple[float, list[str]]:
        log_prob, words = caption
        vector = [words.count(word) * value for word, value in zip(case["words"], idf, strict=True)]
        return log_prob + 3 * sum(map(operator.mul, vector, predicted)) / math.hypot(*vector), words

    for image, given in enumerate(case["images"]):
        captions = [rated(given["predictions"]["consensus"], each) for each in every_caption(name, image)]
        assert best_of(captions)[0] == listed(name, image)[0]


@pytest.mark.parametrize(
    "image, banned",
    [(0, {"woman"}), (1, {"man", "dog"}), (2, {"man", "woman", "red"}), (3, {"person", "red"})],
)
def test_enumeration_without_the_words_that_are_improbable(image, banned):
    name = "words that are improbable"
    banned = banned | ({"man", "woman"} if "person" in banned else set())
    captions = [each for each in every_caption(name, image) if banned.isdisjoint(each[1])]
    assert best_of(captions)[:2] == listed(name, image)


def test_enumeration_of_neutral_captions():
    captions = [each for each in every_caption("neutral captions", 0) if {"man", "woman"}.isdisjoint(each[1])]
    assert best_of(captions)[:2] == listed("neutral captions")
