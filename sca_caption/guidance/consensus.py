"""Consensus reranking: beam-search candidates are ranked by expected CIDEr as well as by probability.

Captions of similar photographs tell which words annotators would use (consensus of nearest neighbours: Devlin et al.
2015, arXiv 1505.04467). Here a linear map predicts them, so that the model stores no captions: from an image's features,
the mean of the tf-idf vectors of its references. The cosine of a caption's vector with the prediction is the CIDEr of
single words that the caption can expect (Vedantam et al. 2015, eq. 1, n = 1). A contrastive term is added (see
`contrastive`). A candidate's score becomes log p / length^a + rerank_weight * (consensus + contrast).

Shapes: B images, C features, W words, R rank of the linear map, N images to fit to.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.guidance.contrastive import fit_infonce
from sca_caption.guidance.guide import Guide, TrainedGuide
from sca_caption.models.sca_cnn import State
from sca_caption.vocab import Vocabulary

# Names of tensors in earlier checkpoints.
_RENAMED = {
    "centre": "center",
    "narrow.weight": "down.weight",
    "widen.weight": "up.weight",
    "widen.bias": "up.bias",
}


class ConsensusPredictor(TrainedGuide):
    """Predicts the mean tf-idf vector of an image's references, (B, W). Made by `fit_consensus`."""

    def __init__(self, channels: int, words: int, rank: int):
        super().__init__()
        self.center = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.down = nn.Linear(channels, rank, bias=False).requires_grad_(False)
        self.up = nn.Linear(rank, words).requires_grad_(False)
        self.idf = nn.Parameter(torch.zeros(words), requires_grad=False)

    @property
    def rank(self) -> int:
        return len(self.down.weight)

    def settings(self) -> dict[str, Any]:
        return {"rank": self.rank}

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], vocabulary_size: int
    ) -> Self:
        weights = {_RENAMED.get(name, name): value.float() for name, value in tensors.items()}
        channels = len(weights["center"])
        return super().restore(
            {"channels": channels, "words": vocabulary_size, "rank": settings["rank"]}, weights, 0
        )

    def forward(self, state: State) -> Tensor:
        assert state.features is not None  # only captions without an image have none
        return self.up(self.down(center_and_normalize(signed_sqrt(state.features), self.center)))


class ConsensusReranker(Guide):
    """Rates a caption by the cosine of its tf-idf vector with the predicted one, about 0 to 1.

    A repeated word counts once in the product but fully in the caption's norm, as in CIDEr-D, which clips counts. So to
    repeat a probable word lowers the rating. idf: of each of the captioner's words.
    """

    name = "consensus"
    prediction = "expected"
    trained_type = ConsensusPredictor
    rates = True

    def __init__(self, idf: Sequence[float]):
        self.idf = list(idf)

    @classmethod
    def from_trained(cls, trained: ConsensusPredictor, vocabulary: Vocabulary) -> Self:
        return cls(trained.idf.tolist())

    @classmethod
    def from_json(cls, description: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        return cls(description["idf"])

    def to_json(self) -> dict[str, Any]:
        return {"idf": self.idf}

    def rate(self, predicted: Tensor, image: int, tokens: Sequence[int]) -> float:
        counts = Counter(tokens)
        norm = math.sqrt(sum((count * self.idf[token]) ** 2 for token, count in counts.items()))
        if not norm:
            return 0.0
        expected = predicted[image, list(counts)].tolist()
        return sum(self.idf[token] * value for token, value in zip(counts, expected, strict=True)) / norm


def signed_sqrt(features: Tensor) -> Tensor:
    """sign(x) sqrt(|x|), so that a few strong channels do not outweigh the others."""
    return features.sign() * features.abs().sqrt()


def center_and_normalize(features: Tensor, center: Tensor) -> Tensor:
    """Subtract the center and scale to unit length, (B, C) -> (B, C)."""
    return F.normalize(features - center, dim=1)


def mean_tfidf(captions: Sequence[Sequence[int]], idf: Tensor) -> Tensor:
    """Mean of the unit tf-idf vectors of captions (word ids): (W,). A caption without informative words counts as 0."""
    total = torch.zeros_like(idf)
    for caption in captions:
        ids, counts = torch.tensor(caption, dtype=torch.long).unique(return_counts=True)
        total[ids] += F.normalize(counts * idf[ids], dim=0)
    return total / len(captions)


def fit_consensus(
    features: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    words: int,
    rank: int,
    ridge: float,
    contrast: float = 0.0,
) -> ConsensusPredictor:
    """Reduced-rank ridge regression of the references' mean tf-idf vectors on features, plus a contrastive term.

    Args:
        features: (N, C), `signed_sqrt` of `State.features`.
        captions: the references of each image, as word ids below `words`.
        rank: of the map; lowered to C, N or W if one of them is less.
        ridge: added to the squared singular values of the features, which have unit length after centring.
        contrast: weight of the logits of `contrastive.fit_infonce` beside the regression's 1.

    Document frequencies are those of the N images.
    """
    frequency = torch.zeros(words, dtype=torch.double)
    for references in captions:
        frequency[list(set().union(*references))] += 1
    idf = math.log(len(captions)) - frequency.clamp(min=1).log()
    center = features.double().mean(0)
    inputs = center_and_normalize(features.double(), center)
    mean = inputs.mean(0)
    inputs = inputs - mean
    product = torch.zeros(inputs.shape[1], words, dtype=torch.double)
    bias = torch.zeros(words, dtype=torch.double)
    for row, references in zip(inputs, captions, strict=True):
        target = mean_tfidf(references, idf)
        used = target.nonzero().squeeze(1)
        product[:, used] += torch.outer(row, target[used])
        bias += target / len(captions)
    eigenvalues, eigenvectors = torch.linalg.eigh(inputs.T @ inputs)
    eigenvalues = eigenvalues.clamp(min=0) + ridge
    weights = eigenvectors @ ((eigenvectors.T @ product) / eigenvalues[:, None])  # (C, W)
    rank = min(rank, *weights.shape, len(features))
    down, up = reduce_rank(weights, eigenvalues, eigenvectors, rank)
    if contrast:
        contrastive = fit_infonce(inputs, captions, idf, down, up)
        down, up = reduce_rank(weights + contrast * contrastive.double(), eigenvalues, eigenvectors, rank)
    fitted = ConsensusPredictor(features.shape[1], words, rank)
    fitted.center.copy_(center)
    fitted.down.weight.copy_(down.T)
    fitted.up.weight.copy_(up.T)
    fitted.up.bias.copy_(bias - mean @ down @ up)
    fitted.idf.copy_(idf)
    return fitted


def reduce_rank(
    weights: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """Factors (C, R), (R, W) of the best map of a lower rank, for inputs whose covariance has this eigendecomposition.

    With X = U S V', ridge regression predicts U S / (S^2 + r) U'Y. With r added to the eigenvalues, the best map of
    rank R keeps the first R singular vectors of that matrix (Mukherjee and Zhu 2011).
    """
    predictions = eigenvalues.sqrt()[:, None] * (eigenvectors.T @ weights)
    _, _, directions = torch.linalg.svd(predictions, full_matrices=False)
    directions = directions[:rank]
    return weights @ directions.T, directions
