"""Captions of the data file: tokenized while images are processed, word ids assigned after all words are counted."""

import array
import collections
import contextlib
import itertools
import json
import threading
from collections.abc import Sequence

import h5py
import numpy as np

from sca_caption.datasets.hdf5_reader import SPLITS
from sca_caption.datasets.sources.records import Record
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import PAD, SPECIALS, Vocabulary, has_words, tokenize

MAX_WORDS = 100  # words of a caption that are stored as tokens
BLOCK = 10_000  # captions written per HDF5 call
RECORDS_PER_CALL = 4  # records that `tokenize_some` tokenizes; more than one, so that it catches up


class CaptionWriter:
    """Writes captions/ and the vocabulary for a growing list of records. The row of a record is its index in the list.

    Needs about four bytes per word and twenty per caption beside the records. `problems` lists skipped captions.
    """

    def __init__(self, records: Sequence[Record]):
        self.records = records
        self.done = 0  # number of tokenized records
        self.texts: list[str] = []
        # word -> number, in order of first appearance
        self.numbers: dict[str, int] = collections.defaultdict(itertools.count().__next__)
        self.words = array.array("I")  # numbers of the words of all captions, concatenated
        self.lengths = array.array("i")  # number of words per caption
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
        """Tokenize all remaining records."""
        if self.loading is not None:
            self.loading.join()
        self._tokenize(len(self.records))

    def _tokenize(self, count: int) -> None:
        for record in itertools.islice(self.records, self.done, self.done + count):
            for caption in map(_clean, record.captions):
                if has_words(caption):
                    words = tokenize(caption)
                    self.texts.append(caption)
                    self.words.extend(map(self.numbers.__getitem__, words))
                    self.lengths.append(len(words))
                    self.rows.append(self.done)
                else:
                    self.problems.append((record.file_name, "a caption without words; skipped"))
            self.done += 1

    def write(self, file: h5py.File, splits: np.ndarray, vocabulary: int | Vocabulary) -> dict:
        """Write captions/ and the vocabulary. Returns their fields of `hdf5_writer.Report`.

        splits: (n,) split index per record. vocabulary: a vocabulary to use, or the least count in train of its words.
        Raises UserError if no word of train has that count.
        """
        words = np.frombuffer(self.words, np.uint32)  # (W,)
        lengths, rows = (np.frombuffer(column, np.int32) for column in (self.lengths, self.rows))  # (M,)
        distinct, split_of_caption = list(self.numbers), splits[rows]
        counts = np.zeros((len(SPLITS), len(distinct)), np.int64)  # per split and word
        split_of_word = np.repeat(split_of_caption, lengths)  # (W,)
        for start in range(0, len(words), 100 * BLOCK):  # in blocks, because bincount converts to int64
            block = slice(start, start + 100 * BLOCK)
            cells = split_of_word[block] * np.int64(len(distinct)) + words[block]
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        if not isinstance(vocabulary, Vocabulary):
            min_count = vocabulary
            vocabulary = Vocabulary.from_counts(
                dict(zip(distinct, counts[0].tolist(), strict=True)), min_count
            )
            if len(vocabulary) == len(SPECIALS):
                raise UserError(
                    f"no word occurs {min_count} times in the captions of train; lower --min-count"
                )
        ids = np.array(vocabulary.encode(distinct), np.uint16 if len(vocabulary) < 1 << 16 else np.uint32)
        group = file.create_group("captions")
        self._write_tokens(group, ids, words, lengths)
        group["length"] = np.minimum(lengths, MAX_WORDS)
        group["image"] = rows
        text = group.create_dataset("text", (len(self.texts),), dtype=h5py.string_dtype())
        # In blocks, because h5py copies its argument several times.
        for start in range(0, len(self.texts), BLOCK):
            text[start : start + BLOCK] = self.texts[start : start + BLOCK]
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

    def _write_tokens(
        self, group: h5py.Group, ids: np.ndarray, words: np.ndarray, lengths: np.ndarray
    ) -> None:
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


def _load_tokenizer() -> None:
    with contextlib.suppress(UserError):  # the first caption raises it again
        tokenize("a")


def _clean(caption: str) -> str:
    """Collapse white space and replace characters that HDF5 strings cannot hold: NUL and lone surrogates."""
    clean = " ".join(caption.replace("\0", " ").encode("utf-8", "replace").decode().split())
    # The same object if it is unchanged, to save memory: COCO has 616,767 captions.
    return caption if clean == caption else clean
