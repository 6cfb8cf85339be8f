"""Training a captioner: every image of an epoch is decoded and encoded once for all of its captions."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sca_caption.checkpoint import Checkpoint
from sca_caption.config import TrainConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.decoding import beam_search, teacher_forcing
from sca_caption.explain.tensorboard_strip import strip
from sca_caption.models.attention_trace import trace
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.distributed import ALONE, Processes
from sca_caption.runtime.errors import UserError
from sca_caption.training import batches
from sca_caption.training.batches import Batch, CaptionedImages, collate
from sca_caption.training.losses import caption_loss, load_teachers
from sca_caption.training.self_critical import Reward, RewardWorkers, SelfCritical
from sca_caption.training.validation import Validation
from sca_caption.vocab import PAD

# A self-critical run ends when its captions differ so much from those it started from:
WORSE = 3.0  # points more of captions that repeat themselves, or dangle
UNLIKE = 1.2  # times as long or as short
FALLEN = 3.0  # points of CIDEr below the best


class CaptionTask:
    """A captioner on its device, a data file, and how it is trained: by cross-entropy, or for CIDEr itself."""

    score = "CIDEr"

    def __init__(
        self, model: SCACNN, data: CaptionDataset, config: TrainConfig, processes: Processes = ALONE
    ):
        self.model, self.data, self.config, self.processes = model, data, config, processes
        self.device = model.mean.device
        self.rows = data.indices("train")
        if not len(self.rows):
            raise UserError(f"{data.path} has no training images; preprocess a data set that has some")
        # Now, so that a wrong name is said before any work.
        model.backbone.set_trainable(False, config.finetune_from)
        self.images, self.steps = len(self.rows), math.ceil(len(self.rows) / config.batch_size)
        self.dataset = CaptionedImages(data, config, config.augment)
        self.critic, self.measured = None, "loss"
        if config.objective == "cider":
            critics = RewardWorkers(Reward(data, self.rows.tolist(), config.bleu_weight), config.workers)
            self.critic = SelfCritical(
                critics, config.train_sample_n, config.cross_entropy_weight, config.sample_temperature
            )
            self.measured = "reward"
        self.teachers = (
            load_teachers(config.teacher, data.vocabulary, self.device) if config.teacher else None
        )
        self.decode_fn = teacher_forcing.run
        validated = data.indices("val")
        self.validation = Validation(data, validated, processes) if len(validated) else None

    def summary(self) -> str:
        validated = len(self.data.indices("val"))
        return f"{self.images} training and {validated} validation images, {len(self.data.vocabulary)} words"

    def parameter_groups(self) -> list[dict]:
        """Two groups, the CNN at its own rate, but for attention blocks in it, which are as new as the rest."""
        new = {id(p) for block in self.model.backbone.blocks().values() for p in block.parameters()}
        backbone = [p for p in self.model.backbone.parameters() if id(p) not in new]
        inside = {id(p) for p in backbone}
        return [
            {"params": [p for p in self.model.parameters() if id(p) not in inside], "peak": self.config.lr},
            {"params": backbone, "peak": self.config.backbone_lr},
        ]

    def start_epoch(self, epoch: int) -> None:
        self.model.train()
        own = self.config.scheduled_sampling * epoch / max(1, self.config.epochs - 1)
        self.decode_fn = partial(
            teacher_forcing.run, word_dropout_p=self.config.word_dropout, scheduled_sampling_p=own
        )
        finetune = 0 <= self.config.finetune_backbone_at <= epoch
        self.model.backbone.set_trainable(finetune, self.config.finetune_from)

    def batches(self, epoch: int) -> Iterator[tuple[list[int], bool, Batch]]:
        """Rows of the data file, whether they count (see `Processes.part`), and the batch of them."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.rows).tolist()
        whole = batches.batched(order, self.config.batch_size)
        keys = [(epoch, i) for i in order]
        return zip(
            [self.processes.part(rows) for rows in whole],
            [self.processes.rank < len(rows) for rows in whole],
            batches.loader(self.dataset, keys, self.config, collate, self.processes),
            strict=True,
        )

    def loss(self, batch: tuple[list[int], bool, Batch]) -> tuple[Tensor, float, int]:
        rows, counts, batch = batch[0], batch[1], batch[2].to(self.device)
        mean = self.processes.mean
        words, captions = int((batch.captions != PAD).sum()), len(batch.captions)
        if self.critic is not None:
            loss, reward = self.critic.loss(self.model, batch, rows, lambda drawn: mean(counts * drawn)[0])
            return counts * loss, reward, counts * words
        mean_words, mean_captions = mean(counts * words, counts * captions)
        # The cross-entropy is a mean over words, the penalty one over captions.
        penalty = self.config.attention_penalty * (captions * mean_words) / (words * mean_captions)
        extra_loss = None if self.teachers is None else partial(self.taught, batch)
        loss = caption_loss(
            self.model, batch, self.config.label_smoothing, penalty, self.decode_fn, extra_loss
        )
        return loss * (counts * words / mean_words), loss.item(), counts * words

    def taught(self, batch: Batch, logits: Tensor) -> Tensor:
        return self.config.teacher_weight * self.teachers.divergence(batch, logits)

    def validate(self) -> tuple[dict[str, float], list[str]] | None:
        if self.validation is None:
            return None
        cider, found, samples = self.validation(self.model, self.config, self.device)
        lines = [f"{found} (people: {self.validation.people.length:.1f})"]
        return {self.score: cider} | dataclasses.asdict(found), lines + [
            f"{name}: {text}" for name, text in samples
        ]

    @property
    def improves(self) -> bool:
        return self.critic is not None

    @torch.inference_mode()
    def pictures(self) -> dict[str, np.ndarray]:
        """What the model attends in the images whose captions `validate` shows, as it captions them greedily."""
        if self.validation is None or self.data.encoding == "features":
            return {}
        self.model.eval()
        pixels = np.stack([self.data.image(row) for row in self.validation.shown])  # (B, S, S, 3)
        state = self.model.start(
            self.model.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))
        )
        captions = [hypothesis.tokens for hypothesis in beam_search.greedy(self.model, state)]
        found = {}
        for row, image, caption, attended in zip(
            self.validation.shown, pixels, captions, trace(self.model, state, captions), strict=True
        ):
            words = self.data.vocabulary.spelled(caption)
            if words:
                name = self.data.file_name(row)
                found[f"attention/{name}"] = strip(image, words, attended, f"{name}: {' '.join(words)}")
        return found

    def degraded(self, history: list[dict]) -> str:
        """Why a self-critical run should end: its captions are worse than those it started from."""
        if self.critic is None or not history or self.score not in history[0]:
            return ""
        first, last = history[0], history[-1]
        for name, what in (("repeats", "repeat a phrase"), ("dangling", "end in a dangling word")):
            if last[name] > first[name] + WORSE:
                return f"{last[name]:.1f}% of the captions {what}, {first[name]:.1f}% at the start"
        if not first["length"] / UNLIKE <= last["length"] <= first["length"] * UNLIKE:
            return f"captions have {last['length']:.1f} words, {first['length']:.1f} at the start"
        best = max(record[self.score] for record in history)
        if last[self.score] < best - FALLEN:
            return f"{self.score} fell to {last[self.score]:.1f} from {best:.1f}"
        return ""

    def checkpoint(self, metrics: dict) -> Checkpoint:
        return Checkpoint(self.model, self.data.vocabulary, self.data.transform, metrics)

    def provenance(self) -> dict:
        return {"data": str(self.data.path)}


def initialise_from(model: SCACNN, other: Checkpoint, words: tuple[str, ...]) -> list[str]:
    """Copy every tensor of `other` whose name and shape fit; of the words, the vectors of those that both know.

    Returns the names that were left as they are.
    """
    own, copied = model.state_dict(), {}
    theirs = {word: i for i, word in enumerate(other.vocabulary.words)}
    pairs = [(i, theirs[word]) for i, word in enumerate(words) if word in theirs]
    rows, sources = torch.tensor(pairs).T
    for name, value in other.model.state_dict().items():
        if name not in own:
            continue
        if name.startswith(("word.", "embedding.")) and own[name].shape[1:] == value.shape[1:]:
            copied[name] = own[name].index_copy(0, rows, value[sources])
        elif own[name].shape == value.shape:
            copied[name] = value
    model.load_state_dict(copied, strict=False)
    return sorted(set(own) - set(copied))
