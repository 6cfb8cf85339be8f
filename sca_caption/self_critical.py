"""Self-critical training: raise the CIDEr of the captions that the model itself samples.

Rennie et al., "Self-critical sequence training for image captioning", CVPR 2017 (arXiv 1612.00563): REINFORCE with the
reward of a whole caption. The baseline of a sample is the mean reward of the image's other samples (Luo, "A better
variant of self-critical sequence training", 2020, arXiv 2003.09971), which needs no second decoding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sca_caption import decode
from sca_caption.captioner import Batch, Captioner
from sca_caption.metrics import Cider, ptb_tokenize
from sca_caption.store import CaptionData

END = "<eos>"  # counted as a word, so that a caption is also rewarded for ending where people end theirs


class SelfCritical:
    """Rewards by CIDEr-D against the images in `rows`, whose captions alone give the document frequencies."""

    def __init__(self, data: CaptionData, rows: list[int], samples: int):
        self.vocabulary, self.samples = data.vocabulary, samples
        self.cider = Cider([[[*ptb_tokenize(text), END] for text in data.references(row)] for row in rows])
        self.position = {row: i for i, row in enumerate(rows)}

    def reward(self, row: int, tokens: list[int], finished: bool) -> float:
        """CIDEr-D (1.0 is 1.0) of one caption of the image in `row`."""
        words = ptb_tokenize(self.vocabulary.decode(tokens)) + [END] * finished
        return self.cider.score_image(words, self.cider.references[self.position[row]]) / 100

    def loss(
        self, model: Captioner, batch: Batch, rows: list[int], mean: Callable[[int], float] = float
    ) -> tuple[Tensor, float]:
        """The policy gradient's loss a word, and the mean reward, of `samples` captions an image.

        rows: which image of the data file each of the batch's images is. mean: over the processes that share the batch,
        of their numbers of words.
        """
        state = model.start(model.encode(batch.images))
        image = torch.arange(len(rows), device=state.device).repeat_interleave(self.samples)
        sampled = decode.sample(model, state.select(image))
        rewards = torch.tensor(
            [
                self.reward(rows[i], tokens, finished)
                for i, tokens, finished in zip(image.tolist(), sampled.tokens, sampled.finished, strict=True)
            ],
            device=state.device,
        ).view(-1, self.samples)
        # reward - mean of the others = (reward - mean of all) * n / (n - 1)
        advantage = (rewards - rewards.mean(1, keepdim=True)) * (self.samples / (self.samples - 1))
        words = mean(sum(map(len, sampled.tokens)) + sum(sampled.finished))
        loss = -(advantage.flatten() * sampled.log_prob).sum() / words
        return loss, rewards.mean().item()
