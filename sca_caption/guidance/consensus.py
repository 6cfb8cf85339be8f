"""Ranking by expected consensus: of the captions that a search found, the one that people would agree on.

A search ranks by likelihood, which knows nothing of how much of a caption others would say too. That can be learnt of
people's captions of similar photographs (consensus of nearest neighbours: Devlin et al. 2015, arXiv 1505.04467). Here a
linear map foretells it, so that the model holds no captions: from an image's map, the mean of the tf-idf vectors of its
references. The cosine of a caption's vector with it is the CIDEr of single words that the caption can expect (Vedantam
et al. 2015, eq. 1, n = 1). To it comes what tells the image's captions from those of others (see `contrast`), and a share
of both is added to the score.

Shapes: B images, C channels, W words, R rank of the linear map.
"""

import math
import operator
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.decoding.stepper import Hypothesis
from sca_caption.guidance.contrastive import told_apart


class Consensus(nn.Module):
    """What words, by their tf-idf, the references of an image can be expected to have. `fitted` makes it."""

    def __init__(self, channels: Sequence[int], words: int, rank: int):
        """channels: of the captioner's map, and, where it reads that too, of what ImageNet's network saw."""
        super().__init__()
        self.channels = tuple(channels)
        self.centre = nn.Parameter(torch.zeros(sum(channels)), requires_grad=False)
        self.narrow = nn.Linear(sum(channels), rank, bias=False).requires_grad_(False)
        self.widen = nn.Linear(rank, words).requires_grad_(False)
        self.idf = nn.Parameter(torch.zeros(words), requires_grad=False)

    @property
    def rank(self) -> int:
        return len(self.narrow.weight)

    @property
    def reads_objects(self) -> bool:
        return len(self.channels) > 1

    def forward(self, maps: Tensor, seen: Tensor | None = None) -> Tensor:
        """The map that the captioner attends first (B, C, H, W), and what `objects.Objects` saw (B, C'), which is read
        where the consensus was fitted with it -> the expected vector (B, W)."""
        features = powers(maps, seen if self.reads_objects else None)
        return self.widen(self.narrow(centred(features, self.centre, self.channels)))


def powers(maps: Tensor, seen: Tensor | None = None) -> Tensor:
    """(B, C, H, W), and means (B, C') of other maps -> (B, C + C'): signed roots of the means, so that no few channels
    outweigh the others."""
    means = maps.mean((2, 3))
    means = means if seen is None else torch.cat((means, seen), 1)
    return means.sign() * means.abs().sqrt()


def centred(features: Tensor, centre: Tensor, channels: Sequence[int]) -> Tensor:
    """Features (B, C) less their centre, in vectors of length 1; two networks have equal shares in it."""
    parts = [F.normalize(part, dim=1) for part in (features - centre).split(tuple(channels), 1)]
    return torch.cat(parts, 1) / math.sqrt(len(parts))


@dataclass(frozen=True)
class Ranking:
    """Ranks the captions of some images by score + weight * consensus.

    A caption's consensus is the product of its tf-idf vector, of length 1, with the expected one, about 0 to 1.
    """

    expected: Tensor  # (B, W)
    idf: Sequence[
        float
    ]  # of each of the W words; those after them are new ones of `naming`, and count for nothing
    weight: float  # nats; 0: captions are rated, and stay in their order

    def __call__(
        self, image: int, found: list[Hypothesis], mentions: Sequence[Collection[int]] = ()
    ) -> list[Hypothesis]:
        """The captions of an image, best first; finished ones and those with most of the `mentions` stay ahead."""
        rated = []
        for hypothesis in found:
            consensus = self._cosine(image, hypothesis.tokens)
            score = hypothesis.score + self.weight * consensus
            rated.append(replace(hypothesis, score=score, consensus=consensus))

        def place(hypothesis: Hypothesis) -> tuple[int, bool, float]:
            missing = sum(set(group).isdisjoint(hypothesis.tokens) for group in mentions)
            return missing, not hypothesis.finished, -hypothesis.score

        return sorted(rated, key=place) if self.weight else rated

    def of_all(
        self, found: list[list[Hypothesis]], mentions: Sequence[Sequence[Collection[int]]]
    ) -> list[list[Hypothesis]]:
        """The captions of every image; mentions: what those of each were to have."""
        return [self(image, *each) for image, each in enumerate(zip(found, mentions, strict=True))]

    def likelihood(self, ranked: Hypothesis) -> float:
        """The score that a caption had before."""
        return ranked.score - self.weight * ranked.consensus

    def _cosine(self, image: int, tokens: Sequence[int]) -> float:
        counts = Counter(token for token in tokens if token < len(self.idf))
        vector = {token: count * self.idf[token] for token, count in counts.items()}
        norm = math.sqrt(sum(value * value for value in vector.values()))
        if not norm:
            return 0.0
        expected = self.expected[image, list(vector)].tolist()
        return sum(map(operator.mul, vector.values(), expected)) / norm


def tfidf(captions: Sequence[Sequence[int]], idf: Tensor) -> Tensor:
    """The mean of the tf-idf vectors, of length 1, of captions in ids: (W,). One without rare words counts as 0."""
    total = torch.zeros_like(idf)
    for caption in captions:
        ids, counts = torch.tensor(caption, dtype=torch.long).unique(return_counts=True)
        total[ids] += F.normalize(counts * idf[ids], dim=0)
    return total / len(captions)


def fitted(
    features: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    words: int,
    rank: int,
    ridge: float,
    contrast: float = 0.0,
    channels: Sequence[int] = (),
) -> Consensus:
    """Reduced-rank ridge regression of the references' mean vectors on features, and what tells them from others'.

    features: (N, C), `powers` of the images; captions: the references of each as ids below `words`; ridge: what is added
    to the squared singular values of the features, which have length 1 after centring. contrast: what the logits of
    `contrast.told_apart` count beside the regression's 1. channels: how many features are of which network (default: all
    of one). Document frequencies are those of the N images. The rank falls to C, N or the number of words where that is
    less.
    """
    frequency = torch.zeros(words, dtype=torch.double)
    for references in captions:
        frequency[list(set().union(*references))] += 1
    idf = math.log(len(captions)) - frequency.clamp(min=1).log()
    channels = channels or (features.shape[1],)
    centre = features.double().mean(0)
    inputs = centred(features.double(), centre, channels)
    mean = inputs.mean(0)
    inputs = inputs - mean
    product = torch.zeros(inputs.shape[1], words, dtype=torch.double)
    bias = torch.zeros(words, dtype=torch.double)
    for row, references in zip(inputs, captions, strict=True):
        target = tfidf(references, idf)
        said = target.nonzero().squeeze(1)
        product[:, said] += torch.outer(row, target[said])
        bias += target / len(captions)
    values, vectors = torch.linalg.eigh(inputs.T @ inputs)
    values = values.clamp(min=0) + ridge
    weights = vectors @ ((vectors.T @ product) / values[:, None])  # (C, W)
    rank = min(rank, *weights.shape, len(features))
    narrow, directions = reduced(weights, values, vectors, rank)
    if contrast:
        apart = told_apart(inputs, captions, idf, narrow, directions)
        narrow, directions = reduced(weights + contrast * apart.double(), values, vectors, rank)
    found = Consensus(channels, words, rank)
    found.centre.copy_(centre)
    found.narrow.weight.copy_(narrow.T)
    found.widen.weight.copy_(directions.T)
    found.widen.bias.copy_(bias - mean @ narrow @ directions)
    found.idf.copy_(idf)
    return found


def reduced(weights: Tensor, values: Tensor, vectors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors (C, R), (R, W) of the nearest map of a lower rank, on inputs whose covariance has these eigenvalues and
    eigenvectors.

    With X = U S V', ridge regression fits U S / (S^2 + r) U'Y; where r is added to the eigenvalues, this is the best of
    its rank, which keeps that matrix's first singular vectors (Mukherjee and Zhu 2011, for reduced rank with a ridge).
    """
    fits = values.sqrt()[:, None] * (vectors.T @ weights)
    _, _, directions = torch.linalg.svd(fits, full_matrices=False)
    directions = directions[:rank]
    return weights @ directions.T, directions
