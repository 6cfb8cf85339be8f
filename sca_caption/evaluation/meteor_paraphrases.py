"""METEOR's table of paraphrases, cut down to what some sentences can need.

METEOR matches a phrase of a candidate with a phrase of a reference if its table of five million pairs has the two. To
read that table takes longer than to score a thousand captions. A pair can only match where all of its words occur in
the sentences, so the others are left out, and METEOR's answers stay the same.
"""

import gzip
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

BLOCK = 1 << 18  # bytes of the table looked at together: little enough to stay in a processor's cache
BITS = 20  # of the hashes of words
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: a multiplicative hash (Knuth, vol. 3, 6.4)
# What a byte of the table is.
PLAIN, OTHER, SPACE, NEWLINE = range(4)
KIND = np.full(256, OTHER, dtype=np.uint8)
KIND[list(b"abcdefghijklmnopqrstuvwxyz0123456789")] = PLAIN
KIND[ord(" ")], KIND[ord("\n")] = SPACE, NEWLINE


def filter_table(table: Path, sentences: Iterable[str], filtered: Path) -> None:
    """Write to `filtered` the pairs of `table` that can match in `sentences`, words joined by spaces.

    Both files are gzipped, three lines a pair: a probability, a phrase, its paraphrase. A few more pairs may be left in.
    """
    known = known_hashes(sentences)
    with gzip.open(table) as whole, gzip.open(filtered, "wb", compresslevel=0) as part:
        rest = b""
        for block in read_ahead(whole):
            block = rest + block
            pairs, length = pairs_with(known, block)
            part.writelines(pairs)
            rest = block[length:]


def read_ahead(file: IO[bytes]) -> Iterator[bytes]:
    """Its blocks, the next of which another core unpacks meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(file.read, BLOCK)
        while block := following.result():
            following = reader.submit(file.read, BLOCK)
            yield block


def known_hashes(sentences: Iterable[str]) -> np.ndarray:
    """For every hash, whether a word has it that METEOR may make of the sentences, (2**BITS,) bool.

    Before METEOR compares words it separates or removes what is neither letter nor digit. So of every token the runs of
    plain letters and digits may be words, and what neighbouring runs are together.
    """
    words = {""}
    for token in set().union(*(sentence.lower().split() for sentence in sentences)):
        runs = re.findall("[a-z0-9]+", token)
        starts = range(len(runs))
        words.update("".join(runs[first : last + 1]) for first in starts for last in starts[first:])
    known = np.zeros(1 << BITS, dtype=bool)
    text = "".join(f"{word}\n" for word in words).encode()
    known[hashes(text, np.flatnonzero(KIND[np.frombuffer(text, dtype=np.uint8)] == NEWLINE))] = True
    return known


def pairs_with(known: np.ndarray, block: bytes) -> tuple[list[bytes], int]:
    """The pairs in `block` all of whose words are known, and where its last whole pair ends.

    Words of anything but plain letters and digits pass as known.
    """
    kind = KIND[np.frombuffer(block, dtype=np.uint8)]
    ends = np.flatnonzero(kind >= SPACE)  # of words
    passes = np.append(known[hashes(block, ends)], True)  # the last: what the block's end cuts
    passes[np.searchsorted(ends, np.flatnonzero(kind == OTHER))] = True
    last = np.flatnonzero(kind[ends] == NEWLINE)  # which words are the last of their lines
    last = last[: len(last) // 3 * 3]
    if not len(last):
        return [], 0
    lines = np.logical_and.reduceat(passes[: last[-1] + 1], np.append(0, last[:-1] + 1))
    bounds = np.append(0, ends[last[2::3]] + 1).tolist()
    chosen = np.flatnonzero(lines[1::3] & lines[2::3]).tolist()
    return [block[bounds[pair] : bounds[pair + 1]] for pair in chosen], bounds[-1]


def hashes(text: bytes, ends: np.ndarray) -> np.ndarray:
    """Of the words that end before `ends`, by their last eight bytes."""
    padded = bytes(8) + text
    eights = np.ndarray(
        len(text) + 1, dtype="<u8", buffer=padded, strides=(1,)
    )  # [i]: the eight bytes before text[i]
    lengths = np.minimum(np.diff(ends, prepend=-1) - 1, 8)
    words = eights[ends] >> (8 * (8 - lengths)).astype(np.uint64)  # a shift by 64 leaves 0
    return words * SPREAD >> np.uint64(64 - BITS)
