"""Captions and texts of the data file: captions are tokenized while images are processed, word ids are assigned after
all words are counted.
"""

import array
import collections
import contextlib
import itertools
import json
import threading
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from sca_caption.datasets.hdf5_reader import SPLITS
from sca_caption.datasets.sources.records import Record
from sca_caption.datasets.sources.texts import Texts
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import PAD, SPECIALS, Vocabulary, has_words, tokenize

MAX_WORDS = 100  # words of a caption that are stored as tokens
BLOCK = 10_000  # captions written per HDF5 call
RECORDS_PER_CALL = 4  # records that `tokenize_some` tokenizes; more than one, so that it catches up


class TokenLists:
    """Captions as lists of word numbers. Needs about four bytes per word and per caption.

    numbers: word -> number; looking up a new word adds it.
    """

    def __init__(self, numbers: Mapping[str, int]):
        self.numbers = numbers
        self._words = array.array("I")  # numbers of the words of all captions, concatenated
        self._lengths = array.array("i")  # number of words per caption

    def add(self, caption: str) -> None:
        words = tokenize(caption)
        self._words.extend(map(self.numbers.__getitem__, words))
        self._lengths.append(len(words))

    @property
    def lengths(self) -> np.ndarray:
        """(M,) int32, the number of words per caption."""
        return np.frombuffer(self._lengths, np.int32)

    def count_words(self, kinds: np.ndarray, n_kinds: int) -> np.ndarray:
        """(n_kinds, number of words): occurrences per kind of caption and word. kinds: (M,) kind per caption."""
        words = np.frombuffer(self._words, np.uint32)  # (W,)
        counts = np.zeros((n_kinds, len(self.numbers)), np.int64)
        kind_of_word = np.repeat(kinds, self.lengths)  # (W,)
        for start in range(0, len(words), 100 * BLOCK):  # in blocks, because bincount converts to int64
            block = slice(start, start + 100 * BLOCK)
            cells = kind_of_word[block] * np.int64(counts.shape[1]) + words[block]
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        return counts

    def write(self, group: h5py.Group, ids: np.ndarray) -> None:
        """Write the datasets tokens and length. ids: word id per word number."""
        words, lengths = np.frombuffer(self._words, np.uint32), self.lengths
        first = np.cumsum(lengths, dtype=np.int64) - lengths  # index of each caption's first word
        shape = len(lengths), min(MAX_WORDS, int(lengths.max()))
        tokens = group.create_dataset(
            "tokens", shape, ids.dtype, chunks=True, compression="gzip", compression_opts=1
        )
        step = -(-BLOCK // tokens.chunks[0]) * tokens.chunks[0]  # whole chunks, so each is compressed once
        column = np.arange(shape[1])
        for start in range(0, len(lengths), step):
            block = slice(start, start + step)
            index = np.minimum(first[block, None] + column, len(words) - 1)
            tokens[block] = np.where(column < lengths[block, None], ids[words[index]], PAD)
        group["length"] = np.minimum(lengths, MAX_WORDS)


class CaptionWriter:
    """Writes captions/, texts/ and the vocabulary for a growing list of records and for texts without photographs.

    The row of a record is its index in the list. Needs about four bytes per word and twenty per caption beside the
    records. `problems` lists skipped captions.
    """

    def __init__(self, records: Sequence[Record], texts: Texts | None = None):
        self.records = records
        self.texts = texts
        self.done = 0  # number of tokenized records
        self.references: list[str] = []
        # word -> number, in order of first appearance
        self.numbers: dict[str, int] = collections.defaultdict(itertools.count().__next__)
        self.captions = TokenLists(self.numbers)
        self.text_captions = TokenLists(self.numbers)
        self.rows = array.array("i")  # row of the record per caption
        self.problems: list[tuple[str, str]] = []
        self.loading: threading.Thread | None = None

    def tokenize_some(self) -> None:
        """Tokenize up to RECORDS_PER_CALL new records. The first call starts the import of spaCy in a thread."""
        if self.loading is None:  # not in the constructor: worker processes may be forked after it
            self.loading = threading.Thread(target=_load_tokenizer)
            self.loading.start()
        if not self.loading.is_alive():
            self._tokenize(RECORDS_PER_CALL)

    def finish(self) -> None:
        """Tokenize all remaining records and the texts."""
        if self.loading is not None:
            self.loading.join()
        self._tokenize(len(self.records))
        for caption in self.texts.captions if self.texts else ():
            self.text_captions.add(caption)

    def _tokenize(self, count: int) -> None:
        for record in itertools.islice(self.records, self.done, self.done + count):
            for caption in map(_clean, record.captions):
                if has_words(caption):
                    self.captions.add(caption)
                    self.references.append(caption)
                    self.rows.append(self.done)
                else:
                    self.problems.append((record.file_name, "a caption without words; skipped"))
            self.done += 1

    def write(
        self, file: h5py.File, splits: np.ndarray, vocabulary: int | Vocabulary, min_count_texts: int = 50
    ) -> dict:
        """Write captions/, texts/ and the vocabulary. Returns their fields of `hdf5_writer.Report`.

        splits: (n,) split index per record. vocabulary: a vocabulary to use, or the least count in train of its words.
        min_count_texts: the count in texts that also makes a word part of a new vocabulary.
        Raises UserError if no word has one of these counts.
        """
        rows, lengths = np.frombuffer(self.rows, np.int32), self.captions.lengths  # (M,)
        distinct, split_of_caption = list(self.numbers), splits[rows]
        counts = self.captions.count_words(split_of_caption, len(SPLITS))  # per split and word
        in_texts = self.text_captions.count_words(np.zeros(len(self.text_captions.lengths), np.uint8), 1)[0]
        if isinstance(vocabulary, Vocabulary):
            min_count_texts = 0  # as for min_count: the words are those of another file
        else:
            min_count = vocabulary
            member = (counts[0] >= min_count) | (in_texts >= min_count_texts)
            totals = dict(zip(distinct, np.where(member, counts[0] + in_texts, 0).tolist(), strict=True))
            vocabulary = Vocabulary.from_counts(totals, 1)
            if len(vocabulary) == len(SPECIALS):
                raise UserError(
                    f"no word occurs {min_count} times in the captions of train; lower --min-count"
                )
        ids = np.array(vocabulary.encode(distinct), np.uint16 if len(vocabulary) < 1 << 16 else np.uint32)
        group = file.create_group("captions")
        self.captions.write(group, ids)
        group["image"] = rows
        text = group.create_dataset("text", (len(self.references),), dtype=h5py.string_dtype())
        # In blocks, because h5py copies its argument several times.
        for start in range(0, len(self.references), BLOCK):
            text[start : start + BLOCK] = self.references[start : start + BLOCK]
        if self.texts is not None:
            group = file.create_group("texts")
            self.text_captions.write(group, ids)
            group["group"] = np.array(self.texts.groups, np.int32)
            group.attrs.update(source=self.texts.description, min_count=min_count_texts)
        file.attrs["vocabulary"] = json.dumps(vocabulary.words[len(SPECIALS) :])
        known = np.array([word in vocabulary for word in distinct])
        return {
            "captions": {split: int((split_of_caption == k).sum()) for k, split in enumerate(SPLITS)},
            "coverage": {
                split: float(count[known].sum() / count.sum())
                for split, count in zip(SPLITS, counts, strict=True)
                if count.any()
            },
            "vocabulary": len(vocabulary) - len(SPECIALS),
            "longest": int(lengths.max()),
            "truncated": int((lengths > MAX_WORDS).sum()),
        }


def _load_tokenizer() -> None:
    with contextlib.suppress(UserError):  # the first caption raises it again
        tokenize("a")


def _clean(caption: str) -> str:
    """Collapse white space and replace characters that HDF5 strings cannot hold: NUL and lone surrogates."""
    clean = " ".join(caption.replace("\0", " ").encode("utf-8", "replace").decode().split())
    # The same object if it is unchanged, to save memory: COCO has 616,767 captions.
    return caption if clean == caption else clean
