"""Training batches: datasets, collation and data loaders."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from sca_caption.config import RunConfig, TrainConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.images import augment
from sca_caption.runtime.distributed import ALONE, Processes
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import EOS

SIDES = ("left", "right")  # a mirrored image would make words false that begin so, as left-hand and rightmost
LONGEST = 40  # words of a caption that are trained on; a handful of captions are longer


class CaptionedImages(Dataset):
    """(image, all of its captions) by (epoch, image index), so that augmentation depends on nothing else."""

    def __init__(self, data: CaptionDataset, config: TrainConfig, augment: bool):
        self.data, self.config, self.augment = data, config, augment
        words = data.vocabulary.words
        self.side_ids = {
            i for i, word in enumerate(words) if any(part.startswith(SIDES) for part in word.split("-"))
        }

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | tuple[Tensor, ...], list[list[int]]]:
        epoch, index = key
        captions = [caption[:LONGEST] for caption in self.data.captions(index)]
        if self.data.encoding == "features":
            return tuple(torch.from_numpy(x) for x in self.data.features(index)), captions
        pixels = self.data.image(index)
        if self.augment:
            sided = any(not self.side_ids.isdisjoint(caption) for caption in captions)
            rng = random.Random(f"{self.config.seed} {epoch} {index}")
            pixels = augment(
                pixels,
                self.data.transform,
                rng,
                flip=not sided,
                smallest=self.config.crop_scale,
                lighting=self.config.color_jitter,
            )
        return torch.from_numpy(pixels).permute(2, 0, 1), captions


@dataclass
class Batch:
    """Images and all of their captions. `images` is (B, 3, S, S) uint8, or the trunk's features as a tuple."""

    images: Tensor | tuple[Tensor, ...]
    captions: Tensor  # (N, T) word ids, without BOS, with EOS, padded with PAD
    image_index: Tensor  # (N,) which image a caption describes

    def to(self, device: torch.device) -> "Batch":
        images = (
            self.images.to(device)
            if isinstance(self.images, Tensor)
            else tuple(x.to(device) for x in self.images)
        )
        return Batch(images, self.captions.to(device), self.image_index.to(device))


def collate(examples: list[tuple[Tensor | tuple[Tensor, ...], list[list[int]]]]) -> Batch:
    """[(image, captions without EOS), ...] -> Batch; every caption gets its EOS here."""
    images = [image for image, _ in examples]
    stacked = (
        torch.stack(images)
        if isinstance(images[0], Tensor)
        else tuple(torch.stack(x) for x in zip(*images, strict=True))
    )
    captions = padded([[*words, EOS] for _, several in examples for words in several])
    index = torch.tensor([i for i, (_, several) in enumerate(examples) for _ in several])
    return Batch(stacked, captions, index)


class Reported(Dataset):
    """A dataset that returns a UserError instead of raising it: an exception would not survive the way from a worker."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def batched(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def loader(
    dataset: Dataset,
    keys: list,
    config: RunConfig,
    collate: Callable = default_collate,
    processes: Processes = ALONE,
) -> Iterator[Any]:
    """Batches of the dataset's examples in the order of `keys`, and of each this process's part.

    Raises what UserError the dataset raised.
    """
    batches = DataLoader(
        Reported(dataset),
        batch_sampler=[processes.part(batch) for batch in batched(keys, config.batch_size)],
        num_workers=config.workers,
        collate_fn=partial(collate_or_error, collate),
    )
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def collate_or_error(collate: Callable, examples: list) -> Any:
    return next((x for x in examples if isinstance(x, UserError)), None) or collate(examples)
