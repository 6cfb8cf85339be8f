"""Novel object captioning: when nouns are inserted, where new words come from, and what stays as it was."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from sca_caption.config import SearchConfig
from sca_caption.guidance.guide import TrainedGuide, extend_vocabulary
from sca_caption.guidance.novel_objects import AFTER_NOUN, ObjectLexicon, disagreeing_forms, donor_weights
from sca_caption.guidance.object_nouns import Noun
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.vocab import SPECIALS, Vocabulary
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
SEARCH = SearchConfig(beam_size=3, max_length=8, length_penalty=0.8, block_ngrams=2, remove_bad_endings=False)


class KnownClasses(TrainedGuide):
    """An object classifier that is told the probabilities of seven classes, one row per image."""

    def __init__(self):
        super().__init__()
        self.nouns, self.known = NOUNS, torch.zeros(0, 7)
        self.classifier = nn.Linear(5, 7)
        torch.manual_seed(3)
        nn.init.normal_(self.classifier.weight)
        self.membership = torch.zeros(7, len(NOUNS))
        for column, noun in enumerate(NOUNS):
            self.membership[list(noun.classes), column] = 1

    def forward(self, maps: Tensor, features: Tensor | None) -> Tensor:
        return self.known @ self.membership


@pytest.fixture(scope="module")
def pipelines():
    """Without and with the guide; both search alike."""
    model, trained = (
        tiny_captioner(len(VOCABULARY)).requires_grad_(False),
        KnownClasses().requires_grad_(False),
    )
    lexicon = ObjectLexicon.from_trained(trained, VOCABULARY)
    extended = extend_vocabulary(model, lexicon.word_weights)
    words = Vocabulary([*VOCABULARY.words[len(SPECIALS) :], *lexicon.new_words])
    size, transform, device = len(VOCABULARY), Transform(32), torch.device("cpu")
    plain = TorchCaptioner([model], {}, VOCABULARY, size, transform, device)
    guided = TorchCaptioner([extended], {"objects": trained}, words, size, transform, device)
    return CaptionPipeline(plain, search=SEARCH), CaptionPipeline(guided, [lexicon], search=SEARCH)


@pytest.fixture(scope="module")
def lexicon(pipelines):
    return pipelines[1].guides[0]


def captioned(pipelines, classes, images=None, force_words=None) -> tuple[list[list[str]], list[list[str]]]:
    """Words of the best captions without and with inserted nouns, for images of noise."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (len(classes), 3, 32, 32), generator=generator, dtype=torch.uint8)
    pixels = pixels if images is None else pixels[images]
    pipelines[1].model.trained["objects"].known = torch.tensor(classes)
    return tuple(
        [captions[0].text.split() for captions in each.caption_batch(pixels, force_words)]
        for each in pipelines
    )


def sure_of(*classes: int) -> list[float]:
    return [0.96 / len(classes) if index in classes else 0.01 for index in range(7)]


UNSURE = [0.05] * 7


def test_nothing_probable_changes_nothing(pipelines):
    before, after = captioned(pipelines, [UNSURE] * 3)
    assert before == after


def test_every_confident_noun_is_mentioned(pipelines):
    nouns = [DOG, CAT, OWL, BALL, BREAD]
    before, after = captioned(pipelines, [sure_of(NOUNS[noun].classes[0]) for noun in nouns] + [UNSURE])
    for noun, old, new in zip(nouns, before, after, strict=False):
        assert NOUNS[noun].is_in(" ".join(new))
        if NOUNS[noun].is_in(" ".join(old)):
            assert new == old
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= 3
    assert after[-1] == before[-1]


def test_an_image_has_the_same_caption_in_any_batch(pipelines):
    classes = [sure_of(2), sure_of(3), sure_of(6)]
    _, together = captioned(pipelines, classes)
    for row in range(3):
        _, alone = captioned(pipelines, [classes[row]] * 3, images=[0, 1, 2])
        assert alone[row] == together[row]


def test_new_words_come_only_where_they_are_inserted(pipelines, lexicon):
    assert set(lexicon.new_words) == {"owl", "bird", "bread"}
    classes = [sure_of(2), sure_of(3), sure_of(6), sure_of(3), sure_of(5), UNSURE]
    _, after = captioned(pipelines, classes)
    for noun, found in zip([CAT, OWL, BREAD, OWL, BALL, None], after, strict=True):
        forms = set() if noun is None else set(NOUNS[noun].forms)
        assert set(lexicon.new_words) & set(found) <= forms


def test_absent_nouns_of_the_same_kind_are_excluded(pipelines, lexicon):
    _, after = captioned(pipelines, [sure_of(2), sure_of(3), sure_of(4)] * 4)
    for found in after:
        if set(found) & {"cat", "cats", "owl", "bird"}:
            assert "dog" not in found
    membership = pipelines[1].model.trained["objects"].membership
    with_dog = torch.tensor([0.5, 0.0, 0.45, 0.01, 0.01, 0.01, 0.02]) @ membership
    words = lexicon.vocabulary.words
    assert "cat" not in [words[i] for i in lexicon._other_nouns(DOG, with_dog)]
    without = torch.tensor(sure_of(0)) @ membership
    assert {words[i] for i in lexicon._other_nouns(DOG, without)} == {"cat", "cats", "owl", "bird"}


def test_neighbours_of_a_noun_agree_with_it(pipelines):
    nouns = [noun for noun in (CAT, OWL, BREAD, BALL) for _ in range(4)]
    old, after = captioned(pipelines, [sure_of(NOUNS[noun].classes[0]) for noun in nouns])
    excluded = {
        "owl": {"a", "is"},
        "cat": {"an", "is"},
        "cats": {"a", "an", "is"},
        "ball": {"an", "is"},
        "bread": {"a", "an"},
    }
    checked = 0
    for noun, found, before_insertion in zip(nouns, after, old, strict=True):
        if found == before_insertion:
            continue
        for before, word in itertools.pairwise(["", *found]):
            if word in NOUNS[noun].forms:
                assert before not in excluded[word], found
                checked += 1
            if before in NOUNS[noun].forms:  # no compound: "a ball dog"
                assert word in AFTER_NOUN, found
    assert checked >= 8


def test_articles_and_verbs_that_disagree():
    words = Vocabulary(["a", "an", "is", "are", "to", "of", "people", "dog", "dogs", "owl", "bread", "runs"])
    found = disagreeing_forms(NOUNS, words)
    excluded = {
        after: {
            word for word, wrong in zip(words, found[words.encode([after])[0]].tolist(), strict=True) if wrong
        }
        for after in ("a", "an", "is", "are", "to", "of", "people")
    }
    assert {"dogs", "bread", "owl"} <= excluded["a"] and "dog" not in excluded["a"]
    assert "dog" in excluded["an"] and "owl" not in excluded["an"]
    assert excluded["is"] == excluded["are"] == {"dog", "dogs", "owl"}
    assert excluded["to"] == excluded["of"] == excluded["people"] == {"dog", "owl"}


@pytest.mark.parametrize(
    ("classes", "noun"),
    [
        (sure_of(2), CAT),
        (sure_of(0, 1), DOG),
        (sure_of(3), OWL),  # not bird, which is as probable
        (sure_of(3, 4), OWL),  # half of the probability of bird
        ([0.0, 0.0, 0.0, 0.3, 0.6, 0.1, 0.0], BIRD),
    ],
)
def test_a_specific_noun_if_it_is_probable(pipelines, lexicon, classes, noun):
    membership = pipelines[1].model.trained["objects"].membership
    assert lexicon.most_probable(torch.tensor(classes) @ membership) == noun


def test_forced_words_are_kept(pipelines):
    group = VOCABULARY.encode(["water"])
    before, after = captioned(pipelines, [sure_of(2)] * 3, force_words=[[group]] * 3)
    for old, new in zip(before, after, strict=True):
        assert "water" in old and "water" in new and {"cat", "cats"} & set(new)
    dog = VOCABULARY.encode(["dog"])
    _, after = captioned(pipelines, [sure_of(2)] * 3, force_words=[[dog]] * 3)
    assert all("dog" in new for new in after)


@torch.inference_mode()
def test_new_words_are_weighted_means_of_known_ones():
    model = tiny_captioner(len(VOCABULARY))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dog, cat = VOCABULARY.encode(["dog", "cat"])
    shares = torch.zeros(2, len(VOCABULARY))
    shares[0, dog] = 1
    shares[1, [dog, cat]] = 0.5
    more = extend_vocabulary(model, shares)
    state = model.start(model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    logits, after = model.step(torch.tensor([1]), state)
    found, after_ = more.step(torch.tensor([1]), state)
    known = len(VOCABULARY)
    torch.testing.assert_close(found[:, :known], logits)
    torch.testing.assert_close(found[0, known], logits[0, dog])
    torch.testing.assert_close(found[0, known + 1], logits[0, [dog, cat]].mean())
    as_new, _ = more.step(torch.tensor([known]), after_)  # the new word as input equals its donor
    torch.testing.assert_close(as_new[:, :known], model.step(torch.tensor([dog]), after)[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert more.lstm is model.lstm


def test_donors_are_the_nouns_with_similar_classifier_weights():
    trained = KnownClasses()
    shares = donor_weights(trained, VOCABULARY, ["owl"])[0]
    donors = VOCABULARY.encode(["dog", "cat", "ball"])
    assert shares.nonzero().flatten().tolist() == sorted(donors)  # all there are
    assert shares.sum().item() == pytest.approx(1)
    assert not donor_weights(trained, Vocabulary(["a"]), ["owl"]).any()
