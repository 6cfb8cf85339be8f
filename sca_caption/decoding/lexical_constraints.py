"""Captions that must contain given words: constrained beam search over sets of beams.

Anderson et al., "Guided open vocabulary image captioning with constrained beam search", 2017 (arXiv 1612.00576).
An image has up to three groups of words; a caption must contain one word of each group (cat, cats or kitten). The search
keeps one set of beams for each subset of the groups, so that a caption competes only with captions that contain the same
groups: set s holds the captions that contain exactly the groups whose bit is set in s.

Shapes: n images, S = 2^groups sets, B beams per image (S sets of equal size), V words, M words in an image's groups.
"""

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS, Vocabulary, normalize

MAX_GROUPS = 3


class LexicalConstraints:
    """The words that captions of n images must contain; all images have the same number of groups.

    groups: per image, per group, the word ids of the group.
    """

    def __init__(self, groups: Sequence[Sequence[Collection[int]]], device: torch.device):
        self.sets = 2 ** len(groups[0])
        bits = [{word: 0 for group in image for word in group} for image in groups]
        for image, found in zip(groups, bits, strict=True):
            for position, group in enumerate(image):
                for word in group:
                    found[word] |= 1 << position
        width = max(map(len, bits))
        # Padded with word 0, which belongs to no group.
        self.words = torch.tensor([[*found, *[0] * (width - len(found))] for found in bits], device=device)
        self.bits = torch.tensor(
            [[*found.values(), *[0] * (width - len(found))] for found in bits], device=device
        )

    def select(self, images: Tensor) -> "LexicalConstraints":
        chosen = object.__new__(LexicalConstraints)
        chosen.sets, chosen.words, chosen.bits = self.sets, self.words[images], self.bits[images]
        return chosen

    def with_forced_words(self, words: Tensor) -> Tensor:
        """Of the words bool (n, B, V), those by which a caption with a forced word arises or continues."""
        slots, device = words.shape[1], words.device
        forced = torch.zeros(len(words), words.shape[2], dtype=torch.bool, device=device).scatter(
            1, self.words, self.bits > 0
        )
        has_forced = torch.arange(slots, device=device) >= slots // self.sets
        return words & (has_forced[:, None] | forced[:, None])

    def best(self, total: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best continuations of each set.

        total: scores (n, B, V) -> their values and their indices into B * V, both (n, S, count). An index is arbitrary
        where its value is -inf.
        """
        images, slots, vocabulary = total.shape
        source = torch.arange(slots, device=total.device) // (slots // self.sets)
        words = self.words[:, None].expand(-1, slots, -1)  # (n, B, M)
        target = source[:, None] | self.bits[:, None]  # (n, B, M)
        moves = target != source[:, None]
        gained = total.gather(2, words)
        # All other words leave a caption in its set.
        staying = total.scatter(2, words, gained.masked_fill(moves, -torch.inf)).view(images, self.sets, -1)
        values, indices = staying.topk(min(count, staying.shape[2]))
        first = torch.arange(self.sets, device=total.device)[:, None]
        indices = indices + first * staying.shape[2]
        into = (target[:, None] == first[:, :, None]) & moves[:, None]  # (n, S, B, M)
        moving = gained[:, None].masked_fill(~into, -torch.inf).flatten(2)
        moving_to = torch.arange(slots, device=total.device)[:, None] * vocabulary + words  # (n, B, M)
        moving_to = moving_to.flatten(1)[:, None].expand(-1, self.sets, -1)
        values, best = torch.cat([values, moving], 2).topk(min(count, values.shape[2] + moving.shape[2]))
        return values, torch.cat([indices, moving_to], 2).gather(2, best)


def by_group_count(
    force_words: Sequence[Sequence[Collection[int]]], device: torch.device
) -> Iterator[tuple[list[int], LexicalConstraints | None]]:
    """Yield the images that have the same number of groups, with their constraints; None for images without groups.

    Raises ValueError for an empty group, too many groups, and ids of special words.
    """
    for groups in force_words:
        if len(groups) > MAX_GROUPS:
            raise ValueError(f"{len(groups)} groups of words to force in one image; at most {MAX_GROUPS}")
        if not all(groups) or min(min(group) for group in groups or [[len(SPECIALS)]]) < len(SPECIALS):
            raise ValueError(
                f"words to force {groups}: a group needs word ids, and none of special words such as <eos>"
            )
    for count in sorted({len(groups) for groups in force_words}):
        rows = [row for row, groups in enumerate(force_words) if len(groups) == count]
        yield rows, LexicalConstraints([force_words[row] for row in rows], device) if count else None


def dropped_words_note(words: Sequence[str]) -> str:
    """The warning about alternatives that the vocabulary lacks."""
    return (
        f"--force-words: the model does not know {', '.join(map(repr, words))}; the other alternatives count"
    )


def word_groups(words: Sequence[str], vocabulary: Vocabulary) -> tuple[list[list[int]], list[str]]:
    """Word ids of each group, and the alternatives that the vocabulary lacks.

    "dog", "cat/cats/gruffalo" -> [[7], [31, 40]], ["gruffalo"]. Raises UserError for a group without a known word.
    """
    if len(words) > MAX_GROUPS:
        raise UserError(
            f"--force-words: at most {MAX_GROUPS} words, found {len(words)}; join alternatives by /: dog/puppy"
        )
    groups, dropped = [], []
    for text in words:
        known: list[str] = []
        unknown: list[str] = []
        for word in normalize(text).split("/"):
            (known if word in vocabulary and word not in SPECIALS else unknown).append(word)
        if not known:
            candidates = vocabulary.words[len(SPECIALS) :]
            near = ", ".join(
                dict.fromkeys(
                    each for word in unknown for each in get_close_matches(word, candidates, 5, 0.5)
                )
            )
            raise UserError(
                f"--force-words {text!r}: not among the words that the model knows; nearest: {near or 'none'}"
            )
        groups.append(vocabulary.encode(known))
        dropped += unknown
    return groups, dropped
