"""Words that no caption ends in, as what they begin would be missing: "a man with a"; and words that join two others."""

from collections.abc import Collection

from sca_caption.vocab import UNK, Vocabulary

# Not here is what people end captions in, if seldom: "looks on", "walks by", "jumps up", "another runs behind".
DETERMINERS = "a an the this these my your his its our their some several many each every no very"
PREPOSITIONS = (
    "about across after against among amongst at atop before beneath beside between during for from in into like near "
    "next of onto through to toward towards under upon with within without"
)
CONJUNCTIONS = "and as because but if or than when where which while who whose"
VERBS = "am are be been being can had has have having is was were carrying holding wearing"
DANGLING = frozenset(f"{DETERMINERS} {PREPOSITIONS} {CONJUNCTIONS} {VERBS}".split())

JOINING = frozenset(("and", "or"))


def dangling(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of words that no caption ends in."""
    return _ids(DANGLING, vocabulary)


def joining(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of words that stand between two different ones."""
    return _ids(JOINING, vocabulary)


def _ids(words: Collection[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    return tuple(sorted(set(vocabulary.encode(words)) - {UNK}))
