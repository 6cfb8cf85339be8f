"""METEOR's paraphrase table, filtered to the pairs that can match in given sentences.

METEOR matches a phrase of a candidate and a phrase of a reference if its table of five million pairs has them. Reading
the whole table takes longer than scoring a thousand captions. A pair can only match if all its words occur in the
sentences, so all other pairs are removed. METEOR's scores do not change.
"""

import gzip
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BLOCK = 1 << 18  # bytes of the table that are processed at once; fits a processor's cache
HASH_BITS = 20  # of a word's hash
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: a multiplicative hash (Knuth, vol. 3, 6.4)
# Kinds of bytes in the table.
PLAIN, OTHER, SPACE, NEWLINE = range(4)
KIND = np.full(256, OTHER, dtype=np.uint8)
KIND[list(b"abcdefghijklmnopqrstuvwxyz0123456789")] = PLAIN
KIND[ord(" ")], KIND[ord("\n")] = SPACE, NEWLINE


def filter_table(table: Path, sentences: Iterable[str], filtered: Path) -> None:
    """Write the pairs of `table` that can match in `sentences` to `filtered`. May keep a few other pairs.

    sentences: words joined by spaces. Both files are gzipped and have three lines per pair: probability, phrase,
    paraphrase.
    """
    known = known_hashes(sentences)
    with gzip.open(table) as whole, gzip.open(filtered, "wb", compresslevel=0) as part:
        rest = b""
        for block in read_ahead(whole):
            block = rest + block
            pairs, length = pairs_with(known, block)
            part.writelines(pairs)
            rest = block[length:]


def read_ahead(file: gzip.GzipFile) -> Iterator[bytes]:
    """Yield the blocks of a file. The next block is decompressed in another thread meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(file.read, BLOCK)
        while block := following.result():
            following = reader.submit(file.read, BLOCK)
            yield block


def known_hashes(sentences: Iterable[str]) -> np.ndarray:
    """Mark the hashes of all words that METEOR can produce from the sentences: bool (2**HASH_BITS,).

    METEOR splits tokens at characters that are neither letters nor digits, or removes them. So each run of letters and
    digits of a token, and each concatenation of neighbouring runs, can be a word.
    """
    words = {""}
    for token in set().union(*(sentence.lower().split() for sentence in sentences)):
        runs = re.findall("[a-z0-9]+", token)
        starts = range(len(runs))
        words.update("".join(runs[first : last + 1]) for first in starts for last in starts[first:])
    known = np.zeros(1 << HASH_BITS, dtype=bool)
    text = "".join(f"{word}\n" for word in words).encode()
    known[hashes(text, np.flatnonzero(KIND[np.frombuffer(text, dtype=np.uint8)] == NEWLINE))] = True
    return known


def pairs_with(known: np.ndarray, block: bytes) -> tuple[list[bytes], int]:
    """The pairs in `block` with known words only, and the end of the last complete pair in bytes.

    known: bool (2**HASH_BITS,). Words with other characters than a-z and 0-9 count as known.
    """
    kind = KIND[np.frombuffer(block, dtype=np.uint8)]
    ends = np.flatnonzero(kind >= SPACE)  # of words; offsets in bytes
    # The last entry is for a word that is cut by the end of the block.
    is_known = np.append(known[hashes(block, ends)], True)
    is_known[np.searchsorted(ends, np.flatnonzero(kind == OTHER))] = True
    last = np.flatnonzero(kind[ends] == NEWLINE)  # indices of the last words of lines
    last = last[: len(last) // 3 * 3]
    if not len(last):
        return [], 0
    lines = np.logical_and.reduceat(is_known[: last[-1] + 1], np.append(0, last[:-1] + 1))
    bounds = np.append(0, ends[last[2::3]] + 1).tolist()
    chosen = np.flatnonzero(lines[1::3] & lines[2::3]).tolist()
    return [block[bounds[pair] : bounds[pair + 1]] for pair in chosen], bounds[-1]


def hashes(text: bytes, ends: np.ndarray) -> np.ndarray:
    """Hash the words that end before the offsets `ends`, by their last eight bytes. Multiplicative hash of Knuth."""
    padded = bytes(8) + text
    # eights[i]: the eight bytes before text[i]
    eights = np.ndarray(len(text) + 1, dtype="<u8", buffer=padded, strides=(1,))
    lengths = np.minimum(np.diff(ends, prepend=-1) - 1, 8)
    words = eights[ends] >> (8 * (8 - lengths)).astype(np.uint64)  # a shift by 64 leaves 0
    return words * MULTIPLIER >> np.uint64(64 - HASH_BITS)
