"""Guidance by predicted words: rules followed by hand, thresholds against brute force."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import fit
from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.guidance.groups import genders, mention_groups
from sca_caption.guidance.words import (
    GENDER,
    MAX_WRONG,
    GenderRule,
    MentionRule,
    PredictedWords,
    WordGuide,
    gender_of,
    gender_share,
    gender_threshold,
    mention_threshold,
)
from sca_caption.images import Transform
from sca_caption.images import fit as resized
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import message, photo, record, write
from tests.helpers.tiny_captioner import TINY, tiny_captioner

NAMES = [
    "a",
    "man",
    "men",
    "his",
    "woman",
    "she",
    "person",
    "child",
    "dog",
    "puppy",
    "cats",
    "red",
    "orange",
    "runs",
    "on",
]
WORDS = Vocabulary(NAMES)
GENDERED = {"man", "men", "his", "woman", "she"}
THRESHOLDS = {"people": 0.25, "dogs": 0.5, "cat": 0.125, "red": 0.0, "orange": 0.1, GENDER: 0.75}


def trained(thresholds=THRESHOLDS) -> PredictedWords:
    return PredictedWords(thresholds)


def guide(thresholds=THRESHOLDS) -> WordGuide:
    return WordGuide.from_trained(trained(thresholds), WORDS)


def predicted(**probabilities: float) -> torch.Tensor:
    """One image with these probabilities, and 0 for all other words."""
    row = torch.zeros(1, len(WORDS))
    for word, probability in probabilities.items():
        row[0, WORDS.encode([word])] = probability
    return row


def banned(rules: WordGuide, forced=(), **probabilities: float) -> set[str]:
    groups = [WORDS.encode([word]) for word in forced]
    found = rules.banned_words(predicted(**probabilities), [groups], len(WORDS) + 2)
    assert found.shape == (1, len(WORDS) + 2) and not found[0, len(WORDS) :].any()
    return {WORDS.words[i] for i in found[0].nonzero().flatten().tolist()}


# ---- groups ------------------------------------------------------------------------------------------------------------


def test_groups_are_those_of_the_vocabulary():
    groups = {name: set(WORDS.to_words(ids)) for name, ids in mention_groups(WORDS).items()}
    assert groups == {
        "people": {"man", "men", "woman", "person", "child"},
        "dogs": {"dog", "puppy"},
        "cat": {"cats"},
        "red": {"red"},
        "orange": {"orange"},
    }
    male, female, neutral = (set(WORDS.to_words(ids)) for ids in genders(WORDS))
    assert (male, female) == ({"man", "men", "his"}, {"woman", "she"}) and neutral == {"person", "child"}


# ---- rules -------------------------------------------------------------------------------------------------------------

SURE = {"person": 0.3, "man": 0.3}  # people are there, and they are men


@pytest.mark.parametrize(
    "probabilities, groups",
    [
        ({}, {"dog", "puppy", "cats", "orange"}),
        ({"dog": 0.3, "puppy": 0.19}, {"dog", "puppy", "cats", "orange"}),
        ({"dog": 0.3, "puppy": 0.21}, {"cats", "orange"}),
        ({"cats": 0.13, "orange": 0.11}, {"dog", "puppy"}),
        ({"red": 0.0, "dog": 0.9, "puppy": 0.9, "cats": 1.0, "orange": 0.09}, {"orange"}),
    ],
)
def test_groups_below_their_threshold_are_excluded(probabilities, groups):
    assert banned(guide(), **SURE, **probabilities) == groups | {"woman", "she"}


def test_people_are_excluded_with_all_their_words():
    rules = guide({"people": 0.25})
    assert banned(rules, man=0.1, child=0.14) == {"man", "men", "woman", "person", "child"}
    assert banned(rules, man=0.1, child=0.16) == set()


@pytest.mark.parametrize(
    "probabilities, excluded",
    [
        ({"man": 0.5, "his": 0.3, "woman": 0.2}, {"woman", "she"}),  # 0.8 of the sum
        ({"woman": 0.6, "man": 0.1}, {"man", "men", "his"}),
        ({"man": 0.7, "woman": 0.3}, GENDERED),  # unsure
        ({"man": 0.4, "woman": 0.4}, GENDERED),
        ({"dog": 0.9}, GENDERED),  # neither
        ({"man": 0.75, "woman": 0.25}, {"woman", "she"}),  # at the threshold
    ],
)
def test_a_gender_is_said_if_it_is_sure(probabilities, excluded):
    assert banned(guide({GENDER: 0.75}), **probabilities) == excluded


def test_an_even_prediction_is_never_sure():
    assert banned(guide({GENDER: 0.5}), man=0.4, woman=0.4) == GENDERED
    assert banned(guide({GENDER: 0.5}), man=0.41, woman=0.4) == {"woman", "she"}


def test_without_a_neutral_word_there_is_no_rule_for_gender():
    words = Vocabulary(["man", "woman", "dog"])
    made = PredictedWords({GENDER: 0.75, "dogs": 0.5})
    rules = WordGuide.from_trained(made, words)
    assert rules.gender is None and [words.to_words(rule.words) for rule in rules.rules] == [("dog",)]


def test_forced_words_are_never_excluded():
    every = banned(guide())
    assert {"man", "dog", "cats", "woman"} <= every
    assert banned(guide(), forced=["dog", "woman"]) == every - {"dog", "woman"}


def test_without_rules_nothing_is_masked():
    assert guide({}).banned_words(predicted(dog=0.1), [[]], len(WORDS)) is None
    assert guide({"dogs": 0.0}).banned_words(predicted(), [[]], len(WORDS)) is None


def test_the_description_gives_the_same_guide():
    ours = guide()
    again = WordGuide.from_json(ours.to_json(), WORDS)
    assert (again.rules, again.gender) == (ours.rules, ours.gender)
    assert MentionRule(tuple(WORDS.encode(["dog", "puppy"])), 0.5) in again.rules
    assert isinstance(again.gender, GenderRule)
    assert WordGuide.from_json(guide({}).to_json(), WORDS).gender is None


# ---- thresholds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 5, 49, 50, 100, 137])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_the_threshold_of_a_group_is_the_largest_that_loses_few(count, scale):
    rates = scale * torch.rand(count, generator=torch.Generator().manual_seed(count)).round(decimals=2)
    candidates = [*rates.tolist(), 0.5]
    lost = {each: int((rates < each).sum()) for each in candidates}
    wanted = (
        max(each for each in candidates if each <= 0.5 and lost[each] <= 0.02 * count) if count >= 5 else 0
    )
    assert mention_threshold(rates) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_the_threshold_of_gender_is_the_smallest_that_is_seldom_wrong(seed):
    generator = torch.Generator().manual_seed(seed)
    male, female = torch.rand(2, 60, generator=generator).round(decimals=1)
    noise = torch.rand(60, generator=generator) * (seed % 4) * 0.3
    is_male = (male - female + noise - 0.15 * (seed % 4)) > 0
    candidates = [0.5, *gender_share(male, female).nan_to_num(0.5).tolist(), 1.0]

    def good(threshold: float) -> bool:
        sure = [
            (m > f) == right
            for m, f, right in zip(male.tolist(), female.tolist(), is_male.tolist(), strict=True)
            if m != f and torch.tensor(max(m, f)) / (torch.tensor(m) + torch.tensor(f)) >= threshold
        ]
        return 100 * sure.count(False) <= MAX_WRONG * len(sure)

    wanted = min((each for each in candidates if good(each)), default=1.0)
    assert gender_threshold(male, female, is_male) == pytest.approx(wanted, abs=1e-9)


def test_thresholds_of_gender_at_both_ends():
    male, female = torch.tensor([0.9, 0.6, 0.2, 0.3]), torch.tensor([0.1, 0.4, 0.8, 0.3])
    right = torch.tensor([True, True, False, True])
    assert gender_threshold(male, female, right) == 0.5
    assert gender_threshold(male, female, ~right) == 1.0
    assert gender_threshold(male, female, torch.tensor([True, False, False, True])) == pytest.approx(0.8)


def test_pronouns_count_beside_people_alone():
    people, (male, female, _) = mention_groups(WORDS)["people"], genders(WORDS)

    def of(*references: str) -> str | None:
        return gender_of([frozenset(WORDS.encode(each.split())) for each in references], people, male, female)

    assert of("a person on his", "a dog") == "male" and of("a dog on his") is None
    assert of("a woman", "a child") == "female" and of("a woman", "a man") is None and of() is None
    assert of("a dog she", "a man") == "male"


# ---- in a checkpoint and a pipeline ----------------------------------------------------------------------------------


def predicting() -> Checkpoint:
    """A tiny captioner whose word predictor differs from image to image, with the guide."""
    model = tiny_captioner(len(WORDS), replace(TINY, word_rank=6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.word_predictor.up.weight.normal_(0, 3, generator=generator)
        model.word_predictor.up.bias.normal_(0, 2, generator=generator)
        model.word_predictor.idf.uniform_(0.5, 3, generator=generator)
        model.word.bias[WORDS.encode(["man", "woman", "his", "dog"])] += 4.0
    return Checkpoint(model, WORDS, Transform(32), guides={"words": trained()})


@pytest.fixture(scope="module")
def given() -> Checkpoint:
    return predicting()


@pytest.fixture
def data(tmp_path) -> CaptionDataset:
    texts = ["a man runs", "a dog on a red cat", "the woman runs", "a person and her puppy", "orange cats"]
    records = [record(i, "val", [texts[i % 5], texts[(i + i % 2) % 5]]) for i in range(30)]
    records.append(record(30, "train", texts))
    write(Source("made", "made for a test", records), tmp_path / "made.h5")
    return CaptionDataset(tmp_path / "made.h5")


def images() -> torch.Tensor:
    return stack([resized(photo(number), Transform(32)) for number in range(8)])


def test_captions_lack_the_excluded_words(given):
    pipeline = CaptionPipeline.load(given, search=SearchConfig(num_captions=3))
    _, predictions = pipeline.model.start(images(), pipeline.guides)
    with torch.inference_mode():
        pooled = given.model.start(given.model.encode(images())).words.sigmoid()
    assert_close(predictions["words"], pooled)
    excluded = pipeline.guides[0].banned_words(pooled, [[]] * 8, len(WORDS))
    for captions, row in zip(pipeline.caption_batch(images()), excluded, strict=True):
        assert not any(row[list(each.tokens)].any() for each in captions)
    off = CaptionPipeline.load(given, guidance=False)
    assert off.guides == []
    without = [captions[0].text for captions in off.caption_batch(images())]
    assert any(not GENDERED.isdisjoint(text.split()) for text in without)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_checkpoint_keeps_it(given, dtype, tmp_path):
    checkpoint.save(tmp_path / "best.pt", given, dtype)
    again = checkpoint.load(tmp_path / "best.pt").guides["words"]
    assert again.thresholds == THRESHOLDS


def test_a_captioner_without_a_word_predictor_is_refused():
    plain = Checkpoint(tiny_captioner(len(WORDS)), WORDS, Transform(32), guides={"words": trained()})
    message(lambda: CaptionPipeline.load(plain), "words", "word predictor", "--word-rank")
    CaptionPipeline.load([plain, plain])  # an ensemble has no guides


def test_unknown_groups_are_refused(given, tmp_path):
    other = trained()
    other.thresholds["unicorn"] = 0.1
    checkpoint.save(tmp_path / "best.pt", replace(given, guides={"words": other}))
    message(lambda: checkpoint.load(tmp_path / "best.pt"), "unicorn")


def test_the_program_chooses_the_thresholds(given, data, tmp_path, capsys):
    path = tmp_path / "best.pt"
    checkpoint.save(path, replace(given, guides={}))
    assert fit.main(["words", str(path), "--data", str(data.path), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    fitted = checkpoint.load(path).guides["words"]
    with torch.inference_mode():
        batch = stack([data.image(row) for row in range(30)])
        p = given.model.start(given.model.encode(batch)).words.sigmoid()
    for name, forms in {
        "people": {"man", "woman", "person"},
        "dogs": {"dog", "puppy"},
        "red": {"red"},
    }.items():
        ids = list(mention_groups(WORDS)[name])
        rates = p[:, ids].sum(1).clamp(max=1)
        fractions = [
            sum(bool(forms & {*text.split()}) for text in data.references(row)) / 2 for row in range(30)
        ]
        mention = torch.tensor(fractions) >= 0.4
        assert fitted.thresholds[name] == pytest.approx(mention_threshold(rates[mention]), abs=1e-5), name
        counts = (int(mention.sum()), int((rates[mention] < fitted.thresholds[name] - 1e-5).sum()))
        assert f"| {name} | {fitted.thresholds[name]:.3f} | {counts[0]} | {counts[1]} |" in printed
    assert GENDER in fitted.thresholds and "gender: threshold" in printed


# ---- neutral captions --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gendered() -> Checkpoint:
    """A captioner without guides that always says man, woman or his."""
    model = tiny_captioner(len(WORDS))
    with torch.no_grad():
        model.word.bias[WORDS.encode(["man", "woman", "his"])] += 30.0
    return Checkpoint(model, WORDS, Transform(32))


@pytest.mark.parametrize("sampling", [None, SamplingConfig()])
def test_neutral_captions_never_name_a_gender(gendered, sampling):
    batch, search = images(), SearchConfig(num_captions=3)
    plain = CaptionPipeline.load(gendered, search=search, sampling=sampling)
    neutral = CaptionPipeline.load(gendered, search=search, sampling=sampling, neutral=True)
    spoken = [{*each.text.split()} for captions in plain.caption_batch(batch) for each in captions]
    assert all(words & GENDERED for words in spoken)
    spoken = [{*each.text.split()} for captions in neutral.caption_batch(batch) for each in captions]
    assert not set.union(*spoken) & GENDERED


def test_neutral_is_kept_or_changed_with_the_search(gendered):
    def gendered_words_of(pipeline) -> bool:
        return any(GENDERED & {*captions[0].text.split()} for captions in pipeline.caption_batch(images()))

    neutral, search = CaptionPipeline.load(gendered, neutral=True), SearchConfig(beam_size=2)
    assert not gendered_words_of(neutral.with_search(search))
    assert gendered_words_of(neutral.with_search(search, neutral=False))
    assert not gendered_words_of(CaptionPipeline.load(gendered).with_search(search, neutral=True))


def test_neutral_captions_cannot_be_forced_to_name_a_gender(gendered):
    for words in (["man"], ["dog", "man/woman"]):
        message(
            lambda words=words: CaptionPipeline.load(gendered, neutral=True, force_words=words), "--neutral"
        )
    CaptionPipeline.load(gendered, neutral=True, force_words=["man/person"])
