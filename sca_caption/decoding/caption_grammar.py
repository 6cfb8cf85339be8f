"""A finite-state grammar of captions, by which a search refuses ungrammatical captions of forced words.

A forced word takes the place where the captioner finds it least improbable, which may be ungrammatical: "two people are
airplane on a boat". The grammar is a chunker (Abney 1991, "Parsing by chunks"): a nondeterministic automaton over word
classes, made deterministic while it runs. It knows noun phrases and what joins them, no meaning:

- A singular noun needs a determiner, unless it is a mass noun or stands in a phrase such as "in bed". The determiner
  agrees with it in number and sound ("an airplane", "two airplanes"), and two determiners do not follow each other.
- No noun phrase follows another without a word between them, except in a compound ("a clock tower"): its first noun is
  often followed by another in captions, or its last preceded.
- A noun without a determiner does not follow a form of "be", except after "there is".
- A clause has one finite verb, which agrees with a subject directly before it.
- A caption does not end inside a noun phrase, or after a preposition or conjunction.

Ambiguous words have all their classes. Words without a class, and thus captions in other languages, are never refused.
`word_classes.txt` lists the open classes; those of few words are here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sca_caption.vocab import EOS, SPECIALS, Vocabulary

# The classes of few words. The first seven are determiners, named by one of them.
FEW = {
    "a": "a",
    "an": "an",
    "one": "each every another one",
    "this": "this that",
    "several": "these those two three four five six seven eight nine ten several many few both 2 3 4 5 6 7 8 9 10",
    "some": "some any no other more most all enough",
    "the": "the my your his her its our their whose different various",
    "before determiner": "all both half such just only almost even not",
    "counts": "few many couple dozen two three four five six seven eight nine ten 2 3 4 5 6 7 8 9 10",
    "after determiner": "different various other more own",
    "colour": "white black red blue green yellow brown pink purple orange gray grey tan silver gold",
    "close": "close",
    "up": "up",
    "after its noun": "full ready open asleep alone high close",
    "singular form": "is was has does 's",
    "plural form": "are were have do",
    "pronoun": "it he she they them him himself herself itself themselves you we i me us someone something everyone "
    "another one two three four five six some several many few all both each other others this that these those his "
    "hers what nothing",
    "there": "there",
    "be": "is are was were am 's",
    "be, not finite": "be been being",
    "have": "has have had do does did having",
    "modal": "can could will would may might must should",
    "to": "to",
    "not": "not n't",
    "preposition": "in on at with without by for from into onto over under above below behind beside besides between "
    "beneath near next inside outside around across along alongside against among amongst amid amidst about after "
    "before during through toward towards up down off out atop upon beyond past like via within underneath as than "
    "while per opposite aboard throughout until since despite including",
    "of": "of",
    "particle": "about from on up down off out in over by around along across through inside outside behind below above "
    "near next underneath past away back together alone ahead apart aside home nearby outdoors indoors upside downhill "
    "here there too well ready",
    "conjunction": "while as when where because so if but after before until whilst though although",
    "and": "and or & nor",
    "relative": "who which that whom where",
    "possessive": "'s '",
    "participle": "sat stood lying sitting standing going trying getting seen made taken shown left held done gone",
}
CLASSES = Path(__file__).with_name("word_classes.txt")
SILENT_H = ("hour", "honest", "honor", "heir")
SOUNDS_Y_OR_W = ("uni", "use", "usu", "util", "eu", "one", "once", "ukulele", "ufo")


class State(NamedTuple):
    """A state of the nondeterministic automaton.

    place: what stands before the next word: "start" (of a clause), "open" (a noun phrase without its noun), "close" (the
    same, after "close", which "up" may follow), "compound" (a noun that may begin a compound), "noun" (a whole noun
    phrase), "pronoun", "be", "there", "there is", "verb", "preposition", "to" (also a modal verb), "after" (an adverb or
    an adjective of the predicate), "and", "relative" (pronoun).
    determiner: of the noun phrase: a class of DETERMINERS, "" for none, "bare" for an adjective after "be".
    subject: of the clause: "" for none so far, "singular", "plural", "unknown", or "done" after its finite verb.
    number: of the noun before the next word, "singular" or "plural"; "particle" after such a preposition.
    """

    place: str
    determiner: str = ""
    subject: str = ""
    number: str = ""


States = frozenset[State]
START = frozenset((State("start"),))
DETERMINERS = ("a", "an", "one", "this", "several", "some", "the")
ENDS = {"noun", "pronoun", "verb", "after", "there"}  # places where a caption may end
BEGINS = {"start", "verb", "preposition", "and", "to", "there is"}  # places where any noun phrase may begin


class CaptionGrammar:
    """The automaton for a vocabulary.

    A state of it is the set of the `State`s in which the words so far may have been read, empty if they are
    ungrammatical. States are computed as they are met and kept. Threads may share a grammar.
    """

    def __init__(self, vocabulary: Vocabulary):
        classes = word_classes()
        kinds: dict[frozenset[str], int] = {}
        self.kind_of = [kinds.setdefault(classes_of(word, classes), len(kinds)) for word in vocabulary]
        self.kinds = [*kinds]  # the distinct sets of classes
        self._next: dict[tuple[States, int], States] = {}
        self._masks: dict[tuple[States, bool], Tensor] = {}

    def state_of(self, tokens: Iterable[int]) -> States:
        """The state after a caption's words."""
        state = START
        for token in tokens:
            state = self._after(state, self.kind_of[token])
        return state

    def accepts(self, tokens: Iterable[int]) -> bool:
        """Whether the words are a grammatical caption."""
        return may_end(self.state_of(tokens))

    def excluded(self, tokens: Tensor, last: bool) -> Tensor:
        """Words that must not follow, and <eos> after captions that may not end there.

        tokens: (n, B, t) -> bool (n, B, V). last: whether the caption must be able to end after the word. After an
        ungrammatical caption all words are excluded.
        """
        rows = [self._mask(self.state_of(row), last) for row in tokens.flatten(0, 1).tolist()]
        return torch.stack(rows).view(*tokens.shape[:2], -1).to(tokens.device)

    def _after(self, state: States, kind: int) -> States:
        """The state after a word of this kind."""
        if (state, kind) not in self._next:
            classes = self.kinds[kind]
            found = {each for before in state for each in (follow(before, classes) if classes else ANYTHING)}
            self._next[state, kind] = frozenset(found)
        return self._next[state, kind]

    def _mask(self, state: States, last: bool) -> Tensor:
        """A row of `excluded`."""
        if (state, last) not in self._masks:
            after = [self._after(state, kind) for kind in range(len(self.kinds))]
            allowed = torch.tensor([may_end(each) if last else bool(each) for each in after])
            mask = ~allowed[torch.tensor(self.kind_of)]
            mask[EOS] = not may_end(state)
            self._masks[state, last] = mask
        return self._masks[state, last]


def may_end(state: States) -> bool:
    """Whether a caption may end here."""
    return any(each.place in ENDS for each in state)


@cache
def grammar_of(vocabulary: Vocabulary) -> CaptionGrammar | None:
    """The grammar for a vocabulary; None for one of another language, of which it knows less than half of the words."""
    grammar = CaptionGrammar(vocabulary)
    known = sum(bool(grammar.kinds[kind]) for kind in grammar.kind_of)
    return grammar if 2 * known >= len(vocabulary) - len(SPECIALS) else None


@cache
def word_classes() -> dict[str, frozenset[str]]:
    """The classes of each word."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name, words in FEW.items():
        for word in words.split():
            found[word].add(name)
    for line in CLASSES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, words = line.split(":", 1)
            for word in words.split():
                found[word].add(name)
    return {word: frozenset(classes) for word, classes in found.items()}


def classes_of(word: str, known: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The classes of a word; and "vowel" if "an" stands before it; empty for an unknown word."""
    classes = known.get(word, frozenset())
    return classes | {"vowel"} if classes and sounds_like_vowel(word) else classes


def follow(before: State, classes: frozenset[str]) -> Iterator[State]:
    """The states after a word of these classes."""
    for rule in (_noun_phrase, _predicate, _verb, _link):
        yield from rule(before, classes)


def _noun_phrase(before: State, classes: frozenset[str]) -> Iterator[State]:
    """Determiners, adjectives and nouns."""
    place, determiner, subject, _ = before
    if place == "open" and determiner in ("a", "an"):
        if (determiner == "an") != ("vowel" in classes):
            return
        determiner = "one"
    begins = place in BEGINS or place in ("be", "after")
    if begins:
        yield from (State("open", each, subject) for each in DETERMINERS if each in classes)
        if "before determiner" in classes:
            yield before
        if "pronoun" in classes and place != "after":
            yield State("pronoun", "", subject)
        if "colour" in classes and place == "preposition":
            yield State("noun", "", subject, "singular")
    if place == "open" and "counts" in classes and before.determiner in ("a", "the", "some", "this"):
        yield State("open", "several", subject)  # "a few", "the two"
    if place == "open" and "after determiner" in classes and determiner:
        yield State("open", determiner, subject)
        if "pronoun" in classes:
            yield State("pronoun", "", subject)
    if (place == "open" and classes & {"adjective", "past", "adverb"}) or (
        begins and classes & {"adjective", "past"}
    ):
        yield State("open", determiner if place == "open" else "bare" if place == "be" else "", subject)
    if place == "open" and "ing" in classes:  # "a running man"
        yield State("compound", determiner, subject)
    if place == "open" and "and" in classes:
        yield before._replace(determiner=determiner)
    if place in ("open", "compound") or (begins and place != "after"):
        yield from _noun(before, determiner, classes)
    if place == "noun" and "head" in classes:
        yield from _noun(before, determiner, classes)
    if place == "open" and "close" in classes:
        yield before._replace(place="close")
    if place == "close" and "up" in classes:
        yield State("noun", determiner, subject, "singular")
    if place in ("noun", "pronoun") and "possessive" in classes:
        yield State("open", "the", subject)


def _noun(before: State, determiner: str, classes: frozenset[str]) -> Iterator[State]:
    """A noun in a phrase with this determiner."""
    place, subject = before.place, before.subject
    singular, mass, plural = "noun" in classes, "mass" in classes, "plural" in classes
    if not (singular or mass or plural):
        return
    in_compound = place in ("compound", "noun")
    if not in_compound and place != "open":
        determiner = {"be": "be", "and": "the"}.get(place, "")
        if place == "preposition" and "bare" in classes:
            yield State("noun", "", subject, "singular")
    kept = determiner if determiner not in ("a", "an") else "one"
    if (singular and determiner in ("a", "an", "one", "this", "the")) or (
        mass and determiner in ("this", "the", "some", "")
    ):
        yield State("noun", kept, subject, "singular")
    if plural and determiner in ("several", "some", "the", "", "bare"):
        yield State("noun", kept, subject, "plural")
    if "modifier" in classes and determiner != "be":
        yield State("compound", kept, subject)


def _predicate(before: State, classes: frozenset[str]) -> Iterator[State]:
    """Adjectives, adverbs and participles beside noun phrases."""
    place = before.place
    after = State("after", "", subject_after(before))
    if place in ("be", "verb", "after", "and") and "adjective" in classes:
        yield after
    if place in ("noun", "pronoun") and "after its noun" in classes:
        yield after
    if classes & {"adverb", "particle"} and place in ("noun", "pronoun", "verb", "be", "after", "and"):
        yield after
    if "adverb" in classes and place in ("start", "relative", "to", "preposition"):
        yield before
    if classes & {"past", "participle"} and place in (
        "noun",
        "pronoun",
        "be",
        "verb",
        "after",
        "and",
        "start",
    ):
        yield State("verb", "", subject_after(before))
    if "ing" in classes and place not in ("open", "compound", "relative", "to"):
        yield State("verb", "", subject_after(before))
    if "not" in classes and place in ("be", "verb", "start"):
        yield before


def _verb(before: State, classes: frozenset[str]) -> Iterator[State]:
    """Forms of "be", finite verbs and infinitives."""
    place = before.place
    if "be, not finite" in classes and place in ("to", "be", "verb", "noun", "pronoun", "after", "and"):
        yield State("be", "", subject_after(before))
    if place == "to" and classes & {"base", "have"}:
        yield State("verb", "", before.subject)
    if place not in ("noun", "pronoun", "relative", "after", "there", "and"):
        return
    subject = subject_after(before)
    if subject == "done":
        return
    is_singular, is_plural = (
        bool(classes & {"third", "singular form"}),
        bool(classes & {"base", "plural form"}),
    )
    if subject == "singular" and not is_singular and is_plural:
        return
    if subject == "plural" and is_singular and not is_plural:
        return
    if "be" in classes:
        yield State("there is" if place == "there" else "be", "", "done")
    if classes & {"have", "third"} or ("base" in classes and subject != "singular"):
        yield State("verb", "", "done")
    if "modal" in classes:
        yield State("to", "", "done")


def _link(before: State, classes: frozenset[str]) -> Iterator[State]:
    """Prepositions and conjunctions."""
    place = before.place
    complete = place in ("noun", "pronoun", "verb", "after", "be", "there")
    subject = subject_after(before)
    begins = place in ("start", "and", "there is", "relative")
    if "preposition" in classes and (complete or begins or before.number == "particle"):
        yield State("preposition", "", subject, "particle" if "particle" in classes else "")
    if "of" in classes and (complete or before.number == "particle"):
        yield State("preposition", "", before.subject or "unknown")  # "a group of people are" as well as "is"
    if "to" in classes and (complete or before.number == "particle"):
        yield State("to", "", subject)
    if "and" in classes and complete:
        yield State("and", "", "unknown")
        yield State("start")
    if "conjunction" in classes and (complete or place == "start"):
        yield State("start")
    if "relative" in classes and (complete or place == "preposition"):
        yield State("relative", "", "unknown")
        yield State("start")
    if "there" in classes and place in ("start", "and"):
        yield State("there", "", "unknown")


def subject_after(before: State) -> str:
    """The subject of the clause once its first noun phrase is complete."""
    if before.subject or before.place not in ("noun", "pronoun"):
        return before.subject
    return before.number or "unknown"


ANYTHING = [
    State(place, "the" if place == "noun" else "", "unknown")
    for place in (
        "start",
        "noun",
        "be",
        "verb",
        "preposition",
        "after",
        "relative",
        "pronoun",
        "compound",
        "open",
    )
]


def sounds_like_vowel(word: str) -> bool:
    """Whether "an" stands before the word."""
    if word.startswith(SILENT_H):
        return True
    return (word[0] in "aeio8" and not word.startswith(SOUNDS_Y_OR_W)) or (
        word[0] == "u" and (not word.startswith(SOUNDS_Y_OR_W) or word.startswith(("unin", "unid", "unim")))
    )
