"""Tokenizer of captions, and the vocabulary that maps words to ids.

spaCy is needed only to tokenize text in preprocessing, not to train with a data file or to caption.
"""

import functools
import hashlib
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sca_caption.runtime.errors import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
# Name of this tokenizer, stored in data files.
TOKENIZER = "spacy-en lower-case, compounds whole, no punctuation"
CLITICS = frozenset(("'s", "'re", "'ll", "'ve", "'m", "'d", "n't"))  # joined to the preceding word


@functools.cache
def _spacy_tokenizer() -> Any:
    """spaCy's rule-based English tokenizer, which needs no model, changed to keep compounds such as "t-shirt" whole.

    BLEU and CIDEr use Penn Treebank tokens, in which compounds are whole, so "t shirt" would be two wrong words.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # spaCy would import it for its neural models: 2 s and 200 MB
    try:
        import spacy
    except ImportError as error:
        raise UserError(
            f"tokenizing captions needs spaCy, which cannot be imported ({error}); run: pip install spacy"
        ) from error
    finally:
        if absent:
            del sys.modules["torch"]
    from spacy.lang.char_classes import HYPHENS

    pipeline = spacy.blank("en")
    dashes = "|".join(mark for mark in HYPHENS.split("|") if mark != "-")
    rules: Any = pipeline.Defaults.infixes  # strings in English
    tokenizer: Any = pipeline.tokenizer
    infixes = [rule.replace(HYPHENS, dashes) for rule in rules]
    tokenizer.infix_finditer = spacy.util.compile_infix_regex(infixes).finditer
    return tokenizer


def tokenize(text: str) -> list[str]:
    """Tokenize a caption into lower-case words, without tokens that have neither letters nor digits (punctuation).

    "A man's t-shirt isn't red." -> ["a", "man", "'s", "t-shirt", "is", "n't", "red"]
    """
    return [word for part in normalize(text).split() for word in _words(part)]


def normalize(text: str) -> str:
    """Lower-case text as words have it: composed characters (NFC), and one kind of apostrophe."""
    return unicodedata.normalize("NFC", text).replace("’", "'").lower()


@functools.lru_cache(1 << 16)  # words repeat, so only one call in fifty reaches spaCy
def _words(part: str) -> tuple[str, ...]:
    """The words of a part of a caption between white space. spaCy tokenizes it independently of its context."""
    return tuple(token.text for token in _spacy_tokenizer()(part) if has_words(token.text))


def has_words(text: str) -> bool:
    """True if `tokenize(text)` is not empty. Does not need spaCy."""
    return any(character.isalnum() for character in text)


class Vocabulary:
    """An immutable mapping between words and ids. Ids 0 to 3 are PAD, BOS, EOS and UNK; the words start at id 4.

    Args:
        words: the words in the order of their ids, without special tokens. Raises UserError if one is repeated.
    """

    def __init__(self, words: Sequence[str]):
        self._words = SPECIALS + tuple(words)
        self._ids = {word: index for index, word in enumerate(self._words)}
        if len(self._ids) != len(self._words):
            repeated = next(word for word, count in Counter(self._words).items() if count > 1)
            raise UserError(f"the vocabulary repeats the word {repeated!r}; preprocess again")

    @classmethod
    def build(cls, token_lists: Iterable[Sequence[str]], min_count: int = 5) -> "Vocabulary":
        """The words with at least `min_count` occurrences, sorted by descending count, then alphabetically."""
        return cls.from_counts(Counter(token for tokens in token_lists for token in tokens), min_count)

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], min_count: int) -> "Vocabulary":
        """`build` from the number of occurrences per word."""
        kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIALS]
        return cls(sorted(kept, key=lambda word: (-counts[word], word)))

    @property
    def words(self) -> tuple[str, ...]:
        """All words in the order of their ids, including special tokens."""
        return self._words

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 of the words, to compare vocabularies."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()[:12]

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids of `tokens`, UNK for unknown ones, without BOS and EOS."""
        return [self._ids.get(token, UNK) for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The caption of `ids` up to the first EOS, without PAD and BOS. Clitics are joined: "man", "'s" is "man's"."""
        text = ""
        for index in ids:
            if index == EOS:
                break
            if index in (PAD, BOS):
                continue
            word = self._words[index]
            text += word if not text or word in CLITICS else f" {word}"
        return text

    def to_words(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The word per id, without joining clitics: "man", "'s"."""
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
