"""Self-critical training: raise the CIDEr of the captions that the model itself samples.

Rennie et al., "Self-critical sequence training for image captioning", CVPR 2017 (arXiv 1612.00563): REINFORCE with the
reward of a whole caption. The baseline of a sample is the mean reward of the image's other samples (Luo, "A better
variant of self-critical sequence training", 2020, arXiv 2003.09971), which needs no second decoding.

Captions are drawn without gradients, by the fast path of decoding; their log-probabilities then come from teacher
forcing, as in cross-entropy training and at its cost, while other processes compute the rewards. Both passes must be of
one distribution, or the gradient would be biased; so dropout on words, which differs from pass to pass, is off in both.
What `feature_dropout` hides of an image it hides from both.

What is drawn from, and learns, is p(word)^(1 / temperature), renormalised. A model that learnt with label smoothing
gives some chance to every word; at temperature 1 its captions have a third of the CIDEr of those that it says greedily,
and what it learns from them is to end before the next odd word comes.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption import decode, teacher_forcing
from sca_caption.captioner import SCACNN, Batch, padded
from sca_caption.rewards import Critics
from sca_caption.sampling import truncated
from sca_caption.vocab import EOS, PAD


class SelfCritical:
    """The policy gradient of `samples` captions an image; against drift with some of people's captions' cross-entropy."""

    def __init__(
        self, critics: Critics, samples: int, cross_entropy: float = 0.0, temperature: float = 1.0
    ):
        self.critics, self.samples, self.cross_entropy = critics, samples, cross_entropy
        self.rule = partial(truncated, temperature=temperature)  # of both passes

    def loss(
        self, model: SCACNN, batch: Batch, rows: list[int], mean: Callable[[int], float] = float
    ) -> tuple[Tensor, float]:
        """The loss a word, and the mean reward.

        rows: which image of the data file each of the batch's images is. mean: over the processes that share the batch,
        of their numbers of words.
        """
        model.dropout.eval()
        encoded = model.encode(batch.images)
        image = torch.arange(len(rows), device=model.mean.device).repeat_interleave(self.samples)
        with torch.inference_mode():
            sampled = decode.sample(model, model.start(encoded).select(image), rule=self.rule)
        rewards = self.critics.ask(
            [
                (rows[i], tokens, finished)
                for i, tokens, finished in zip(image.tolist(), sampled.tokens, sampled.finished, strict=True)
            ]
        )
        log_prob, words = log_probabilities(model, encoded, image, sampled, self.rule)
        rewards = torch.tensor(rewards(), device=image.device).view(-1, self.samples)
        # reward - mean of the others = (reward - mean of all) * n / (n - 1)
        advantage = (rewards - rewards.mean(1, keepdim=True)) * (self.samples / (self.samples - 1))
        loss = -(advantage.flatten() * log_prob).sum() / mean(words)
        if self.cross_entropy:
            people = Batch(encoded, batch.captions, batch.image_index)
            count = int((batch.captions != PAD).sum())
            loss = loss + self.cross_entropy * model.loss(people) * (count / mean(count))
        return loss, rewards.mean().item()


def log_probabilities(
    model: SCACNN,
    encoded: tuple[Tensor, ...],
    image: Tensor,
    sampled: decode.Sampled,
    rule: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Of captions that `decode.sample` drew by `rule`, with gradients, (rows,); and how many words, ends included."""
    captions = padded(
        [tokens + [EOS] * ended for tokens, ended in zip(sampled.tokens, sampled.finished, strict=True)]
    ).to(image.device)
    forced = teacher_forcing.run(model, model.start(encoded).select(image), captions)
    # Over the words that `sample` draws from: never those of NEVER, and no end before the first word.
    barred = torch.zeros_like(forced.logits, dtype=torch.bool)
    barred[:, list(decode.NEVER)] = True
    barred[: forced.running[0], EOS] = True
    each = rule(forced.logits.float().masked_fill(barred, -torch.inf))
    return forced.sums(-F.nll_loss(each, forced.targets, reduction="none")), len(forced.targets)
