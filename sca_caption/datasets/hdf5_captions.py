"""Captions on their way into the data file: split into words while the images are made, ids given when all are known."""

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

LONGEST = 100  # words of a caption that are kept as tokens
BLOCK = 10_000  # captions written at once
AT_ONCE = 4  # records that `follow` takes on, more than one so that it catches up


class Captions:
    """captions/ and the vocabulary of a list of records that grows: a record's row is its place in the list.

    Beside the records it holds four bytes a word and some twenty a caption. `problems` says what was left out.
    """

    def __init__(self, records: Sequence[Record]):
        self.records = records
        self.done = 0  # records whose captions are split
        self.texts: list[str] = []
        self.numbers = collections.defaultdict(itertools.count().__next__)  # of words, by first appearance
        self.words = array.array("I")  # numbers of the words of all captions, one caption after the other
        self.lengths = array.array("i")  # words of each caption
        self.rows = array.array("i")  # record of each caption
        self.problems: list[tuple[str, str]] = []
        self.starting: threading.Thread | None = None

    def follow(self) -> None:
        """Take on some of the records that came since. The first call has spaCy imported beside what goes on."""
        if self.starting is None:  # not earlier: worker processes, which may be forks, are running now
            self.starting = threading.Thread(target=_start_tokenizer)
            self.starting.start()
        if not self.starting.is_alive():
            self._take(AT_ONCE)

    def finish(self) -> None:
        """Take on all that is left."""
        if self.starting is not None:
            self.starting.join()
        self._take(len(self.records))

    def _take(self, count: int) -> None:
        for record in itertools.islice(self.records, self.done, self.done + count):
            for caption in map(_storable, record.captions):
                if has_words(caption):
                    words = tokenize(caption)
                    self.texts.append(caption)
                    self.words.extend(map(self.numbers.__getitem__, words))
                    self.lengths.append(len(words))
                    self.rows.append(self.done)
                else:
                    self.problems.append((record.file_name, "a caption without a word; left out"))
            self.done += 1

    def write(self, file: h5py.File, splits: np.ndarray, words_from: int | Vocabulary) -> dict:
        """Write captions/ and the vocabulary; returns store_writer.Report's fields on them.

        splits: (n,) of the records. words_from: the vocabulary, or how often train must have its words.
        Raises UserError when train has no word often enough.
        """
        words = np.frombuffer(self.words, np.uint32)  # (W,)
        lengths, rows = (np.frombuffer(column, np.int32) for column in (self.lengths, self.rows))  # (M,)
        spelled, split_of = list(self.numbers), splits[rows]
        counts = np.zeros((len(SPLITS), len(spelled)), np.int64)  # of each word in each split
        split_of_word = np.repeat(split_of, lengths)  # (W,)
        for start in range(0, len(words), 100 * BLOCK):  # bincount makes eight bytes of everything
            block = slice(start, start + 100 * BLOCK)
            places = split_of_word[block] * np.int64(len(spelled)) + words[block]
            counts += np.bincount(places, minlength=counts.size).reshape(counts.shape)
        if isinstance(words_from, Vocabulary):
            vocabulary = words_from
        else:
            vocabulary = Vocabulary.of_counts(dict(zip(spelled, counts[0].tolist(), strict=True)), words_from)
        if len(vocabulary) == len(SPECIALS):
            raise UserError(f"no word stands {words_from} times in the captions of train; lower --min-count")
        ids = np.array(vocabulary.encode(spelled), np.uint16 if len(vocabulary) < 1 << 16 else np.uint32)
        group = file.create_group("captions")
        self._write_tokens(group, ids, words, lengths)
        group["length"] = np.minimum(lengths, LONGEST)
        group["image"] = rows
        text = group.create_dataset("text", (len(self.texts),), dtype=h5py.string_dtype())
        for start in range(0, len(self.texts), BLOCK):  # h5py copies what it is given several times
            text[start : start + BLOCK] = self.texts[start : start + BLOCK]
        file.attrs["vocabulary"] = json.dumps(vocabulary.words[len(SPECIALS) :])
        known = np.array([word in vocabulary for word in spelled])
        return {
            "captions": {split: int((split_of == k).sum()) for k, split in enumerate(SPLITS)},
            "coverage": {
                split: float(count[known].sum() / count.sum())
                for split, count in zip(SPLITS, counts, strict=True)
                if count.any()
            },
            "vocabulary": len(vocabulary) - len(SPECIALS),
            "longest": int(lengths.max()),
            "shortened": int((lengths > LONGEST).sum()),
        }

    def _write_tokens(
        self, group: h5py.Group, ids: np.ndarray, words: np.ndarray, lengths: np.ndarray
    ) -> None:
        first = np.cumsum(lengths, dtype=np.int64) - lengths  # of each caption in words
        shape = len(lengths), min(LONGEST, int(lengths.max()))
        tokens = group.create_dataset(
            "tokens", shape, ids.dtype, chunks=True, compression="gzip", compression_opts=1
        )
        step = -(-BLOCK // tokens.chunks[0]) * tokens.chunks[0]  # whole chunks: each is compressed once
        column = np.arange(shape[1])
        for start in range(0, len(lengths), step):
            block = slice(start, start + step)
            place = np.minimum(first[block, None] + column, len(words) - 1)
            tokens[block] = np.where(column < lengths[block, None], ids[words[place]], PAD)


def _start_tokenizer() -> None:
    with contextlib.suppress(UserError):  # said to the user when the first caption is split
        tokenize("a")


def _storable(caption: str) -> str:
    """White space collapsed; NUL, which ends HDF5's strings, and halves of surrogate pairs are taken out."""
    clean = " ".join(caption.replace("\0", " ").encode("utf-8", "replace").decode().split())
    return caption if clean == caption else clean  # the same string where it can be: COCO has 616,767
