"""Nouns that a caption leaves out: when they are put in, where new words come from, and what stays as it was."""

import itertools

import pytest
import torch
from torch import nn

from sca_caption.decoding import beam_search as decode
from sca_caption.guidance.novel_objects import AFTER_NOUN, Namer, agreement_of, with_words
from sca_caption.guidance.object_nouns import Noun
from sca_caption.vocab import Vocabulary
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner

VOCABULARY = Vocabulary([*TINY_WORDS, "an", "is", "cats"])
NOUNS = (
    Noun("animals", "dog", "dogs", ("dog", "dogs", "puppy"), (0, 1)),
    Noun("animals", "cat", "cats", ("cat", "cats"), (2,)),
    Noun("animals", "owl", "owls", ("owl", "owls"), (3,)),
    Noun("animals", "bird", "birds", ("bird", "birds"), (3, 4)),
    Noun("", "ball", "balls", ("ball", "balls"), (5,)),
    Noun("", "bread", None, ("bread",), (6,)),
)
DOG, CAT, OWL, BIRD, BALL, BREAD = range(6)
SEARCH = {"beam_size": 3, "max_length": 8, "length_penalty": 0.8, "block_ngrams": 2}


class Seen(nn.Module):
    """Objects that see the probabilities of the classes."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(5, 7)
        torch.manual_seed(3)
        nn.init.normal_(self.classifier.weight)

    def classes(self, seen):
        return seen


@pytest.fixture(scope="module")
def namer():
    model = tiny_captioner(len(VOCABULARY))
    model.requires_grad_(False)
    made = Namer(model, VOCABULARY, Seen().requires_grad_(False), NOUNS)
    made.plain = model
    return made


@torch.inference_mode()
def captioned(namer, seen, colours=None, force_words=None):
    """Hypotheses without and with nouns, for images of plain noise."""
    made = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (len(seen), 3, 32, 32), generator=made, dtype=torch.uint8)
    if colours is not None:
        pixels = pixels[colours]
    state = namer.plain.start(namer.plain.encode(pixels))
    mentions = mentions or [[]] * len(pixels)
    before = decode.beam_search(namer.plain, state, force_words=mentions, **SEARCH)
    return before, namer.improve(before, state, torch.tensor(seen), mentions, **SEARCH)


def words(namer, hypotheses) -> list[str]:
    return namer.vocabulary.decode(hypotheses[0].tokens).split()


def sure_of(*classes: int) -> list[float]:
    return [0.96 / len(classes) if index in classes else 0.01 for index in range(7)]


UNSURE = [0.05] * 7


def test_nothing_probable_changes_nothing(namer):
    before, after = captioned(namer, [UNSURE] * 3)
    assert [a is b for a, b in zip(before, after, strict=True)] == [True] * 3


def test_every_confident_noun_is_mentioned(namer):
    nouns = [DOG, CAT, OWL, BALL, BREAD]
    before, after = captioned(namer, [sure_of(NOUNS[noun].classes[0]) for noun in nouns] + [UNSURE])
    for noun, old, new in zip(nouns, before, after, strict=False):
        assert NOUNS[noun].is_in(" ".join(words(namer, new)))
        if NOUNS[noun].is_in(" ".join(words(namer, old))):
            assert new is old  # no second search
    assert sum(a is not b for a, b in zip(before, after, strict=True)) >= 3
    assert after[-1] is before[-1]


def test_an_image_has_the_same_caption_in_any_company(namer):
    seen = [sure_of(2), sure_of(3), sure_of(6)]
    _, together = captioned(namer, seen)
    for row in range(3):
        _, alone = captioned(namer, [seen[row]] * 3, colours=[0, 1, 2])
        assert words(namer, alone[row]) == words(namer, together[row])


def test_new_words_come_only_where_they_must(namer):
    new = set(range(len(VOCABULARY), len(namer.vocabulary)))
    assert {namer.vocabulary.words[i] for i in new} == {"owl", "bird", "bread"}
    seen = [sure_of(2), sure_of(3), sure_of(6), sure_of(3), sure_of(5)]
    _, after = captioned(namer, seen)
    for noun, found in zip([CAT, OWL, BREAD, OWL, BALL], after, strict=True):
        for hypothesis in found:
            assert new & set(hypothesis.tokens) <= set(namer.groups[noun])


def test_other_animals_that_are_not_there_are_not_said(namer):
    seen = [sure_of(2), sure_of(3), sure_of(4)] * 4
    _, after = captioned(namer, seen)
    for found in after:
        if set(found[0].tokens) & {i for noun in (CAT, OWL, BIRD) for i in namer.groups[noun]}:
            assert "dog" not in words(namer, found)
    with_dog = [0.5, 0.0, 0.45, 0.01, 0.01, 0.01, 0.02]  # the likeliest is said; the other may be
    assert "cat" not in [
        namer.vocabulary.words[i] for i in namer._others(DOG, torch.tensor(with_dog) @ namer.members)
    ]
    without = torch.tensor(sure_of(0)) @ namer.members
    closed = {namer.vocabulary.words[i] for i in namer._others(DOG, without)}
    assert closed == {"cat", "cats", "owl", "bird"}  # of its kind; not the ball


def test_what_stands_before_and_after(namer):
    nouns = [noun for noun in (CAT, OWL, BREAD, BALL) for _ in range(4)]
    _, after = captioned(namer, [sure_of(NOUNS[noun].classes[0]) for noun in nouns])
    wanted = {
        "owl": {"a", "is"},
        "cat": {"an", "is"},
        "cats": {"a", "an", "is"},
        "ball": {"an", "is"},
        "bread": {"a", "an"},
    }
    checked = 0
    for noun, found, old in zip(nouns, after, captioned(namer, [UNSURE] * 16)[0], strict=True):
        caption = ["", *words(namer, found)]
        if found[0].tokens == old[0].tokens:
            continue
        for before, word in itertools.pairwise(caption):
            if word in NOUNS[noun].forms:
                assert before not in wanted[word], caption
                checked += 1
            if before in NOUNS[noun].forms:  # no compound: "a ball dog"
                assert word in AFTER_NOUN, caption
    assert checked >= 8


def test_nobody_is_a_noun():
    words = Vocabulary(["a", "an", "is", "are", "to", "of", "people", "dog", "dogs", "owl", "bread", "runs"])
    found = agreement_of(NOUNS, words)
    closed = {
        after: {
            word for word, wrong in zip(words, found[words.encode([after])[0]].tolist(), strict=True) if wrong
        }
        for after in ("a", "an", "is", "are", "to", "of", "people")
    }
    assert {"dogs", "bread", "owl"} <= closed["a"] and "dog" not in closed["a"]
    assert "dog" in closed["an"] and "owl" not in closed["an"]
    assert closed["is"] == closed["are"] == {"dog", "dogs", "owl"}
    assert closed["to"] == closed["of"] == closed["people"] == {"dog", "owl"}


@pytest.mark.parametrize(
    ("seen", "noun"),
    [
        (sure_of(2), CAT),
        (sure_of(0, 1), DOG),
        (sure_of(3), OWL),  # not bird, which is as likely
        (sure_of(3, 4), OWL),  # half of the probability of bird
        ([0.0, 0.0, 0.0, 0.3, 0.6, 0.1, 0.0], BIRD),
    ],
)
def test_the_special_noun_where_it_is_likely(namer, seen, noun):
    assert namer.noun_of(torch.tensor(seen) @ namer.members) == noun


def test_what_the_user_wants_is_kept(namer):
    group = VOCABULARY.encode(["water"])
    before, after = captioned(namer, [sure_of(2)] * 3, force_words=[[group]] * 3)
    for old, new in zip(before, after, strict=True):
        assert "water" in words(namer, old) and {"water"} < set(words(namer, new))
        assert {"cat", "cats"} & set(words(namer, new))
    dog = VOCABULARY.encode(["dog"])
    _, after = captioned(namer, [sure_of(2)] * 3, force_words=[[dog]] * 3)
    assert all({"dog"} < set(words(namer, new)) for new in after)


@torch.inference_mode()
def test_new_words_are_the_mean_of_similar_ones():
    model = tiny_captioner(len(VOCABULARY))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dog, cat = VOCABULARY.encode(["dog", "cat"])
    shares = torch.zeros(2, len(VOCABULARY))
    shares[0, dog] = 1
    shares[1, [dog, cat]] = 0.5
    more = with_words(model, shares)
    state = model.start(model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    logits, after = model.step(torch.tensor([1]), state)
    found, after_ = more.step(torch.tensor([1]), state)
    known = len(VOCABULARY)
    torch.testing.assert_close(found[:, :known], logits)
    torch.testing.assert_close(found[0, known], logits[0, dog])
    torch.testing.assert_close(found[0, known + 1], logits[0, [dog, cat]].mean())
    as_new, _ = more.step(torch.tensor([known]), after_)  # after the new word as after the one it stands on
    torch.testing.assert_close(as_new[:, :known], model.step(torch.tensor([dog]), after)[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert more.lstm is model.lstm


def test_similar_is_by_the_classifiers_weights(namer):
    """Donors of "owl", of a single class, are ranked by the cosine of centred weight vectors."""
    weight = namer.objects.classifier.weight - namer.objects.classifier.weight.mean(0)
    vectors = torch.stack([weight[list(noun.classes)].sum(0) for noun in NOUNS])
    donors = [DOG, CAT, BALL]
    cosine = nn.functional.cosine_similarity(vectors[donors], vectors[OWL], dim=1)
    shares = namer._donors(VOCABULARY, ["owl"])[0]
    assert shares.sum() == pytest.approx(1) and (shares > 0).sum() == 3  # all there are
    assert len(set(cosine.tolist())) == 3
