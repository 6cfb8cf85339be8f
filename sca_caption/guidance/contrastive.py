"""Contrastive image-word scores: a low-rank map fitted so that an image's captions match it better than other captions.

A regression of words on images fits mainly what most images have in common. InfoNCE (van den Oord et al. 2018, arXiv
1807.03748; in both directions as in Radford et al. 2021, arXiv 2103.00020) fits what tells images apart: among the
captions of a batch, one per image, the image's own caption shall score highest for it, and the image for the caption.

Shapes: N images, C features, W words, R rank, B images of a batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH_SIZE, EPOCHS = 256, 24
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 1e-3, 50, 0.05  # of AdamW; steps of warm-up, then half a cosine
DROPOUT = 0.6  # of features and of words
LABEL_SMOOTHING = 0.05
SHARPNESS = 3.0  # logits per unit of score (an inverse temperature)
INITIAL_SCALE = 16.0  # of the map that fitting starts from, its square root in each factor
SEED = 0


@torch.enable_grad()
def fit_infonce(
    features: Tensor, captions: Sequence[Sequence[Sequence[int]]], idf: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """Fit a map (C, W): features @ map @ a caption's unit tf-idf vector is how well the caption fits the image.

    features: (N, C), centred. captions: the word ids of each image's captions. idf: (W,). down (C, R), up (R, W): the
    factors of the map to start from. A softmax of scores over images is the probability that a caption belongs to each.
    The same arguments give the same map.
    """
    generator = torch.Generator().manual_seed(SEED)
    features, idf = features.float(), idf.float()
    factors = [(each * math.sqrt(INITIAL_SCALE)).float().requires_grad_() for each in (down, up)]
    optimizer = torch.optim.AdamW(factors, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    size = min(BATCH_SIZE, len(features))
    steps = EPOCHS * (len(features) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    target = torch.arange(size)
    for _ in range(EPOCHS):
        order = torch.randperm(len(features), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            words = sample_caption_vectors(rows, captions, idf, generator)  # (B, W)
            images = dropout(features[rows], generator) / (1 - DROPOUT)
            logits = SHARPNESS * (words @ factors[1].T) @ (images @ factors[0]).T  # captions x images
            both = (
                F.cross_entropy(each, target, label_smoothing=LABEL_SMOOTHING) for each in (logits, logits.T)
            )
            loss = torch.stack(list(both)).sum() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return SHARPNESS * (factors[0] @ factors[1]).detach()


def sample_caption_vectors(
    rows: Tensor, captions: Sequence[Sequence[Sequence[int]]], idf: Tensor, generator: torch.Generator
) -> Tensor:
    """One caption of each image, with word dropout, as a unit tf-idf vector: (B, W)."""
    vectors = torch.zeros(len(rows), len(idf))
    for vector, row in zip(vectors, rows.tolist(), strict=True):
        several = captions[row]
        words = torch.tensor(
            several[int(torch.randint(len(several), (), generator=generator))], dtype=torch.long
        )
        vector.index_add_(0, words, dropout(idf[words], generator))
    return F.normalize(vectors, dim=1)


def dropout(values: Tensor, generator: torch.Generator) -> Tensor:
    """Set a random share DROPOUT of the values to 0, without rescaling the others."""
    return values * (torch.rand(values.shape, generator=generator) >= DROPOUT)
