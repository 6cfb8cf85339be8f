"""Groups of words of a vocabulary that guides exclude together: for people, each animal, each colour, and each gender."""

from functools import cache
from typing import NamedTuple

from sca_caption.evaluation import caption_errors as errors
from sca_caption.guidance.hallucination import COLOURS, SUBJECTS
from sca_caption.guidance.object_nouns import read_nouns
from sca_caption.vocab import Vocabulary

PEOPLE = SUBJECTS["people"].words
# Common animals that ImageNet has no class for, beside those of `object_nouns`.
OTHER_ANIMALS = {
    "giraffe": frozenset(("giraffe", "giraffes")),
    "donkey": frozenset(("donkey", "donkeys", "mule", "mules")),
    "moose": frozenset(("moose",)),
}
# Words for one gender, beside those that `evaluation.caption_errors` counts. Kings and queens are sizes of beds.
MALE = errors.MALE | {"boyfriend", "cameraman", "grandfather", "groomsman", "salesman", "sportsman", "uncle"}
FEMALE = errors.FEMALE | {
    "actress",
    "ballerina",
    "bridesmaid",
    "cowgirl",
    "girlfriend",
    "grandmother",
    "aunt",
}


class Genders(NamedTuple):
    """Ids of the words for men and boys, of those for women and girls, and of all other words for people."""

    male: tuple[int, ...]
    female: tuple[int, ...]
    neutral: tuple[int, ...]


@cache
def animals_and_colours() -> dict[str, frozenset[str]]:
    """The words of every group but people by the group's name: "dogs", other animals by their noun, colours."""
    animals = {
        noun.name: frozenset(noun.forms)
        for noun in read_nouns()
        if noun.kind == "animals" and noun.name != "dog"
    }
    colours = {colour: frozenset((colour,)) for colour in COLOURS}
    return {"dogs": SUBJECTS["dogs"].words, **animals, **OTHER_ANIMALS, **colours}


def names_people(word: str) -> bool:
    """Whether the word is a noun for people, in the singular or plural."""
    noun = errors.singular(word)
    return word in PEOPLE or noun in errors.EVERYONE or noun in MALE or noun in FEMALE


def mention_groups(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """Ids of the vocabulary's words of "people", "dogs", other animals and colours; groups without words are left out."""
    groups = {name: words & {*vocabulary} for name, words in animals_and_colours().items()}
    groups = {"people": frozenset(filter(names_people, vocabulary)), **groups}
    return {name: tuple(vocabulary.encode(sorted(words))) for name, words in groups.items() if words}


def genders(vocabulary: Vocabulary) -> Genders:
    """The vocabulary's words for people by gender. The pronouns he and she are among those of a gender."""
    male = [each for each in vocabulary if errors.singular(each) in MALE or each in errors.MALE_PRONOUNS]
    female = [
        each for each in vocabulary if errors.singular(each) in FEMALE or each in errors.FEMALE_PRONOUNS
    ]
    neutral = [each for each in vocabulary if names_people(each) and each not in (*male, *female)]
    return Genders(*(tuple(vocabulary.encode(words)) for words in (male, female, neutral)))


def gendered_words(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids of the words that neutral captions never contain: those for one gender."""
    male, female, _ = genders(vocabulary)
    return male + female
