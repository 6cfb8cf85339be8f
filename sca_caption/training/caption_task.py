"""The task of training a captioner, by cross-entropy or self-critically. Each image brings all of its captions."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sca_caption.checkpoint import Checkpoint
from sca_caption.config import TrainConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.decoding import beam_search, teacher_forcing
from sca_caption.evaluation.caption_quality import Quality
from sca_caption.explain.tensorboard_strip import strip
from sca_caption.models.attention_trace import trace
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.distributed import SINGLE_PROCESS, Processes
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import program_name
from sca_caption.training import batches
from sca_caption.training.batches import Batch, CaptionedImages, caption_fractions, collate
from sca_caption.training.feature_cache import FeatureCache
from sca_caption.training.losses import caption_loss, load_teachers
from sca_caption.training.self_critical import Reward, RewardWorkers, SelfCritical
from sca_caption.training.text_only import TextBatch, draw_texts, text_loss
from sca_caption.training.validation import Validation
from sca_caption.vocab import PAD

# A self-critical run stops when its captions differ by more than this from those of the initial model.
MAX_FLAWS_ADDED = 3.0  # percentage points of captions that repeat a phrase, or end badly
MAX_LENGTH_RATIO = 1.2  # of the mean lengths, either way
MAX_SCORE_LOST = 3.0  # points of CIDEr below the best epoch
MAX_TEXTS = 20_000  # photographs without pixels whose captions count for document frequencies


class CaptionTask:
    """Trains a captioner on a data file, with the objective that `config` names.

    score_name: "CIDEr", or "word probability" where CIDEr cannot vary, as with a single validation image.
    """

    def __init__(
        self,
        model: SCACNN,
        data: CaptionDataset | Mixture,
        config: TrainConfig,
        processes: Processes = SINGLE_PROCESS,
        quiet: bool = False,
    ):
        data = data if isinstance(data, Mixture) else Mixture([data])
        self.model, self.data, self.config, self.processes = model, data, config, processes
        self.device = model.mean.device
        # here, to report a wrong name before any work
        model.backbone.set_trainable(False, config.finetune_from)
        self.rows = self._train_rows()
        self.repeats = max(Counter(self.rows).values())  # of an image in an epoch, at most
        val_rows = [list_of(data.indices("val"), part) for part in data.parts]
        if config.cache_features and data.encoding != "features":
            known = sorted(set(self.rows)) + [row for rows in val_rows for row in rows]
            data = cast(Mixture, FeatureCache(data, model, known, quiet))
        self.images_per_epoch = len(self.rows)
        self.steps_per_epoch = math.ceil(len(self.rows) / config.batch_size)
        self.dataset = CaptionedImages(
            data, config, config.augment, fractions=model.word_predictor is not None
        )
        self.self_critical, self.loss_name = None, "loss"
        if config.objective == "cider":
            reward = Reward(data, sorted(set(self.rows)), config.bleu_weight)
            self.self_critical = SelfCritical(
                RewardWorkers(reward, config.workers),
                config.train_sample_n,
                config.cross_entropy_weight,
                config.sample_temperature,
            )
            self.loss_name = "reward"
        self.teachers = (
            load_teachers(config.teacher, data.vocabulary, self.device) if config.teacher else None
        )
        if config.texts_per_step and not (data.text_groups and model.word_predictor is not None):
            missing = (
                f"the data has none ({program_name('preprocess.py')} --texts)"
                if not data.text_groups
                else "add --word-rank"
            )
            raise UserError(
                f"--texts-per-step {config.texts_per_step} needs texts and --word-rank: {missing}"
            )
        if model.word_predictor is not None and not model.word_predictor.idf.any():
            model.word_predictor.set_idf(*document_frequency(data, sorted(set(self.rows))))
        self.decode_fn = teacher_forcing.run
        self.score_name, self.note = "CIDEr", ""
        self.validations = [Validation(data, np.array(rows), processes) for rows in val_rows if rows]
        if self.validations and not any(validation.cider.can_vary for validation in self.validations):
            self._validate_without_cider(data)

    def _validate_without_cider(self, data: Mixture) -> None:
        """Choose another score, because the CIDEr of every caption of the validation images is 0."""
        if self.self_critical is None:
            self.score_name = "word probability"
            instead = "the probability of the words of their captions"
        else:  # which lowers the probability of people's words
            rows = [list_of(np.array(sorted(set(self.rows))), part) for part in data.parts]
            self.validations = [Validation(data, np.array(each), self.processes) for each in rows if each]
            instead = "the CIDEr of training images"
        self.note = f" (CIDEr is always 0 on these validation images, so {instead} chooses best.pt)"

    def _train_rows(self) -> list[int]:
        """The rows of an epoch: of each data file equally many, those of smaller files several times."""
        all_rows = self.data.indices("train")
        if self.config.objective == "cider":  # with one reference, a caption's CIDEr depends on luck
            all_rows = np.array([row for row in all_rows if len(self.data.captions(row)) > 1], np.int64)
        if not len(all_rows):
            raise UserError(f"{self.data.path} has no training images; preprocess a data set that has some")
        parts = [rows for part in self.data.parts if (rows := list_of(all_rows, part))]
        largest = max(map(len, parts))
        return [rows[i % len(rows)] for rows in parts for i in range(largest)]

    def summary(self) -> str:
        validation_images = len(self.data.indices("val"))
        texts = f", captions of {self.data.text_groups} others" if self.config.texts_per_step else ""
        return (
            f"{len(set(self.rows))} training and {validation_images} validation images{texts}, "
            f"{len(self.data.vocabulary)} words{self.note}"
        )

    def parameter_groups(self) -> list[dict]:
        """The CNN learns at its own rate. Attention blocks inside it are new, so they learn at the rate of the rest."""
        blocks = {id(p) for block in self.model.backbone.blocks().values() for p in block.parameters()}
        backbone = [p for p in self.model.backbone.parameters() if id(p) not in blocks]
        in_backbone = {id(p) for p in backbone}
        rest = [p for p in self.model.parameters() if id(p) not in in_backbone]
        return [
            {"params": rest, "peak": self.config.lr},
            {"params": backbone, "peak": self.config.backbone_lr},
        ]

    def start_epoch(self, epoch: int) -> None:
        self.model.train()
        # Rises linearly from 0 in the first epoch to `scheduled_sampling` in the last.
        sampling_p = self.config.scheduled_sampling * epoch / max(1, self.config.epochs - 1)
        self.decode_fn = partial(
            teacher_forcing.run, word_dropout_p=self.config.word_dropout, scheduled_sampling_p=sampling_p
        )
        finetune = 0 <= self.config.finetune_backbone_at <= epoch
        self.model.backbone.set_trainable(finetune, self.config.finetune_from)
        if self.model.word_predictor is not None and self.model.null_image is not None:
            # DistributedDataParallel would wait for the gradients of parameters that no loss reaches.
            supervised = self.self_critical is None
            self.model.word_predictor.requires_grad_(supervised and self.config.word_loss_weight > 0)
            self.model.null_image.requires_grad_(supervised and self.config.texts_per_step > 0)

    def batches(self, epoch: int) -> Iterator[tuple[list[int], bool, Batch, TextBatch | None]]:
        """Yield rows of the data, whether they count (see `Processes.shard_batch`), their batch, and one of texts."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.rows).tolist()
        whole = batches.split_batches(order, self.config.batch_size)
        drawn: Counter[int] = Counter()
        keys = []
        for row in order:  # a repeated image is augmented differently, and other captions are drawn
            keys.append((epoch * self.repeats + drawn[row], row))
            drawn[row] += 1
        return zip(
            [self.processes.shard_batch(rows) for rows in whole],
            [self.processes.rank < len(rows) for rows in whole],
            batches.loader(self.dataset, keys, self.config, collate, self.processes),
            self._texts(epoch, len(whole)),
            strict=True,
        )

    def _texts(self, epoch: int, steps: int) -> Iterator[TextBatch | None]:
        """This process's batch of captions without photographs at each step, None without such training."""
        count = self.config.texts_per_step
        random = np.random.default_rng([self.config.seed, epoch, self.processes.rank, 1])
        for _ in range(steps):
            yield (
                draw_texts(self.data, random.integers(self.data.text_groups, size=count).tolist(), random)
                if count
                else None
            )

    def loss(self, batch: tuple[list[int], bool, Batch, TextBatch | None]) -> tuple[Tensor, float, int]:
        """See `Task.loss`. The value to report is the cross-entropy per word in nats, or the mean reward."""
        rows, counts, shard = batch[0], batch[1], batch[2].to(self.device)
        mean = self.processes.mean
        words, captions, images = int((shard.captions != PAD).sum()), len(shard.captions), len(rows)
        if self.self_critical is not None:
            loss, reward = self.self_critical.loss(
                self.model, shard, rows, lambda sampled_words: mean(counts * sampled_words)[0]
            )
            return counts * loss, reward, counts * words
        mean_words, mean_captions, mean_images = mean(counts * words, counts * captions, counts * images)
        # The cross-entropy is a mean over words, the penalty one over captions and the loss of predicted words one over
        # images; all are weighted by words below.
        penalty = self.config.attention_penalty * (captions * mean_words) / (words * mean_captions)
        word_weight = self.config.word_loss_weight * (images * mean_words) / (words * mean_images)
        extra_loss = None if self.teachers is None else partial(self.distillation_loss, shard)
        loss = caption_loss(
            self.model,
            shard,
            self.config.label_smoothing,
            penalty,
            self.decode_fn,
            extra_loss,
            word_weight,
        )
        weighted = loss * (counts * words / mean_words)
        if batch[3] is not None:
            texts = batch[3].to(self.device)
            weighted = weighted + self.config.text_weight * text_loss(
                self.model, texts, self.config.label_smoothing
            )
        return weighted, loss.item(), counts * words

    def distillation_loss(self, batch: Batch, logits: Tensor) -> Tensor:
        assert self.teachers is not None
        return self.config.teacher_weight * self.teachers.divergence(batch, logits)

    def validate(self) -> tuple[dict[str, float], list[str]] | None:
        """The score is the mean over the data files, and given for each of several."""
        if not self.validations:
            return None
        scores, qualities, lines = {}, [], []
        for validation in self.validations:
            cider, quality, samples = validation(self.model, self.config, self.device)
            name = self.data.files[self.data.style(validation.indices[0])].path.stem
            by_words = self.score_name == "word probability"
            score = validation.word_probability(self.model, self.config, self.device) if by_words else cider
            scores[f"{self.score_name} {name}"] = score
            qualities.append((quality, len(validation.indices)))
            several = f"{name}: {self.score_name} {score:.1f}, " if len(self.validations) > 1 else ""
            lines.append(f"{several}{quality} (people: {validation.reference_quality.length:.1f})")
            lines += [f"{name}: {text}" for name, text in samples]
        total = sum(count for _, count in qualities)
        mean = {
            f.name: sum(getattr(each, f.name) * count for each, count in qualities) / total
            for f in dataclasses.fields(Quality)
        }
        figures = {self.score_name: sum(scores.values()) / len(scores)} | mean
        return figures | (scores if len(scores) > 1 else {}), lines

    @property
    def validate_before_training(self) -> bool:
        return self.self_critical is not None

    @torch.inference_mode()
    def images(self) -> dict[str, np.ndarray]:
        """Attention maps of the greedy captions of the images whose captions `validate` prints."""
        if not self.validations or self.data.encoding == "features":
            return {}
        self.model.eval()
        rows = [row for validation in self.validations for row in validation.sample_rows]
        pixels = np.stack([self.data.image(row) for row in rows])  # (B, S, S, 3)
        on_device = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
        styles = torch.tensor([self.data.style(row) for row in rows], device=self.device)
        state = self.model.start(self.model.encode(on_device), styles)
        captions = [hypothesis.tokens for hypothesis in beam_search.greedy(self.model, state)]
        traces = trace(self.model, state, captions)
        strips = {}
        for row, image, caption, attended in zip(rows, pixels, captions, traces, strict=True):
            words = self.data.vocabulary.to_words(caption)
            if words:
                name = self.data.file_name(row)
                strips[f"attention/{name}"] = strip(image, words, attended, f"{name}: {' '.join(words)}")
        return strips

    def should_stop(self, history: list[dict]) -> str:
        """Stops a self-critical run whose captions have become worse than those of the initial model."""
        if self.self_critical is None or not history or self.score_name not in history[0]:
            return ""
        first, last = history[0], history[-1]
        for name, what in (("repeats", "repeat a phrase"), ("dangling", "end in a dangling word")):
            if last[name] > first[name] + MAX_FLAWS_ADDED:
                return f"{last[name]:.1f}% of the captions {what}, {first[name]:.1f}% at the start"
        if not first["length"] / MAX_LENGTH_RATIO <= last["length"] <= first["length"] * MAX_LENGTH_RATIO:
            return f"captions have {last['length']:.1f} words, {first['length']:.1f} at the start"
        best = max(record[self.score_name] for record in history)
        if last[self.score_name] < best - MAX_SCORE_LOST:
            return f"{self.score_name} fell to {last[self.score_name]:.1f} from {best:.1f}"
        return ""

    def checkpoint(self, metrics: dict) -> Checkpoint:
        return Checkpoint(self.model, self.data.vocabulary, self.data.transform, metrics)

    def provenance(self) -> dict:
        return {"data": " ".join(str(file.path) for file in self.data.files)}


def list_of(rows: np.ndarray, part: range) -> list[int]:
    """The rows of one data file."""
    return rows[(rows >= part.start) & (rows < part.stop)].tolist()


def document_frequency(data: Mixture, rows: Sequence[int]) -> tuple[Tensor, int]:
    """In how many of the photographs' captions each word is, (W,), and the number of photographs.

    The photographs are `rows`, and at most MAX_TEXTS of those of which only captions are known.
    """
    words = len(data.vocabulary)
    groups = range(0, data.text_groups, math.ceil(data.text_groups / MAX_TEXTS) or 1)
    count = torch.zeros(words)
    for captions in chain(map(data.captions, rows), map(data.text_captions, groups)):
        count += caption_fractions(captions, words) > 0
    return count, len(rows) + len(groups)


def initialise_from(model: SCACNN, other: Checkpoint, words: tuple[str, ...]) -> list[str]:
    """Copy every tensor of `other` whose name and shape fit, and the vectors of the words and styles that both have.

    Styles that `other` lacks start as its default style. A `model` without styles always captions as `other` does in its
    default style. If `other` has a neck and `model` has none, the last layer of its CNN is what `other` kept as head.

    words: the vocabulary of `model`. Returns the names of tensors that were not copied, among them the idf of predicted
    words if the vocabularies differ.
    """
    assert other.vocabulary is not None
    own, copied = model.state_dict(), {}
    of_words = in_both(words, other.vocabulary.words)
    for name, value in without_unused(model, other.captioner).items():
        if name not in own or (name == "word_predictor.idf" and words != other.vocabulary.words):
            continue
        named = name.startswith(("word.", "embedding.", "word_predictor.up."))
        if named and own[name].shape[1:] == value.shape[1:]:
            rows, sources = of_words
            copied[name] = own[name].index_copy(0, rows, value[sources])
        elif not named and own[name].shape == value.shape:
            copied[name] = value
    model.load_state_dict(copied, strict=False)
    return sorted(set(own) - set(copied))


def without_unused(model: SCACNN, other: SCACNN) -> dict[str, Tensor]:
    """The tensors of `other`, with what `model` has no part for moved to where it has the same effect.

    The styles are those of `model`. W_u s of the default style is a constant of the LSTM (see `sca_cnn`), and so part of
    its bias in a model without styles.
    """
    found = other.state_dict()
    if other.style is not None:
        if model.style is None:
            assert other.context is not None
            style = other.style.weight[other.default_style].detach()
            found["lstm.bias_ih"] = found["lstm.bias_ih"] + other.context.weight.detach() @ style
        else:
            index = {name: i for i, name in enumerate(other.config.styles)}
            rows = [index.get(name, other.default_style) for name in model.config.styles]
            found["style.weight"] = found["style.weight"][rows]
    if other.backbone.head is not None and model.backbone.head is None:
        last = f"backbone.network.{other.backbone.layers[-1]}."
        found = {name: value for name, value in found.items() if not name.startswith(last)}
        found = {name.replace("backbone.head.", last): value for name, value in found.items()}
    return found


def in_both(own: Sequence[str], theirs: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The indices in `own`, and those in `theirs`, of the names that both have."""
    index = {name: i for i, name in enumerate(theirs)}
    pairs = [(i, index[name]) for i, name in enumerate(own) if name in index]
    rows, sources = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    return rows, sources
