"""The browser page's modules give what Python gives: captions, their order and scores, words, and resized pictures."""

import dataclasses
import io
import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image

from sca_caption.config import SearchConfig
from sca_caption.decoding import beam_search as decode
from sca_caption.export.model_json import naming_of
from sca_caption.guidance.confidence import Calibration
from sca_caption.guidance.consensus import Ranking
from sca_caption.guidance.hallucination import Rule, closed
from sca_caption.guidance.masking import Discreet
from sca_caption.guidance.novel_objects import Namer
from sca_caption.guidance.object_nouns import Noun
from sca_caption.images import Transform, fit
from sca_caption.vocab import CLITICS, Vocabulary
from tests.conftest import tiny_captioner
from tests.guidance.test_novel_objects import NOUNS, VOCABULARY, Seen, sure_of
from tests.guidance.test_novel_objects import SEARCH as NAMING_SEARCH
from tests.helpers.node import needs_node, node
from tests.helpers.toy_decoder import EVERYTHING, ToyRNN, ToyState, made_images

pytestmark = needs_node
SEARCH = {
    "beam_size": 5,
    "num_captions": 5,
    "min_length": 1,
    "max_length": 6,
    "length_penalty": 0.8,
    "block_ngrams": 2,
}
CASES = {
    "as it comes": {},
    "greedy": {"beam_size": 1, "num_captions": 1},
    "two best of three": {"beam_size": 3, "num_captions": 2},
    "seven of three beams": {"beam_size": 3, "num_captions": 7},
    "a mention in six of two": {"mentions": [[5]], "beam_size": 2, "num_captions": 6},
    "long": {"min_length": 4, "length_penalty": 2.0},
    "short": {"length_penalty": -1.0},
    "by probability": {"length_penalty": 0.0, "block_ngrams": 0},
    "no word twice": {"block_ngrams": 1},
    "no three in a row": {"block_ngrams": 3, "max_length": 8},
    "sound endings": {"never_last": [5, 6]},
    "no word and itself": {"joining": [5, 4], "block_ngrams": 0},
    "one word": {"max_length": 1},
    "everything": {"beam_size": EVERYTHING, "num_captions": EVERYTHING, "max_length": 4},
    "a mention": {"mentions": [[5]]},
    "one of two": {"mentions": [[5, 6]], "block_ngrams": 0},
    "two mentions": {"mentions": [[4], [6]], "beam_size": 3, "num_captions": 3},
    "a word for two": {"mentions": [[4, 5], [5, 6]], "num_captions": 1},
    "three mentions": {"mentions": [[4], [5], [6]], "never_last": [4], "num_captions": 2},
    "a mention too many": {"mentions": [[4], [5], [6]], "max_length": 2},
}

# A captioner that knows by heart what it says after which words.
BY_HEART = """
const state = (said) => ({ said, select: (rows) => state(rows.map((row) => said[row])) });
const learnt = (table, width, keys = null) => ({
  async step(tokens, before) {
    const said = tokens.map((token, row) => [...before.said[row], token]);
    const logits = new Float32Array(tokens.length * width);
    said.forEach((ids, row) => logits.set(table[ids.join(" ")], row * width));
    return { logits, width, state: state(said) };
  },
});
"""


class Remembering(ToyRNN):
    """Writes down, for each image, what it says after which words."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tables = {}

    def start(self, images):
        state = super().start(images)
        state.image = torch.arange(len(images))
        return Remembered(state.hidden, state.read, state.image)

    def step(self, tokens, state):
        logits, after = super().step(tokens, state)
        for image, read, row in zip(
            state.image.tolist(), after.read.tolist(), logits.float().tolist(), strict=True
        ):
            self.tables.setdefault(image, {})[" ".join(map(str, read))] = row
        return logits, Remembered(after.hidden, after.read, state.image)


class Remembered(ToyState):
    def __init__(self, hidden, read, image):
        super().__init__(hidden, read)
        self.image = image

    def select(self, rows):
        return Remembered(self.hidden[rows], self.read[rows], self.image[rows])


def listed(hypotheses) -> list[dict]:
    return [
        {"tokens": h.tokens, "logProb": h.log_prob, "score": h.score, "finished": h.finished}
        for h in hypotheses
    ]


def same(found: list[dict], expected: list[dict]):
    assert [each["tokens"] for each in found] == [each["tokens"] for each in expected]
    assert [each["finished"] for each in found] == [each["finished"] for each in expected]
    for name in ("logProb", "score"):
        assert [h[name] for h in found] == pytest.approx([h[name] for h in expected], rel=1e-6, abs=1e-6)


def searched(tmp_path, given):
    program = f"""
import {{ beamSearch }} from "pages/search.js";
{BY_HEART}
const answer = (cases) => Promise.all(cases.map(({{ table, width, settings, mentions }}) =>
  beamSearch(learnt(table, width), state([[]]), settings, mentions)));
"""
    return node(program, given, tmp_path)


def case(images: int, seed: int = 0, vocabulary: int = 7, **changes):
    """What node is given of a search, and what Python finds, for each image."""
    model = Remembering(seed=seed, vocabulary=vocabulary)
    settings = SEARCH | {"never_last": []} | changes
    mentions = settings.pop("mentions", [])
    state = model.start(made_images(images, seed))
    found = decode.beam_search(model, state, force_words=[mentions] * images, **settings)
    given = [
        {"table": model.tables[row], "width": vocabulary, "settings": settings, "mentions": mentions}
        for row in range(images)
    ]
    return given, [listed(hypotheses) for hypotheses in found]


def test_searches_of_every_kind(tmp_path):
    made = [case(6, seed, **changes) for seed, changes in itertools.product(range(3), CASES.values())]
    given, expected = ([each for pair in made for each in pair[kind]] for kind in (0, 1))
    for found, wanted in zip(searched(tmp_path, given), expected, strict=True):
        same(found, wanted)
    assert len({len(wanted) for wanted in expected}) > 3  # some with fewer captions than were asked for
    assert {each["finished"] for wanted in expected for each in wanted} == {True, False}


def test_more_words_and_longer_captions(tmp_path):
    settings = {"max_length": 20, "num_captions": 3, "never_last": [7, 30, 50]}
    made = [
        case(4, seed, 60, **settings, force_words=groups)
        for seed in range(3)
        for groups in ([], [[9, 10]], [[9], [12, 40]])
    ]
    given, expected = ([each for pair in made for each in pair[kind]] for kind in (0, 1))
    for found, wanted in zip(searched(tmp_path, given), expected, strict=True):
        same(found, wanted)


def test_logits_that_are_not_numbers_are_an_error(tmp_path):
    program = f"""
import {{ beamSearch }} from "pages/search.js";
{BY_HEART}
const bad = {{ step: async () => ({{ logits: new Float32Array(7).fill(NaN), width: 7 }}) }};
const answer = (settings) => beamSearch(bad, state([[]]), settings).catch((error) => error.message);
"""
    assert "no word can start a caption" in node(program, SEARCH, tmp_path)


class Noted:
    """A captioner that writes down what it says after which words, and tells the first `known` words, or all."""

    def __init__(self, model, table, known=None):
        self.model, self.table, self.known = model, table, known

    def step(self, tokens, state):
        logits, after = self.model.step(tokens, state.inner)
        read = torch.cat([state.read, tokens[:, None]], 1)
        for said, row in zip(read.tolist(), logits.tolist(), strict=True):
            self.table[" ".join(map(str, said))] = row
        return logits[:, : self.known].clone(), NotedState(after, read)


class NotedState:
    def __init__(self, inner, read):
        self.inner, self.read, self.device, self.image = inner, read, inner.device, inner.image

    def __len__(self):
        return len(self.read)

    def select(self, rows):
        return NotedState(self.inner.select(rows), self.read[rows])


@torch.inference_mode()
@pytest.mark.parametrize("weight", [0, 3.0])
def test_nouns_that_a_caption_leaves_out(weight, tmp_path):
    model = tiny_captioner(len(VOCABULARY)).requires_grad_(False)
    namer = Namer(model, VOCABULARY, Seen().requires_grad_(False), NOUNS)
    speaking = namer.model
    described = {"words": list(namer.vocabulary), "known": len(VOCABULARY), "naming": naming_of(namer)}
    idf = [2.0 + word % 3 for word in range(len(VOCABULARY))] if weight else None
    described["consensus"] = {"idf": idf} if weight else None
    settings = NAMING_SEARCH | {"num_captions": 2, "min_length": 1, "never_last": [4, 5], "joining": [12, 13]}
    made = torch.Generator().manual_seed(5)
    seen = [sure_of(*classes) for classes in [(0,), (1,), (2,), (3,), (4,), (3, 4), (5,), (6,), (2, 3)]]
    seen += [[0.05] * 7, [0.5, 0.0, 0.45, 0.01, 0.01, 0.01, 0.02], [0.0, 0.0, 0.0, 0.3, 0.6, 0.1, 0.0]]
    given, expected, changed = [], [], 0
    rules = [Rule((6, 8, 9), 0.35, True), Rule((7, 13), 0.3, True), Rule((10, 11), 0.25, False)]
    described["subjects"] = [dataclasses.asdict(rule) for rule in rules] if weight else None
    for classes in [*seen, *seen]:
        pixels = torch.randint(256, (1, 3, 32, 32), generator=made, dtype=torch.uint8)
        table, state = {}, model.start(model.encode(pixels))
        state = NotedState(state, torch.empty(1, 0, dtype=torch.long))
        expected_words = torch.rand(1, len(VOCABULARY), generator=made)
        ranking = Ranking(expected_words, idf, weight) if weight else None
        searching = settings | (
            {"num_captions": SearchConfig(settings["beam_size"]).ranked} if weight else {}
        )
        shares = torch.rand(1, 3, generator=made) / 2
        silent = closed(shares, rules, len(VOCABULARY), [[]]) if weight else None
        search = Noted(speaking, table, len(VOCABULARY))
        found = decode.beam_search(search if silent is None else Discreet(search, silent), state, **searching)
        found = ranking.of_all(found, [[]]) if ranking else found
        namer.model = Noted(speaking, table)
        named = namer.improve(found, state, torch.tensor([classes]), [[]], ranking, silent, **searching)
        changed += named[0] is not found[0]
        named = [named[0][: settings["num_captions"]]]
        probabilities = (torch.tensor(classes) @ namer.members).tolist()
        told = {"expected": expected_words[0].tolist(), "shares": shares[0].tolist()}
        given.append({"table": table, "probabilities": probabilities} | told)
        expected.append(listed(named[0]))
    program = f"""
import {{ captionsOf }} from "pages/naming.js";
{BY_HEART}
const answer = ({{ described, settings, images }}) => Promise.all(images.map((each) => captionsOf(
  described, learnt(each.table, described.words.length), state([[]]), each, settings)));
"""
    settings = settings | {"rerank_weight": weight}
    found = node(program, {"described": described, "settings": settings, "images": given}, tmp_path)
    assert changed >= 8
    for each, wanted in zip(found, expected, strict=True):
        same(each, wanted)


def test_words_joined_as_in_python(tmp_path):
    vocabulary = Vocabulary(["man", "dog", "t-shirt", *sorted(CLITICS)])
    draw = random.Random(0)
    ids = [[draw.randrange(len(vocabulary)) for _ in range(draw.randrange(9))] for _ in range(300)]
    program = """
import { sentence, spoken } from "pages/naming.js";
const answer = ({ words, ids }) => ids.map((each) => [sentence(words, each), spoken(words, each)]);
"""
    found = node(program, {"words": list(vocabulary), "ids": ids}, tmp_path)
    for each, (text, shown) in zip(ids, found, strict=True):
        assert text == vocabulary.decode(each)
        assert text == " ".join(word["text"] for word in shown)
        for word in shown:  # what is written together knows the words that it is made of
            assert word["text"] == "".join(vocabulary.words[each[place]] for place in word["places"])


def test_which_captions_have_a_noun(tmp_path):
    noun = Noun("", "dog", "dogs", ("dog", "dogs", "hot dog", "c++"), (0,))
    captions = [
        "a dog",
        "dogs run",
        "a dogged man",
        "hot-dog",
        "a bulldog",
        "dog's",
        "été dogé",
        "c++ here",
        "dog_",
        "",
    ]
    program = """
import { isIn } from "pages/naming.js";
const answer = ({ noun, captions }) => captions.map((caption) => isIn(noun, caption));
"""
    found = node(program, {"noun": {"forms": noun.forms}, "captions": captions}, tmp_path)
    assert found == [noun.is_in(caption) for caption in captions] and len(set(found)) == 2


def test_how_far_a_caption_can_be_trusted(tmp_path):
    curve = Calibration(2.5, 1.5, 4.0)
    program = """
import { confidence } from "pages/naming.js";
const answer = ({ curve, found }) => found.map((each) => confidence(curve, each));
"""
    made = [
        {"tokens": [4] * words, "logProb": -words / 2, "finished": ended}
        for words in (1, 7)
        for ended in (True, False)
    ]
    found = node(program, {"curve": vars(curve), "found": made}, tmp_path)
    means = [each["logProb"] / (len(each["tokens"]) + each["finished"]) for each in made]
    assert found == pytest.approx([curve.probability(mean) for mean in means])
    knowing = [each | {"consensus": 0.3} for each in made]
    found = node(program, {"curve": vars(curve), "found": knowing}, tmp_path)
    assert found == pytest.approx([curve.probability(mean, 0.3) for mean in means])
    assert node(program, {"curve": None, "found": made}, tmp_path) == [None] * 4


SIZES = [
    (40, 30, 32, "resize"), (31, 57, 32, "resize"), (32, 32, 32, "resize"), (32, 50, 32, "resize"), (3, 2, 32, "resize"),
    (300, 200, 32, "crop"), (33, 90, 32, "crop"), (1, 1, 16, "crop"), (900, 7, 16, "crop"), (20, 200, 16, "resize"),
    (17, 64, 16, "crop"), (250, 401, 96, "resize"), (96, 290, 96, "resize"), (288, 96, 96, "crop"),
]  # fmt: skip


def test_pictures_brought_to_size_as_pillow_does(tmp_path):
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
import { fitted } from "pages/resize.js";
const answer = (pictures) => pictures.map(({ width, height, size, mode, levels }) => {
  const rows = (top, count) => Uint8ClampedArray.from({ length: count * width * 4 }, (_, i) =>
    i % 4 === 3 ? 255 : levels[(top * width + Math.trunc(i / 4)) * 3 + (i % 4)]);
  return [...fitted(rows, width, height, { size, mode }, 16)];
});
"""
    assert node(program, given, tmp_path) == expected


def test_pictures_halved_as_pillow_does(tmp_path):
    made = np.random.default_rng(1)
    sizes = [(40, 30, 2), (41, 31, 2), (50, 33, 4), (9, 17, 8)]
    levels = [made.integers(0, 256, (height, width, 3), np.uint8) for width, height, _ in sizes]
    given = [
        {"width": w, "height": h, "factor": f, "levels": x.ravel().tolist()}
        for (w, h, f), x in zip(sizes, levels, strict=True)
    ]
    program = """
import { reduced } from "pages/resize.js";
const answer = (pictures) => pictures.map(({ width, height, factor, levels }) => {
  const rows = (top, count) => Uint8ClampedArray.from({ length: count * width * 4 }, (_, i) =>
    i % 4 === 3 ? 255 : levels[(top * width + Math.trunc(i / 4)) * 3 + (i % 4)]);
  const small = reduced(rows, width, height, factor);
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


def test_how_much_smaller_pillow_decodes_a_photograph(tmp_path):
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
