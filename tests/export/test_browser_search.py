"""The browser page's modules compute what Python computes: captions of random captioners, words, and resized images.

What searches and guides have to answer is in search_cases.json (see test_search_cases.py).
"""

import io
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sca_caption.images import Transform, fit
from sca_caption.vocab import CLITICS, Vocabulary
from tests.helpers.node import needs_node, node
from tests.helpers.table_captioner import JAVASCRIPT, for_javascript, in_python

pytestmark = needs_node
CAPTIONER = json.loads(Path(__file__).with_name("search_cases.json").read_text(encoding="utf-8"))[
    "captioners"
]["yard"]
OWN = CAPTIONER["words"][4:]
DOG = CAPTIONER["words"].index("dog")  # excluded if its probability is below 0.1
SEARCH = {"beam_size": 5, "num_captions": 5, "max_length": 6, "length_penalty": 0.8, "block_ngrams": 2}
CASES = {
    "defaults": {},
    "greedy": {"beam_size": 1, "num_captions": 1},
    "two of three beams": {"beam_size": 3, "num_captions": 2},
    "minimum length": {"min_length": 4, "length_penalty": 2.0},
    "short captions": {"length_penalty": -1.0},
    "by probability": {"length_penalty": 0.0, "block_ngrams": 0},
    "no repeated words": {"block_ngrams": 1},
    "no repeated trigrams": {"block_ngrams": 3, "max_length": 8},
    "no bad endings": {"remove_bad_endings": True},
    "one word": {"max_length": 1},
    "wide beam": {"beam_size": 300, "num_captions": 300, "max_length": 3},
    "distinct captions": {"distinct": True, "num_captions": 3},
    "distinct captions of a wide beam": {
        "distinct": True,
        "num_captions": 8,
        "beam_size": 12,
        "diversity": 2.0,
    },
    "distinct captions with a forced word": {"distinct": True, "num_captions": 3, "force_words": ["dog"]},
    "distinct captions that are cut off": {"distinct": True, "max_length": 2, "num_captions": 4},
    "reranked distinct captions": {"distinct": True, "num_captions": 3, "rerank_weight": 1.0},
    "long captions": {"max_length": 20, "num_captions": 3, "remove_bad_endings": True},
    "reranking": {"rerank_weight": 1.0},
    "one forced word": {"force_words": ["dog"]},
    "alternatives": {"force_words": ["dog/cat"], "block_ngrams": 0},
    "two forced words": {"force_words": ["dog", "on"], "beam_size": 3, "num_captions": 3},
    "a word of two groups": {"force_words": ["dog/cat", "cat/bird"], "num_captions": 1},
    "three forced words": {
        "force_words": ["dog", "cat", "grass"],
        "num_captions": 2,
        "remove_bad_endings": True,
    },
    "too many forced words": {"force_words": ["dog", "cat", "grass"], "max_length": 2},
    "wide beam with many alternatives": {
        "force_words": ["/".join(OWN[:6])],
        "beam_size": 60,
        "max_length": 3,
    },
    "reranking with a forced word": {"force_words": ["grass"], "rerank_weight": 1.0},
}


def random_image(draw: random.Random) -> dict:
    """Counts after every last word and every last two words, and a prediction of every guide."""

    def counts() -> dict[str, float]:
        return {word: draw.lognormvariate(0, 1.5) for word in ["<eos>", *CAPTIONER["words"][4:]]}

    words = ["<bos>", *CAPTIONER["words"][4:]]
    lasts = [*words, *map(" ".join, itertools.product(words, words[1:]))]
    predictions = {
        "consensus": [draw.gauss(0, 1) for _ in CAPTIONER["words"]],
        "words": [draw.uniform(0, 0.2) for _ in CAPTIONER["words"]],
    }
    return {"counts": {last: counts() for last in lasts}, "predictions": predictions}


def random_case(seed: int, guides: set[str], force_words=(), **search) -> dict:
    draw = random.Random(seed)
    chosen = [each for each in CAPTIONER["guides"] if each["name"] in guides]
    given = {"guides": chosen, "search": SEARCH | search, "force_words": list(force_words)}
    return CAPTIONER | given | {"counts": {}, "images": [random_image(draw) for _ in range(4)]}


def scores(captions: list[dict]) -> list[float]:
    return [each["score"] for each in captions]


def by_text(captions: list[dict]) -> list[dict]:
    return sorted(captions, key=lambda each: each["text"])


@pytest.mark.parametrize("guides", [(), ("words",), ("consensus", "words", "confidence")], ids=len)
def test_random_captioners(guides, tmp_path):
    cases = [
        random_case(seed, {*guides}, **changes)
        for seed, changes in itertools.product(range(2), CASES.values())
        if guides or "rerank_weight" not in changes
    ]
    found = node(JAVASCRIPT, [for_javascript(case) for case in cases], tmp_path)
    captions, excluded = [], []
    for case, images in zip(cases, found, strict=True):
        expected = in_python(case)
        for several, wanted in zip(images, expected, strict=True):
            # Scores that differ by rounding alone may be in either order, which depends on the processor.
            assert scores(several) == pytest.approx(scores(wanted), abs=1e-4)
            assert by_text(several) == [pytest.approx(each, abs=1e-4) for each in by_text(wanted)]
        captions += [each for several in expected for each in several]
        if not any("dog" in group for group in case["force_words"]):
            improbable = [image["predictions"]["words"][DOG] < 0.1 for image in case["images"]]
            excluded += [
                each["text"] for several in itertools.compress(expected, improbable) for each in several
            ]
    assert {each["finished"] for each in captions} == {True, False}
    assert any("dog" in text.split() for text in excluded) == ("words" not in guides)


def test_logits_that_are_not_numbers_are_an_error(tmp_path):
    program = """
import { beamSearch } from "pages/search.js";
const model = { step: async () => ({ logits: new Float32Array(7).fill(NaN), width: 7 }) };
const answer = (rules) => beamSearch(model, {}, rules).catch((error) => error.message);
"""
    assert "no word can start a caption" in node(program, SEARCH | {"min_length": 1}, tmp_path)


def test_words_joined_as_in_python(tmp_path):
    vocabulary = Vocabulary(["man", "dog", "t-shirt", *sorted(CLITICS)])
    draw = random.Random(0)
    ids = [[draw.randrange(len(vocabulary)) for _ in range(draw.randrange(9))] for _ in range(300)]
    program = """
import { decode, displayedWords } from "pages/vocabulary.js";
const answer = ({ words, ids }) => ids.map((each) => [decode(words, each), displayedWords(words, each)]);
"""
    found = node(program, {"words": list(vocabulary), "ids": ids}, tmp_path)
    for each, (text, displayed) in zip(ids, found, strict=True):
        assert text == vocabulary.decode(each)
        assert text == " ".join(word["text"] for word in displayed)
        for word in displayed:
            assert word["text"] == "".join(vocabulary.words[each[position]] for position in word["positions"])


SIZES = [
    (40, 30, 32, "resize"), (31, 57, 32, "resize"), (32, 32, 32, "resize"), (32, 50, 32, "resize"), (3, 2, 32, "resize"),
    (300, 200, 32, "crop"), (33, 90, 32, "crop"), (1, 1, 16, "crop"), (900, 7, 16, "crop"), (20, 200, 16, "resize"),
    (17, 64, 16, "crop"), (250, 401, 96, "resize"), (96, 290, 96, "resize"), (288, 96, 96, "crop"),
]  # fmt: skip


def test_images_are_resized_as_pillow_does(tmp_path):
    made = np.random.default_rng(0)
    given, expected = [], []
    for number, (width, height, size, mode) in enumerate(SIZES):
        levels = made.integers(0, 256, (height, width, 3), np.uint8)
        levels = levels if number % 2 else 255 * (levels > 127).astype(np.uint8)
        given.append(
            {"width": width, "height": height, "size": size, "mode": mode, "levels": levels.ravel().tolist()}
        )
        expected.append(
            fit(Image.fromarray(levels), Transform(size, mode)).transpose(2, 0, 1).ravel().tolist()
        )
    program = """
import { fit } from "pages/resize.js";
const answer = (pictures) => pictures.map(({ width, height, size, mode, levels }) => {
  const rows = (top, count) => Uint8ClampedArray.from({ length: count * width * 4 }, (_, i) =>
    i % 4 === 3 ? 255 : levels[(top * width + Math.trunc(i / 4)) * 3 + (i % 4)]);
  return [...fit(rows, width, height, { size, mode }, 16)];
});
"""
    assert node(program, given, tmp_path) == expected


def test_images_are_reduced_as_pillow_does(tmp_path):
    made = np.random.default_rng(1)
    sizes = [(40, 30, 2), (41, 31, 2), (50, 33, 4), (9, 17, 8)]
    levels = [made.integers(0, 256, (height, width, 3), np.uint8) for width, height, _ in sizes]
    given = [
        {"width": w, "height": h, "factor": f, "levels": x.ravel().tolist()}
        for (w, h, f), x in zip(sizes, levels, strict=True)
    ]
    program = """
import { reduce } from "pages/resize.js";
const answer = (pictures) => pictures.map(({ width, height, factor, levels }) => {
  const rows = (top, count) => Uint8ClampedArray.from({ length: count * width * 4 }, (_, i) =>
    i % 4 === 3 ? 255 : levels[(top * width + Math.trunc(i / 4)) * 3 + (i % 4)]);
  const small = reduce(rows, width, height, factor);
  return [small.width, small.height, [...small.rows(0, small.height)].filter((_, i) => i % 4 !== 3)];
});
"""
    for (_, _, factor), x, (width, height, found) in zip(
        sizes, levels, node(program, given, tmp_path), strict=True
    ):
        wanted = np.asarray(Image.fromarray(x).reduce(factor))
        assert (height, width) == wanted.shape[:2] and np.array_equal(
            np.array(found).reshape(wanted.shape), wanted
        )


def test_draft_factor_is_pillows(tmp_path):
    sizes = [
        (width, height) for width in (50, 127, 128, 255, 256, 511, 600) for height in (64, 128, 300, 512, 520)
    ]
    program = """
import { draftFactor } from "pages/resize.js";
const answer = (sizes) => sizes.map(([width, height]) => draftFactor(width, height, 32));
"""
    for (width, height), factor in zip(sizes, node(program, sizes, tmp_path), strict=True):
        stream = io.BytesIO()
        Image.new("RGB", (width, height)).save(stream, "JPEG")
        image = Image.open(stream)
        image.draft(None, (64, 64))
        assert image.size == (-(-width // factor), -(-height // factor))
