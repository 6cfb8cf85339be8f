"""The grammar of captions: judgements of examples, and a constrained search against enumeration."""

import itertools

import pytest
import torch

from sca_caption.decoding.beam_search import beam_search
from sca_caption.decoding.caption_grammar import (
    FEW,
    CaptionGrammar,
    grammar_of,
    may_end,
    sounds_like_vowel,
    word_classes,
)
from sca_caption.vocab import EOS, SPECIALS, Vocabulary
from tests.helpers.toy_decoder import EVERYTHING, ToyRNN, log_prob_of, made_images

GRAMMATICAL = """
a man riding a wave on top of a surfboard
two people are sitting on a boat
an airplane that is shown in the sky
a large clock tower in front of a bridge
a group of people are standing in the snow
a man in a blue shirt and a hat is holding a tennis racket
two dogs are running in a grassy field
there is a black and white cat on the bed
there is snow on the ground
a close up of a plate of food on a table
a dog looks out of a car window
the man's dog is asleep in bed
a red and white bus parked on the side of a city street
a woman and a boy are eating pizza
people walking down a street with umbrellas
a girl is standing next to a tree while it is raining
a man who looks at a horse
the two elephants are in the water
a running man
a bench under a large tree
a group of people are looking at the other dogs
the two people who are next to each other
"""
UNGRAMMATICAL = """
two people are airplane on a boat
two people are dogs on a boat
a man riding wave
a airplane in the sky
an dog on a bench
two airplane in the sky
a dogs on a bench
a black and white flowers
a the man
a man a dog
a man airplane on a bench
a girl holding a snow
a man is sitting looks at a dog
two dogs is running
a man are running
a man with
a man in a red
a man holding a
airplane on a runway
a man standing under on a bench
a woman is water
two zebras standing next to each other dogs
two people standing in front of a crowd looks at a dog
"""


def vocabulary_of(*captions: str) -> Vocabulary:
    words = {word for caption in captions for word in caption.replace("'s", " 's").split()}
    return Vocabulary(sorted(words))


LISTED = vocabulary_of(GRAMMATICAL, UNGRAMMATICAL)


@pytest.mark.parametrize(
    "caption, wanted",
    [(c, True) for c in GRAMMATICAL.strip().splitlines()]
    + [(c, False) for c in UNGRAMMATICAL.strip().splitlines()],
)
def test_judgements(caption, wanted):
    assert CaptionGrammar(LISTED).accepts(LISTED.encode(caption.replace("'s", " 's").split())) == wanted


def test_the_masks_are_those_of_the_states():
    """`excluded` agrees with one word after another, for every word, and for the end of the caption."""
    grammar, words = CaptionGrammar(LISTED), range(len(SPECIALS), len(LISTED))
    captions = [LISTED.encode(text.split()) for text in ("two people are", "a man riding", "a large clock")]
    for last in (False, True):
        found = grammar.excluded(torch.tensor([captions]), last)[0]
        for tokens, mask in zip(captions, found, strict=True):
            allowed = [grammar.state_of([*tokens, word]) for word in words]
            wanted = [may_end(state) if last else bool(state) for state in allowed]
            assert mask[len(SPECIALS) :].tolist() == [not each for each in wanted] and any(wanted)
            assert mask[EOS].item() != grammar.accepts(tokens)


def test_words_without_a_class_are_never_refused():
    vocabulary = Vocabulary(["a", "two", "gruffalo", "are"])
    grammar = CaptionGrammar(vocabulary)
    for text in ("a gruffalo", "two gruffalo are gruffalo", "gruffalo gruffalo"):
        assert grammar.accepts(vocabulary.encode(text.split()))


def test_a_vocabulary_of_another_language_has_no_grammar():
    assert grammar_of(Vocabulary(["ein", "mann", "auf", "einem", "pferd", "in", "an"])) is None
    assert grammar_of(Vocabulary(["a", "man", "on", "xyz"])) is not None


@pytest.mark.parametrize("wanted", [True, False])
def test_sounds(wanted):
    words = "apple hour umbrella old uninhabited" if wanted else "uniform dog one hat"
    assert all(sounds_like_vowel(word) == wanted for word in words.split())


def test_every_class_of_the_list_has_a_rule():
    """The classes of word_classes.txt are those that the rules read, and words are listed once per class."""
    classes = set().union(*word_classes().values())
    assert classes - FEW.keys() == {
        "noun", "mass", "bare", "plural", "modifier", "head", "adjective", "adverb", "ing", "past", "third", "base",
    }  # fmt: skip


WORDS = ["a", "airplane", "are", "dogs", "boat", "on"]


@pytest.mark.parametrize("forced", [["airplane"], ["dogs"], ["boat", "dogs"]])
def test_a_wide_beam_finds_the_best_grammatical_captions(forced):
    """Against enumeration of all captions of up to four words."""
    vocabulary = Vocabulary(WORDS)
    grammar, groups = CaptionGrammar(vocabulary), [[each] for each in vocabulary.encode(forced)]
    model, images = ToyRNN(1, vocabulary=len(vocabulary)), made_images(2)
    found = beam_search(
        model, model.start(images), beam_size=EVERYTHING, max_length=5, num_captions=3, length_penalty=0.7,
        force_words=[groups] * 2, grammar=grammar,
    )  # fmt: skip
    for image, hypotheses in zip(images, found, strict=True):
        best = [
            (log_prob_of(model, image, tokens, ended=True) / (len(tokens) + 1) ** 0.7, tokens)
            for count in range(1, 5)
            for tokens in map(list, itertools.product(range(len(SPECIALS), len(vocabulary)), repeat=count))
            if all(set(group) & set(tokens) for group in groups) and grammar.accepts(tokens)
        ]
        best.sort(reverse=True)
        wanted = [tokens for _, tokens in best[:3]]
        assert [hypothesis.tokens for hypothesis in hypotheses if hypothesis.finished][
            : len(wanted)
        ] == wanted


def test_captions_without_forced_words_are_not_checked():
    """Where no grammatical caption has the word, the best caption without it is that of a search that excludes it."""
    vocabulary = Vocabulary(["are", "airplane", "on", "of"])  # no sentence of these is grammatical
    airplane = vocabulary.encode(["airplane"])
    model, images = ToyRNN(2, vocabulary=len(vocabulary), end_bias=1.0), made_images(3)
    options = {"beam_size": EVERYTHING, "max_length": 4}
    found = beam_search(
        model,
        model.start(images),
        force_words=[[airplane]] * 3,
        grammar=CaptionGrammar(vocabulary),
        **options,
    )
    plain = beam_search(model, model.start(images), forbidden=(0, 1, 3, *airplane), **options)
    assert [h.tokens for (h,) in found] == [h.tokens for (h,) in plain]
