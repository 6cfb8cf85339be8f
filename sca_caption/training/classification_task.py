"""The task of training an image classifier."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sca_caption import images
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import ClassifierConfig, ClassifierTrainConfig
from sca_caption.datasets.classification import LabelledImages
from sca_caption.evaluation import classification_metrics
from sca_caption.images import Transform
from sca_caption.models.classifier import Classifier
from sca_caption.models.folded_norms import has_folded_norms, unfold_norms
from sca_caption.runtime.distributed import SINGLE_PROCESS, Processes
from sca_caption.runtime.errors import UserError
from sca_caption.training import batches

STATISTICS_IMAGES, STATISTICS_BATCH = 512, 32  # for folded batch norms
PAD = 4  # pixels that --views pad adds on each side before the random crop


class Views(Dataset):
    """Maps (epoch, image index) to an image uint8 (3, S, S) and its label.

    config: how training images are augmented, seeded from the key and the run's seed alone; None prepares images as in
    evaluation.
    """

    def __init__(
        self, data: LabelledImages, transform: Transform, config: ClassifierTrainConfig | None = None
    ):
        self.data, self.transform, self.config = data, transform, config

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        pixels = self.data.pixels(index)
        if self.config is not None:
            rng = random.Random(f"{self.config.seed} {epoch} {index}")
            pixels = view(pixels, self.transform, rng, self.config)
        elif pixels.shape[:2] != (self.transform.size, self.transform.size):
            pixels = images.fit(Image.fromarray(pixels), self.transform)
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), int(self.data.labels[index])


def view(
    pixels: np.ndarray, transform: Transform, rng: random.Random, config: ClassifierTrainConfig
) -> np.ndarray:
    """Augment pixels uint8 (H, W, 3) as `config.views` says: uint8 (S, S, 3)."""
    if config.views == "resized":
        smallest = config.crop_scale
        return images.augment(
            pixels, transform, rng, True, crop_scale=smallest, ratio=3 / 4, color_jitter=0.0
        )
    if pixels.shape[:2] != (transform.size, transform.size):
        pixels = images.fit(Image.fromarray(pixels), transform)
    if config.views == "pad":
        padded = np.pad(pixels, ((PAD, PAD), (PAD, PAD), (0, 0)))
        top, left = rng.randint(0, 2 * PAD), rng.randint(0, 2 * PAD)
        pixels = padded[top : top + transform.size, left : left + transform.size]
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
    return pixels


def trainable_weights(
    weights: dict[str, Tensor], config: ClassifierConfig, data: LabelledImages
) -> dict[str, Tensor]:
    """Pretrained weights of `config.backbone`. Folded batch norms get the statistics of training images."""
    if not has_folded_norms(weights):
        return weights
    plain = Classifier(replace(config, attention="", at=()), weights)
    views = Views(data, Transform(config.image_size, "crop"))
    rows = data.indices("train")
    rows = rows[:: math.ceil(len(rows) / STATISTICS_IMAGES)]
    parts = batches.split_batches(rows.tolist(), STATISTICS_BATCH)
    pixels = (torch.stack([views[0, row][0] for row in part]) for part in parts)
    unfold_norms(plain.network, map(plain.normalize, pixels))
    unfolded = plain.network.state_dict()
    return weights | {key: unfolded[key] for key in unfolded.keys() - set(plain.unloaded)}


class ClassificationTask:
    """Trains a classifier on labelled images and scores it by its accuracy on the split val.

    source: {"dataset", "root"} of `data`, which checkpoints store.
    """

    loss_name, score_name, validate_before_training = "loss", "top-1", False

    def __init__(
        self,
        model: Classifier,
        data: LabelledImages,
        config: ClassifierTrainConfig,
        source: dict,
        processes: Processes = SINGLE_PROCESS,
    ):
        self.model, self.data, self.config, self.source = (
            processes.sync_batch_norm(model),
            data,
            config,
            source,
        )
        self.processes = processes
        self.device = model.mean.device
        self.transform = Transform(model.config.image_size, "crop")
        self.rows = data.indices("train")
        if config.limit:
            self.rows = np.random.default_rng(config.seed).permutation(self.rows)[: config.limit]
        # An epoch leaves out its last, smaller batch: the statistics of a few images would be noise to batch norms.
        self.steps_per_epoch = len(self.rows) // config.batch_size
        self.images_per_epoch = self.steps_per_epoch * config.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"--batch-size {config.batch_size}: more than the {len(self.rows)} training images; give a smaller one"
            )
        self.views = Views(data, self.transform, config)

    def summary(self) -> str:
        name = " + ".join(filter(None, (self.model.config.backbone, self.model.config.attention)))
        return (
            f"{name} on {self.data.name}: {len(self.rows)} training and {len(self.data.indices('val'))} validation "
            f"images ({self.data.splits_note}), {len(self.data.classes)} classes"
        )

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.model.parameters()), "peak": self.config.lr}]

    def start_epoch(self, epoch: int) -> None:
        self.model.train()

    def batches(self, epoch: int) -> Iterator[list[Tensor]]:
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.rows)
        keys = [(epoch, int(i)) for i in order[: self.images_per_epoch]]
        return batches.loader(self.views, keys, self.config, processes=self.processes)

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float, int]:
        """See `Task.loss`. The value to report is the cross-entropy per image, in nats."""
        pixels, labels = (x.to(self.device) for x in batch)
        loss = self.model.loss(pixels, labels, self.config.label_smoothing, self.config.mixup)
        # All batches have batch_size images, so each process has about batch_size / world_size of them.
        weight = len(labels) * self.processes.world_size / self.config.batch_size
        return loss * weight, loss.item(), len(labels)

    def validate(self) -> tuple[dict[str, float], list[str]] | None:
        rows = self.data.indices("val")
        if not len(rows):
            return None
        views = Views(self.data, self.transform)
        mine = predict(self.model, views, self.processes.shard(rows.tolist()), self.config)
        logits = np.stack(self.processes.gather(mine))
        scores = classification_metrics.score(logits, self.data.labels[rows], self.data.classes)
        return {"top-1": scores.top1, "top-5": scores.top5}, []

    def images(self) -> dict[str, np.ndarray]:
        return {}

    def should_stop(self, history: list[dict]) -> str:
        return ""

    def checkpoint(self, metrics: dict) -> Checkpoint:
        return Checkpoint(self.model, None, self.transform, metrics | {"data": self.source})

    def provenance(self) -> dict:
        return {"data": self.source}


@torch.inference_mode()
def predict(
    model: Classifier, views: Views, rows: Sequence[int], config: ClassifierTrainConfig
) -> np.ndarray:
    """Logits float32 (N, K) of the N images in `rows`, for K classes."""
    model.eval()
    device, logits = model.mean.device, [torch.empty(0, len(model.config.classes))]
    for pixels, _ in batches.loader(views, [(0, i) for i in rows], config):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and device.type == "cuda"):
            logits.append(model(pixels.to(device)).float().cpu())
    return torch.cat(logits).numpy()
