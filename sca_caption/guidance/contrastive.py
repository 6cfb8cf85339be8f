"""Whose caption is this? Low-rank maps from images to words that tell an image's captions from those of others.

A regression of captions' words on images spends itself on what most images share. This training (InfoNCE, van den Oord
et al. 2018, arXiv 1807.03748, in both directions as in Radford et al. 2021, arXiv 2103.00020) asks for what sets an image
apart: among the captions of a batch, one of each image, its own shall fit it best, and it the caption.

Shapes: N images, C features, W words, R rank, B images of a batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH_SIZE, EPOCHS = 256, 24
LEARNING_RATE, WARMUP, DECAY = 1e-3, 50, 0.05  # AdamW's; steps of warm-up, then half a cosine
DROPPED = 0.6  # share of the features, and of the words, that a step does not see
SMOOTHING = 0.05  # of the labels
SHARPNESS = 3.0  # logits per unit of fit
START = 16.0  # by which the given map is multiplied, half of it in each factor
SEED = 0


@torch.enable_grad()
def told_apart(
    features: Tensor, captions: Sequence[Sequence[Sequence[int]]], idf: Tensor, narrow: Tensor, widen: Tensor
) -> Tensor:
    """A map (C, W) such that features @ map, times a caption's tf-idf vector of length 1, is how well it fits.

    features: (N, C), centred; captions: those of each image as word ids; idf: (W,); narrow (C, R), widen (R, W): the
    factors of the map to start from. A softmax of fits over images says which one a caption is of. The same arguments
    give the same map.
    """
    generator = torch.Generator().manual_seed(SEED)
    features, idf = features.float(), idf.float()
    factors = [(each * math.sqrt(START)).float().requires_grad_() for each in (narrow, widen)]
    optimizer = torch.optim.AdamW(factors, LEARNING_RATE, weight_decay=DECAY)
    size = min(BATCH_SIZE, len(features))
    steps = EPOCHS * (len(features) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    own = torch.arange(size)
    for _ in range(EPOCHS):
        order = torch.randperm(len(features), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            said = drawn(rows, captions, idf, generator)  # (B, W)
            seen = dropped(features[rows], generator) / (1 - DROPPED)
            logits = SHARPNESS * (said @ factors[1].T) @ (seen @ factors[0]).T  # captions, images
            loss = (
                sum(F.cross_entropy(each, own, label_smoothing=SMOOTHING) for each in (logits, logits.T)) / 2
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return SHARPNESS * (factors[0] @ factors[1]).detach()


def drawn(
    rows: Tensor, captions: Sequence[Sequence[Sequence[int]]], idf: Tensor, generator: torch.Generator
) -> Tensor:
    """One caption of each image, some of its words left out, as a tf-idf vector of length 1: (B, W)."""
    vectors = torch.zeros(len(rows), len(idf))
    for vector, row in zip(vectors, rows.tolist(), strict=True):
        several = captions[row]
        words = torch.tensor(several[torch.randint(len(several), (), generator=generator)], dtype=torch.long)
        vector.index_add_(0, words, dropped(idf[words], generator))
    return F.normalize(vectors, dim=1)


def dropped(values: Tensor, generator: torch.Generator) -> Tensor:
    """Zeros in the place of some of the values."""
    return values * (torch.rand(values.shape, generator=generator) >= DROPPED)
