"""Learning from other captioners: at every word of people's captions, the mean of the distributions that they give.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015 (arXiv 1503.02531), of an ensemble.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption import checkpoint
from sca_caption.decoding import teacher_forcing
from sca_caption.models.ensemble import mean_log_probability
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.training.batches import Batch
from sca_caption.vocab import Vocabulary


class Teachers:
    """Captioners that have learnt already."""

    def __init__(self, models: Sequence[SCACNN]):
        self.models = [model.eval().requires_grad_(False) for model in models]

    @torch.no_grad()
    def log_probabilities(self, batch: Batch) -> Tensor:
        """log of the mean of the teachers' p(word), (M, W), at the words in the order of `teacher_forcing.run`."""
        each = []
        for model in self.models:
            state = model.start(model.encode(batch.images)).select(batch.image_index)
            each.append(teacher_forcing.run(model, state, batch.captions).logits)
        return mean_log_probability(each)

    def divergence(self, batch: Batch, logits: Tensor) -> Tensor:
        """KL(teachers || student), the mean over words (nats); logits (M, W) are the student's."""
        student = logits.float().log_softmax(1)
        return F.kl_div(student, self.log_probabilities(batch), reduction="batchmean", log_target=True)


def load_teachers(paths: Sequence[str], vocabulary: Vocabulary, device: torch.device) -> Teachers:
    """Raises UserError for one that cannot be loaded or has other words."""
    models = []
    for path in paths:
        found = checkpoint.load(path)
        if found.vocabulary != vocabulary:
            raise UserError(
                f"--teacher {path} has other words ({len(found.vocabulary)}) than the data file ({len(vocabulary)}); "
                f"give teachers that were trained from the same data file"
            )
        models.append(found.model.to(device))
    return Teachers(models)
