"""Selection of captions that differ in content.

The best hypotheses of a beam search are near-duplicates ("a man in a blue shirt", "a man wearing a blue shirt"). From a
wider pool, which a diverse beam search supplies, this takes the best first, and then by descending score those that
share at most MAX_OVERLAP of their content words with each caption taken before: maximal marginal relevance (Carbonell
and Goldstein, SIGIR 1998) with a threshold instead of a weight. If the pool has no such caption, the one with the least
overlap follows.

The overlap of two captions is |A & B| / |A | B| (Jaccard) of their sets of content words. A word's content is its
singular; function words, and words that only measure or place ("a group of", "on top of"), have none.
"""

from collections.abc import Collection, Sequence

from sca_caption.decoding.stepper import Hypothesis
from sca_caption.evaluation.caption_errors import FUNCTION_WORDS, PARTITIVES, singular
from sca_caption.vocab import CLITICS, SPECIALS, Vocabulary

MAX_OVERLAP = 0.5
NO_CONTENT = FUNCTION_WORDS | PARTITIVES | CLITICS | {*SPECIALS, "very", "wearing", "middle"}


def content_of(vocabulary: Vocabulary) -> list[str | None]:
    """The content of each word: its singular, None for words without content."""
    return [
        None if word in NO_CONTENT or singular(word) in PARTITIVES else singular(word) for word in vocabulary
    ]


def content_ids(vocabulary: Vocabulary) -> list[int]:
    """The content of each word as a number, -1 for none, as exported models have it."""
    ids: dict[str, int] = {}
    return [-1 if each is None else ids.setdefault(each, len(ids)) for each in content_of(vocabulary)]


def overlap(one: Collection[str], other: Collection[str]) -> float:
    """The Jaccard index of two sets; 1 for two empty ones."""
    union = {*one, *other}
    return len({*one} & {*other}) / len(union) if union else 1.0


def select_distinct(
    ranked: Sequence[Hypothesis],
    others: Sequence[Hypothesis],
    count: int,
    content: Sequence[str | None],
    groups: Sequence[Collection[int]] = (),
) -> list[Hypothesis]:
    """Up to `count` captions that differ in content, the first of `ranked` first, whatever the others are.

    ranked: candidates, best first. others: further candidates. content: of each word, see `content_of`. groups: of words
    that captions shall contain; captions that contain more of them come first, then finished ones.
    """
    first = ranked[0]
    pool = {tuple(each.tokens): each for each in [*ranked[1:], *others] if each.tokens != first.tokens}
    rest = sorted(pool.values(), key=lambda each: -each.score)
    words = {
        tuple(each.tokens): {word for token in each.tokens if (word := content[token]) is not None}
        for each in [first, *rest]
    }

    def key(each: Hypothesis) -> tuple[int, bool, float]:
        missing = sum(set(group).isdisjoint(each.tokens) for group in groups)
        most = max(overlap(words[tuple(each.tokens)], words[tuple(one.tokens)]) for one in taken)
        return missing, not each.finished, max(most, MAX_OVERLAP)

    taken = [first]
    while rest and len(taken) < count:
        taken.append(min(rest, key=key))  # of equals the first, which has the highest score
        rest.remove(taken[-1])
    return taken
