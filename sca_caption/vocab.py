"""Captions to words to ids and back: the tokenizer of references, and the vocabulary a model speaks.

Needs spaCy only to tokenize text (preprocessing), never to train from a prepared file or to caption.
"""

import functools
import hashlib
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sca_caption.runtime.errors import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
TOKENIZER = "spacy-en lower-case, compounds whole, no punctuation"  # stored beside tokens: what made them
CLITICS = frozenset(("'s", "'re", "'ll", "'ve", "'m", "'d", "n't"))  # written onto the word before them


@functools.cache
def _splitter():
    """spaCy's rule-based English tokenizer (no model to download), which here keeps "t-shirt" in one piece.

    BLEU and CIDEr read references in Penn Treebank tokens, where compounds are whole: a model that said
    "t shirt" would be marked wrong twice.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = (
            None  # spaCy would import it for its networks: 2 s and 200 MB, and rules need none
        )
    try:
        import spacy
    except ImportError as error:
        raise UserError(
            f"splitting captions into words needs spaCy, which is not importable ({error}); pip install spacy"
        ) from error
    finally:
        if absent:
            del sys.modules["torch"]
    from spacy.lang.char_classes import HYPHENS

    pipeline = spacy.blank("en")
    dashes = "|".join(mark for mark in HYPHENS.split("|") if mark != "-")
    infixes = [rule.replace(HYPHENS, dashes) for rule in pipeline.Defaults.infixes]
    pipeline.tokenizer.infix_finditer = spacy.util.compile_infix_regex(infixes).finditer
    return pipeline.tokenizer


def tokenize(text: str) -> list[str]:
    """Split a caption into lower-cased words; what holds neither letter nor digit (punctuation) is dropped.

    "A man's t-shirt isn't red." -> ["a", "man", "'s", "t-shirt", "is", "n't", "red"]
    """
    text = unicodedata.normalize("NFC", text).replace("’", "'").lower()
    return [word for part in text.split() for word in _words(part)]


@functools.lru_cache(1 << 16)  # captions repeat their words: one call in fifty comes to spaCy
def _words(part: str) -> tuple[str, ...]:
    """The words of what stands between white space, which spaCy splits alike wherever it stands."""
    return tuple(token.text for token in _splitter()(part) if has_words(token.text))


def has_words(text: str) -> bool:
    """Whether `tokenize(text)` would be non-empty, without spaCy."""
    return any(character.isalnum() for character in text)


class Vocabulary:
    """An immutable list of words with ids. Ids 0 to 3 are PAD, BOS, EOS and UNK; `words` come after them.

    Args:
        words: the words in order of id, without the specials. Raises UserError when one is repeated.
    """

    def __init__(self, words: Sequence[str]):
        self._words = SPECIALS + tuple(words)
        self._ids = {word: index for index, word in enumerate(self._words)}
        if len(self._ids) != len(self._words):
            repeated = next(word for word, count in Counter(self._words).items() if count > 1)
            raise UserError(f"the vocabulary repeats {repeated!r}; every word stands once: preprocess again")

    @classmethod
    def build(cls, token_lists: Iterable[Sequence[str]], min_count: int = 5) -> "Vocabulary":
        """The words seen at least `min_count` times, by falling count and then alphabetically."""
        return cls.of_counts(Counter(token for tokens in token_lists for token in tokens), min_count)

    @classmethod
    def of_counts(cls, counts: Mapping[str, int], min_count: int) -> "Vocabulary":
        """`build` where the words are counted already."""
        kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIALS]
        return cls(sorted(kept, key=lambda word: (-counts[word], word)))

    @property
    def words(self) -> tuple[str, ...]:
        """Every word by id, the specials included."""
        return self._words

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that tell one vocabulary from another."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()[:12]

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids of `tokens`, UNK for those it lacks; adds neither BOS nor EOS."""
        return [self._ids.get(token, UNK) for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The caption that `ids` spell up to the first EOS, without PAD and BOS; "man 's" becomes "man's"."""
        text = ""
        for index in ids:
            if index == EOS:
                break
            if index in (PAD, BOS):
                continue
            word = self._words[index]
            text += word if not text or word in CLITICS else f" {word}"
        return text

    def spelled(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The word of each id, one by one: "man", "'s"."""
        return tuple(self._words[index] for index in ids)

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._words == other._words

    def __hash__(self) -> int:
        return hash(self._words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words, {self.fingerprint})"
