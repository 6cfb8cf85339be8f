"""Captions that must mention words: constrained beam search over sets of beams.

Anderson et al., "Guided open vocabulary image captioning with constrained beam search", 2017 (arXiv 1612.00576). What
must be mentioned is up to three groups of words an image, of each of which one word must come (cat, cats or kitten).
An image has a set of beams for each subset of its groups, so that a caption competes only with those that have
mentioned the same: set s holds the captions that have mentioned exactly the groups whose bit is set in s.

Shapes: n images, S = 2^groups sets, B slots an image (S sets of as many beams), V words, M words in an image's groups.
"""

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS, Vocabulary

MOST_GROUPS = 3


class Mentions:
    """What each of n images must mention, the same number of groups for all.

    Args:
        groups: for each image, for each group, ids of words.
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

    def of(self, images: Tensor) -> "Mentions":
        chosen = object.__new__(Mentions)
        chosen.sets, chosen.words, chosen.bits = self.sets, self.words[images], self.bits[images]
        return chosen

    def best(self, total: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best continuations that end up in each set: total (n, B, V) -> (n, S, count) twice,
        their values and where in B * V they are (anything where the value is -inf).
        """
        images, slots, vocabulary = total.shape
        source = torch.arange(slots, device=total.device) // (slots // self.sets)
        words = self.words[:, None].expand(-1, slots, -1)  # (n, B, M)
        target = source[:, None] | self.bits[:, None]  # (n, B, M)
        moves = target != source[:, None]
        gained = total.gather(2, words)
        # Every other word leaves a caption in its set.
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


def by_groups(
    mentions: Sequence[Sequence[Collection[int]]], device: torch.device
) -> Iterator[tuple[list[int], Mentions | None]]:
    """The images with as many groups each, and their groups; None for those that have none.

    Raises ValueError for an empty group, too many, and the ids of special words.
    """
    for groups in mentions:
        if len(groups) > MOST_GROUPS:
            raise ValueError(f"{len(groups)} groups of words to mention in one image; at most {MOST_GROUPS}")
        if not all(groups) or min(min(group) for group in groups or [[len(SPECIALS)]]) < len(SPECIALS):
            raise ValueError(f"words to mention {groups}: every group needs ids, of words, not of <eos> etc.")
    for count in sorted({len(groups) for groups in mentions}):
        rows = [row for row, groups in enumerate(mentions) if len(groups) == count]
        yield rows, Mentions([mentions[row] for row in rows], device) if count else None


def word_groups(words: Sequence[str], vocabulary: Vocabulary) -> list[list[int]]:
    """Groups of ids: "dog", "cat/cats/kitten" -> [[7], [31, 40, 99]]. Raises UserError for what cannot be mentioned."""
    if len(words) > MOST_GROUPS:
        raise UserError(
            f"--mention: at most {MOST_GROUPS} words, found {len(words)}; join alternatives by /: dog/puppy"
        )
    groups = [word.lower().split("/") for word in words]
    for word in (word for group in groups for word in group):
        if word not in vocabulary or word in SPECIALS:
            near = ", ".join(get_close_matches(word, vocabulary.words[len(SPECIALS) :], 5, 0.5)) or "none"
            raise UserError(f"--mention {word!r}: not among the words that the model knows; nearest: {near}")
    return [vocabulary.encode(group) for group in groups]
