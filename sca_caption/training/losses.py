"""Losses of captioners: cross-entropy with teacher forcing, the attention penalty, and distillation.

Shapes: N captions, M words of all of them, W vocabulary size, m positions of an attended layer.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption import checkpoint
from sca_caption.decoding import teacher_forcing
from sca_caption.decoding.teacher_forcing import Forced
from sca_caption.models.ensemble import log_mean_probability
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.training.batches import Batch
from sca_caption.vocab import Vocabulary


def caption_loss(
    model: SCACNN,
    batch: Batch,
    label_smoothing: float = 0.0,
    attention_penalty: float = 0.0,
    decode_fn: Callable[..., Forced] = teacher_forcing.run,
    extra_loss: Callable[[Tensor], Tensor] | None = None,
    word_loss_weight: float = 0.0,
) -> Tensor:
    """Cross-entropy with teacher forcing: the mean over all words of all captions of the batch, in nats.

    attention_penalty: weight of `doubly_stochastic_penalty`, which is added. decode_fn: `teacher_forcing.run`, or that
    with options. extra_loss: a function of the logits (M, W) whose value is added. word_loss_weight: weight of
    `word_loss`, which is added if the model predicts words.
    """
    start = model.start(model.encode(batch.images), batch.styles)
    forced = decode_fn(model, start.select(batch.image_index), batch.captions)
    loss = F.cross_entropy(forced.logits, forced.targets, label_smoothing=label_smoothing)
    if attention_penalty and forced.alphas[0]:
        loss = loss + attention_penalty * doubly_stochastic_penalty(forced.alphas)
    if extra_loss is not None:
        loss = loss + extra_loss(forced.logits)
    if word_loss_weight and start.words is not None and batch.fractions is not None:
        loss = loss + word_loss_weight * word_loss(start.words, batch.fractions)
    return loss


def word_loss(logits: Tensor, fractions: Tensor) -> Tensor:
    """Cross-entropy of predicted words, summed over words, the mean over images, in nats.

    logits (B, W), fractions (B, W): fraction of an image's captions that contain each word.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), fractions, reduction="sum") / len(logits)


def doubly_stochastic_penalty(alphas: list[list[Tensor]]) -> Tensor:
    """Mean over captions, positions and layers of (1 - sum_t alpha_t)^2 (Xu et al. 2015, arXiv 1502.03044, eq. 14).

    alphas: spatial weights at each step t, one tensor (captions with a word at t, m) per layer, as in `Forced`.
    """
    captions = len(alphas[0][0])
    penalties = []
    for layer in zip(*alphas, strict=True):
        first, *others = (F.pad(alpha, (0, 0, 0, captions - len(alpha))) for alpha in layer)
        total = sum(others, first)  # (N, m)
        penalties.append((1 - total).square().mean())
    return torch.stack(penalties).mean()


class Teachers:
    """Trained captioners whose mean distribution a student learns at every word of people's captions.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015 (arXiv 1503.02531), of an ensemble.
    """

    def __init__(self, models: Sequence[SCACNN]):
        self.models = [model.eval().requires_grad_(False) for model in models]

    @torch.no_grad()
    def log_probabilities(self, batch: Batch) -> Tensor:
        """Logarithm of the teachers' mean probability of each word, (M, W), in the order of `teacher_forcing.run`."""
        logits = []
        for model in self.models:
            start = model.start(model.encode(batch.images), batch.styles)
            state = start.select(batch.image_index)
            logits.append(teacher_forcing.run(model, state, batch.captions).logits)
        return log_mean_probability(logits)

    def divergence(self, batch: Batch, logits: Tensor) -> Tensor:
        """KL(teachers || student), the mean over words, in nats. logits: the student's, (M, W)."""
        student = logits.float().log_softmax(1)
        return F.kl_div(student, self.log_probabilities(batch), reduction="batchmean", log_target=True)


def load_teachers(paths: Sequence[str], vocabulary: Vocabulary, device: torch.device) -> Teachers:
    """Load the checkpoints of --teacher. Raises UserError if one cannot be loaded or has another vocabulary."""
    models = []
    for path in paths:
        teacher = checkpoint.load(path)
        if teacher.vocabulary != vocabulary:
            raise UserError(
                f"--teacher {path} has another vocabulary ({len(teacher.vocabulary or ())} words) than the data file "
                f"({len(vocabulary)} words); give teachers that were trained on the same data file"
            )
        models.append(teacher.captioner.to(device))
    return Teachers(models)
