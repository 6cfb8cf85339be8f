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
from sca_caption.datasets.mixture import Mixture
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.images import augment
from sca_caption.runtime.distributed import SINGLE_PROCESS, Processes
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.workers import end_with_parent
from sca_caption.vocab import EOS, SPECIALS

# Prefixes of words that mirroring the image would make false (left-hand, rightmost).
SIDES = ("left", "right")
MAX_WORDS = 40  # longer captions, of which data sets have a handful, are truncated in training
Images = Tensor | tuple[Tensor, ...]  # pixels uint8, or the CNN's features (see `SCACNN.encode`)


@dataclass
class Example:
    """An image with the captions of one step."""

    image: Images  # one image, without the dimension of the batch
    captions: list[list[int]]  # word ids, without BOS and EOS
    fractions: Tensor | None  # (W,) fraction of all captions of the image that contain each word
    style: int


class CaptionedImages(Dataset):
    """Maps (view, image index) to an image and its captions, or as many of them as `config` says, drawn at random.

    view: a number that differs whenever an image comes again, such as the epoch. Augmentation and draw are seeded from
    the key and the run's seed alone, so that a resumed run repeats them.
    fractions: whether to count the words of the captions, for a model that predicts them.
    """

    def __init__(self, data: Mixture, config: TrainConfig, augment: bool, fractions: bool = False):
        self.data, self.config, self.augment, self.fractions = data, config, augment, fractions
        self.side_ids = {
            i
            for i, word in enumerate(data.vocabulary.words)
            if any(part.startswith(SIDES) for part in word.split("-"))
        }

    def __getitem__(self, key: tuple[int, int]) -> Example:
        view, index = key
        captions = [caption[:MAX_WORDS] for caption in self.data.captions(index)]
        rng = random.Random(f"{self.config.seed} {view} {index}")
        image: Images
        if self.data.encoding == "features":
            image = tuple(torch.from_numpy(x) for x in self.data.features(index))
        else:
            pixels = self.data.image(index)  # (S, S, 3)
            if self.augment:
                names_side = any(not self.side_ids.isdisjoint(caption) for caption in captions)
                pixels = augment(
                    pixels,
                    self.data.transform,
                    rng,
                    flip=not names_side,
                    crop_scale=self.config.crop_scale,
                    color_jitter=self.config.color_jitter,
                )
            image = torch.from_numpy(pixels).permute(2, 0, 1)
        fractions = caption_fractions(captions, len(self.data.vocabulary)) if self.fractions else None
        if 0 < self.config.captions_per_image < len(captions):
            captions = rng.sample(captions, self.config.captions_per_image)
        return Example(image, captions, fractions, self.data.style(index))


def caption_fractions(captions: list[list[int]], words: int) -> Tensor:
    """The fraction of captions (word ids) that contain each word, (W,); 0 for the special words."""
    fractions = torch.zeros(words)
    for caption in captions:
        fractions[list(set(caption))] += 1 / len(captions)
    fractions[: len(SPECIALS)] = 0
    return fractions


@dataclass
class Batch:
    """B images with N captions of at most T words."""

    images: Images  # uint8 (B, 3, S, S), or features, one row per image
    captions: Tensor  # (N, T) word ids, without BOS, with EOS, padded with PAD
    image_index: Tensor  # (N,) row of `images` that each caption describes
    styles: Tensor | None = None  # (B,) number of each image's style; None for a model without styles
    fractions: Tensor | None = None  # (B, W), see `Example`

    def to(self, device: torch.device) -> "Batch":
        def moved(x: Any) -> Any:
            return tuple(map(moved, x)) if isinstance(x, tuple) else x if x is None else x.to(device)

        return Batch(*map(moved, vars(self).values()))


def collate(examples: list[Example]) -> Batch:
    """Make a batch of examples; every caption gets its EOS here."""
    images = [example.image for example in examples]
    if isinstance(images[0], Tensor):
        stacked: Images = torch.stack(cast(list[Tensor], images))
    else:
        stacked = tuple(torch.stack(x) for x in zip(*images, strict=True))
    captions = padded([[*words, EOS] for example in examples for words in example.captions])
    index = torch.tensor([i for i, example in enumerate(examples) for _ in example.captions])
    fractions = [example.fractions for example in examples if example.fractions is not None]
    styles = torch.tensor([example.style for example in examples])
    return Batch(stacked, captions, index, styles, torch.stack(fractions) if fractions else None)


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
        worker_init_fn=start_worker,
    )
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def start_worker(worker: int) -> None:
    end_with_parent()


class ReturnErrors(Dataset):
    """Returns a UserError of the dataset instead of raising it, because DataLoader changes exceptions of its workers."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def collate_or_error(collate: Callable, examples: list) -> Any:
    """The first UserError among the examples if there is one, else the collated batch."""
    return next((x for x in examples if isinstance(x, UserError)), None) or collate(examples)
