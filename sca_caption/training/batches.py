"""Training batches of captioned images, and the data loader that captioners and classifiers share."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from sca_caption.config import RunConfig, TrainConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.images import augment
from sca_caption.runtime.distributed import SINGLE_PROCESS, Processes
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import EOS

# Prefixes of words that mirroring the image would make false (left-hand, rightmost).
SIDES = ("left", "right")
MAX_WORDS = 40  # longer captions, of which data sets have a handful, are truncated in training
Images = Tensor | tuple[Tensor, ...]  # pixels uint8, or the CNN's features (see `SCACNN.encode`)


class CaptionedImages(Dataset):
    """Maps (epoch, image index) to an image and all of its captions.

    The augmentation is seeded from the key and the run's seed alone, so that a resumed run repeats it.
    """

    def __init__(self, data: CaptionDataset, config: TrainConfig, augment: bool):
        self.data, self.config, self.augment = data, config, augment
        self.side_ids = {
            i
            for i, word in enumerate(data.vocabulary.words)
            if any(part.startswith(SIDES) for part in word.split("-"))
        }

    def __getitem__(self, key: tuple[int, int]) -> tuple[Images, list[list[int]]]:
        epoch, index = key
        captions = [caption[:MAX_WORDS] for caption in self.data.captions(index)]
        if self.data.encoding == "features":
            return tuple(torch.from_numpy(x) for x in self.data.features(index)), captions
        pixels = self.data.image(index)  # (S, S, 3)
        if self.augment:
            names_side = any(not self.side_ids.isdisjoint(caption) for caption in captions)
            pixels = augment(
                pixels,
                self.data.transform,
                random.Random(f"{self.config.seed} {epoch} {index}"),
                flip=not names_side,
                crop_scale=self.config.crop_scale,
                color_jitter=self.config.color_jitter,
            )
        return torch.from_numpy(pixels).permute(2, 0, 1), captions


@dataclass
class Batch:
    """B images and all of their N captions, of at most T words."""

    images: Images  # uint8 (B, 3, S, S), or features, one row per image
    captions: Tensor  # (N, T) word ids, without BOS, with EOS, padded with PAD
    image_index: Tensor  # (N,) row of `images` that each caption describes

    def to(self, device: torch.device) -> "Batch":
        if isinstance(self.images, Tensor):
            images: Images = self.images.to(device)
        else:
            images = tuple(x.to(device) for x in self.images)
        return Batch(images, self.captions.to(device), self.image_index.to(device))


def collate(examples: list[tuple[Images, list[list[int]]]]) -> Batch:
    """Make a batch of [(image, captions without EOS), ...]; every caption gets its EOS here."""
    images = [image for image, _ in examples]
    if isinstance(images[0], Tensor):
        stacked: Images = torch.stack(cast(list[Tensor], images))
    else:
        stacked = tuple(torch.stack(x) for x in zip(*images, strict=True))
    captions = padded([[*words, EOS] for _, several in examples for words in several])
    index = torch.tensor([i for i, (_, several) in enumerate(examples) for _ in several])
    return Batch(stacked, captions, index)


def split_batches(items: list, size: int) -> list[list]:
    """Consecutive batches of `size` items; the last one may be smaller."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def loader(
    dataset: Dataset,
    keys: list,
    config: RunConfig,
    collate: Callable = default_collate,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[Any]:
    """Batches of the dataset's examples in the order of `keys`; of each batch, this process's share.

    Raises the UserError that the dataset raises in a worker process.
    """
    batches = DataLoader(
        ReturnErrors(dataset),
        batch_sampler=[processes.shard_batch(batch) for batch in split_batches(keys, config.batch_size)],
        num_workers=config.workers,
        collate_fn=partial(collate_or_error, collate),
    )
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class ReturnErrors(Dataset):
    """Returns a UserError of the dataset instead of raising it, because DataLoader changes exceptions of its workers."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def collate_or_error(collate: Callable, examples: list) -> Any:
    """The first UserError among the examples if there is one, else the collated batch."""
    return next((x for x in examples if isinstance(x, UserError)), None) or collate(examples)
