"""The captions of a beam search, in tensors while they grow and as lists at the end.

Shapes: n images, S sets of beams an image, B slots for live beams an image in all of them, F ended captions that are
kept, t words so far, T = max_length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sca_caption.vocab import PAD


@dataclass(frozen=True)
class Hypothesis:
    """A caption as ids, without <bos> and <eos>.

    `finished` is False where the search stopped (at max_length) before the model ended the caption; its
    log_prob then has no end word in it, and its length none either. consensus: see `consensus.Ranking`.
    """

    tokens: list[int]
    log_prob: float
    score: float
    finished: bool
    consensus: float | None = None


@dataclass
class Beams:
    """Captions in the making, (n, B) of them; log_prob is -inf in the slots that hold none."""

    tokens: Tensor  # (n, B, t)
    log_prob: Tensor  # (n, B)

    def of(self, images: Tensor) -> "Beams":
        return Beams(self.tokens[images], self.log_prob[images])


@dataclass
class Finished:
    """The F best ended captions of each of S sets of each image, best first; their tokens are padded to T."""

    tokens: Tensor  # (n, S, F, T)
    log_prob: Tensor  # (n, S, F)
    length: Tensor  # (n, S, F) with the end word
    score: Tensor  # (n, S, F); -inf in the slots that hold none

    @classmethod
    def none(cls, images: int, sets: int, size: int, max_length: int, device: torch.device) -> "Finished":
        nothing = torch.full((images, sets, size), -torch.inf, device=device)
        tokens = torch.full((images, sets, size, max_length), PAD, device=device)
        return cls(tokens, nothing, torch.zeros_like(nothing, dtype=torch.long), nothing.clone())

    def of(self, images: Tensor) -> "Finished":
        return Finished(self.tokens[images], self.log_prob[images], self.length[images], self.score[images])

    def put(self, images: Tensor, other: "Finished") -> None:
        """Store the rows of `other` as those of `images`."""
        for name in ("tokens", "log_prob", "length", "score"):
            getattr(self, name)[images] = getattr(other, name)

    def merge(self, tokens: Tensor, log_prob: Tensor, length_penalty: float) -> "Finished":
        """The F best of these and of tokens (n, S, F', t), log_prob (n, S, F'); at equal scores the older."""
        size, max_length = self.tokens.shape[2:]
        words = tokens.shape[3]
        length = torch.full_like(log_prob, words + 1, dtype=torch.long)
        padded = torch.nn.functional.pad(tokens, (0, max_length - words), value=PAD)
        score = torch.cat([self.score, log_prob / (words + 1) ** length_penalty], 2)
        score, best = score.sort(dim=2, descending=True, stable=True)
        score, best = score[:, :, :size], best[:, :, :size]
        return Finished(
            torch.cat([self.tokens, padded], 2).gather(2, best[..., None].expand(-1, -1, -1, max_length)),
            torch.cat([self.log_prob, log_prob], 2).gather(2, best),
            torch.cat([self.length, length], 2).gather(2, best),
            score,
        )


def rows_of(tokens: Tensor, beams: Tensor) -> Tensor:
    """tokens (n, B, t), beams (n, ...) -> (n, ..., t): each image's beams reordered."""
    return tokens[torch.arange(len(tokens), device=tokens.device).view(-1, *[1] * (beams.dim() - 1)), beams]


def store(
    results: Finished, unfinished: list[Beams | None], images: Tensor, finished: Finished, live: Beams
) -> None:
    """File what the search ends with for `images`; `live` stands in where too few captions have finished."""
    results.put(images, finished)
    for row, image in enumerate(images.tolist()):
        unfinished[image] = Beams(live.tokens[row], live.log_prob[row])


def hypotheses_of(
    results: Finished,
    unfinished: list[Beams],
    num_captions: int,
    length_penalty: float,
    diverse: bool = False,
) -> list[list[Hypothesis]]:
    """Those that mention more groups first, of these the finished ones, best score first.

    diverse: the sets are groups; of the finished ones the best of each group come first, and no caption twice.
    """
    captions = []
    columns = (results.tokens, results.log_prob, results.length, results.score)
    for image, sets in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        found = [
            (
                place if diverse else -group.bit_count(),
                Hypothesis(tokens[: length - 1], log_prob, score, True),
            )
            for group, rows in enumerate(zip(*sets, strict=True))
            for place, (tokens, log_prob, length, score) in enumerate(zip(*rows, strict=True))
            if score > -torch.inf
        ]
        live = unfinished[image]
        beams, words = live.tokens.shape
        for slot, (tokens, log_prob) in enumerate(
            zip(live.tokens.tolist(), live.log_prob.tolist(), strict=True)
        ):
            if log_prob > -torch.inf:
                group = slot * results.score.shape[1] // beams
                unended = Hypothesis(tokens, log_prob, log_prob / words**length_penalty, False)
                found.append((beams if diverse else -group.bit_count(), unended))
        found.sort(key=lambda item: (item[0], not item[1].finished, -item[1].score))
        distinct: dict[tuple[int, ...], Hypothesis] = {}
        for _, hypothesis in found:
            distinct.setdefault(tuple(hypothesis.tokens), hypothesis)
        captions.append([*distinct.values()][:num_captions])
    return captions
