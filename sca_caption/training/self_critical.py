"""What self-critical training rewards: a caption's CIDEr-D, and BLEU-4 if so wished; computed beside the model's work.

Words are those that evaluation sees, the PTB tokenizer's of the decoded text.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.decoding import rules, sampling, teacher_forcing
from sca_caption.decoding.sampling import truncated
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.evaluation.caption_metrics import Cider, measure_bleu, ngrams_of
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.batches import Batch
from sca_caption.training.losses import caption_loss
from sca_caption.vocab import EOS, PAD

END = "<eos>"  # counted as a word, so that a caption is also rewarded for ending where people end theirs
Caption = tuple[int, list[int], bool]  # row of the data file, word ids, whether the model ended it


class Reward:
    """CIDEr-D + bleu_weight * BLEU-4 of captions of the images in `rows`, which alone give the document frequencies."""

    def __init__(self, data: CaptionDataset, rows: Sequence[int], bleu_weight: float = 0.0):
        self.vocabulary, self.bleu_weight = data.vocabulary, bleu_weight
        self.cider = Cider([[[*ptb_tokenize(text), END] for text in data.references(row)] for row in rows])
        self.position = {row: i for i, row in enumerate(rows)}

    def __call__(self, caption: Caption) -> float:
        row, tokens, finished = caption
        counts = ngrams_of(ptb_tokenize(self.vocabulary.decode(tokens)) + [END] * finished)
        references = self.cider.references[self.position[row]]
        reward = self.cider.score_image(counts, references) / 100
        if self.bleu_weight:
            (image,) = measure_bleu([counts], [[sentence for sentence, *_ in references]])[3].images
            reward += self.bleu_weight * image / 100
        return reward


class RewardWorkers:
    """Processes that compute rewards while the model goes on; with none, this one computes them."""

    def __init__(self, reward: Reward, processes: int):
        self.reward, self.processes = reward, processes
        self.connections: list[Connection] = []

    def ask(self, captions: list[Caption]) -> Callable[[], list[float]]:
        """Hand over captions; calling the answer waits for their rewards."""
        if not self.processes:
            return lambda: [self.reward(caption) for caption in captions]
        if not self.connections:
            self.connections = [start(self.reward) for _ in range(self.processes)]
        for i, connection in enumerate(self.connections):
            connection.send(captions[i :: self.processes])

        def answer() -> list[float]:
            rewards = [0.0] * len(captions)
            for i, connection in enumerate(self.connections):
                rewards[i :: self.processes] = connection.recv()
            return rewards

        return answer


def start(reward: Reward) -> Connection:
    """A process that answers lists of captions with lists of rewards until this one is gone."""
    ours, its = multiprocessing.Pipe()
    multiprocessing.Process(target=serve, args=(ours, its, reward), daemon=True).start()
    its.close()
    return ours


def serve(theirs: Connection, connection: Connection, reward: Reward) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, whose end is ours
    theirs.close()  # so that only the program holds that end, and `recv` notices when it is gone
    try:
        while True:
            connection.send([reward(caption) for caption in connection.recv()])
    except (EOFError, OSError):
        pass


class SelfCritical:
    """The policy gradient of `samples` captions an image; against drift with some of people's captions' cross-entropy."""

    def __init__(
        self, critics: RewardWorkers, samples: int, cross_entropy: float = 0.0, temperature: float = 1.0
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
            sampled = sampling.sample(model, model.start(encoded).select(image), rule=self.rule)
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
            loss = loss + self.cross_entropy * caption_loss(model, people) * (count / mean(count))
        return loss, rewards.mean().item()


def log_probabilities(
    model: SCACNN,
    encoded: tuple[Tensor, ...],
    image: Tensor,
    sampled: sampling.Sampled,
    rule: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Of captions that `decode.sample` drew by `rule`, with gradients, (rows,); and how many words, ends included."""
    captions = padded(
        [tokens + [EOS] * ended for tokens, ended in zip(sampled.tokens, sampled.finished, strict=True)]
    ).to(image.device)
    forced = teacher_forcing.run(model, model.start(encoded).select(image), captions)
    # Over the words that `sample` draws from: never those of NEVER, and no end before the first word.
    barred = torch.zeros_like(forced.logits, dtype=torch.bool)
    barred[:, list(rules.NEVER)] = True
    barred[: forced.running[0], EOS] = True
    each = rule(forced.logits.float().masked_fill(barred, -torch.inf))
    return forced.sums(-F.nll_loss(each, forced.targets, reduction="none")), len(forced.targets)
