"""Self-critical sequence training: the policy gradient of a caption's CIDEr-D and BLEU-4.

Rennie et al. 2017, "Self-critical sequence training for image captioning" (arXiv 1612.00563); the baseline of a sampled
caption is the mean reward of the image's other samples (Luo 2020, "A better variant of self-critical sequence
training", arXiv 2003.09971).

Rewards are computed on the words that evaluation sees, the PTB tokenizer's words of the decoded text. Processes compute
them while the model computes the samples' log-probabilities.

Shapes: B images, n samples per image, R = B n sampled captions, M words of all of them, W vocabulary size.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption.datasets.mixture import Mixture
from sca_caption.decoding import rules, sampling, teacher_forcing
from sca_caption.decoding.sampling import truncated
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.evaluation.bleu import bleu, bleu_statistics
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ngrams import count_ngrams
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.models.sca_cnn import SCACNN, State
from sca_caption.training.batches import Batch
from sca_caption.training.losses import caption_loss
from sca_caption.vocab import EOS, PAD

END = "<eos>"  # counted as a word, so that a caption is also rewarded for ending where people's captions end
Caption = tuple[int, list[int], bool]  # row of the data file, word ids, whether the model ended it


class Reward:
    """The reward of a caption: CIDEr-D + bleu_weight * BLEU-4, each in the form where 1.0 is printed as 100.

    rows: images whose captions can be rewarded. Their references give the document frequencies, for each data file of a
    mixture its own.
    """

    def __init__(self, data: Mixture, rows: Sequence[int], bleu_weight: float = 0.0):
        self.vocabulary, self.bleu_weight = data.vocabulary, bleu_weight
        self.place: dict[int, tuple[Cider, int]] = {}  # by row: its scorer, and its number there
        for part in data.parts:
            own = [row for row in rows if row in part]
            cider = Cider([[[*ptb_tokenize(text), END] for text in data.references(row)] for row in own])
            self.place |= {row: (cider, i) for i, row in enumerate(own)}

    def __call__(self, caption: Caption) -> float:
        row, tokens, finished = caption
        counts = count_ngrams(ptb_tokenize(self.vocabulary.decode(tokens)) + [END] * finished)
        cider, number = self.place[row]
        references = cider.references[number]
        reward = cider.score_image(counts, references) / 100
        if self.bleu_weight:
            (statistics,) = bleu_statistics([counts], [[sentence for sentence, *_ in references]])
            reward += self.bleu_weight * bleu(statistics)[3] / 100
        return reward


class RewardWorkers:
    """Processes that compute rewards in the background. With `processes` 0, `result` computes them itself."""

    def __init__(self, reward: Reward, processes: int):
        self.reward, self.processes = reward, processes
        self.connections: list[Connection] = []

    def submit(self, captions: list[Caption]) -> "PendingRewards":
        """Start to compute the captions' rewards; `result()` of the returned object waits for them."""
        if self.processes and not self.connections:
            self.connections = [start_worker(self.reward) for _ in range(self.processes)]
        for i, connection in enumerate(self.connections):
            connection.send(captions[i :: self.processes])
        return PendingRewards(self, captions)


class PendingRewards:
    """Rewards that workers are computing. Call `result` once, in the order of the calls of `submit`."""

    def __init__(self, workers: RewardWorkers, captions: list[Caption]):
        self.workers, self.captions = workers, captions

    def result(self) -> list[float]:
        """Wait for the rewards, one per caption."""
        connections = self.workers.connections
        if not connections:
            return [self.workers.reward(caption) for caption in self.captions]
        rewards = [0.0] * len(self.captions)
        for i, connection in enumerate(connections):
            rewards[i :: len(connections)] = connection.recv()
        return rewards


def start_worker(reward: Reward) -> Connection:
    """Start a process that answers lists of captions with lists of rewards, and ends when this process has ended."""
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=run_worker, args=(ours, theirs, reward), daemon=True).start()
    theirs.close()
    return ours


def run_worker(parent: Connection, connection: Connection, reward: Reward) -> None:
    """The loop of a worker process. parent: the program's end of the pipe."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C ends the program, and the program's end ends this loop
    parent.close()  # with only the program's copy open, `recv` raises EOFError when the program has ended
    try:
        while True:
            connection.send([reward(caption) for caption in connection.recv()])
    except (EOFError, OSError):
        pass


class SelfCritical:
    """The self-critical loss of n sampled captions per image.

    cross_entropy: weight of the cross-entropy of people's captions, which limits the drift of the language. temperature:
    of the sampling distribution, which is also the distribution that learns.
    """

    def __init__(self, workers: RewardWorkers, n: int, cross_entropy: float = 0.0, temperature: float = 1.0):
        self.workers, self.n, self.cross_entropy = workers, n, cross_entropy
        self.rule = partial(truncated, temperature=temperature)  # logits -> log-probabilities

    def loss(
        self,
        model: SCACNN,
        batch: Batch,
        rows: list[int],
        mean_over_processes: Callable[[int], float] = float,
    ) -> tuple[Tensor, float]:
        """The loss per word, and the mean reward.

        rows: the data file's row of each image of the batch. mean_over_processes: the mean, over the processes that
        share the batch, of their numbers of words.

        Each word of sample s weighs -(reward_s - mean reward of the image's other samples).
        """
        model.dropout.eval()  # both passes must use the same network
        if model.word_predictor is not None:
            model.word_predictor.eval()
        encoded = model.encode(batch.images)
        start = model.start(encoded, batch.styles)
        image = torch.arange(len(rows), device=model.mean.device).repeat_interleave(self.n)  # (R,)
        with torch.inference_mode():
            sampled = sampling.sample(model, start.select(image), rule=self.rule)
        pending = self.workers.submit(
            [
                (rows[i], tokens, finished)
                for i, tokens, finished in zip(image.tolist(), sampled.tokens, sampled.finished, strict=True)
            ]
        )
        log_prob, words = log_probabilities(model, start, image, sampled, self.rule)  # (R,)
        reward = torch.tensor(pending.result(), device=image.device).view(-1, self.n)  # (B, n)
        # reward - mean of the others = (reward - mean of all) * n / (n - 1)
        advantage = (reward - reward.mean(1, keepdim=True)) * (self.n / (self.n - 1))
        loss = -(advantage.flatten() * log_prob).sum() / mean_over_processes(words)
        if self.cross_entropy:
            people = Batch(encoded, batch.captions, batch.image_index, batch.styles)
            count = int((batch.captions != PAD).sum())
            share = count / mean_over_processes(count)
            loss = loss + self.cross_entropy * caption_loss(model, people) * share
        return loss, reward.mean().item()


def log_probabilities(
    model: SCACNN,
    start: State,
    image: Tensor,
    sampled: sampling.Sampled,
    rule: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Log-probabilities (R,) of captions that `sampling.sample` drew by `rule`, with gradients.

    Also returns the number of words M, end words included.
    """
    captions = padded(
        [tokens + [EOS] * ended for tokens, ended in zip(sampled.tokens, sampled.finished, strict=True)]
    ).to(image.device)
    forced = teacher_forcing.run(model, start.select(image), captions)
    # The distribution that `sample` draws from lacks special words, and EOS as the first word.
    banned = torch.zeros_like(forced.logits, dtype=torch.bool)  # (M, W)
    banned[:, list(rules.NEVER)] = True
    banned[: forced.running[0], EOS] = True
    log_probs = rule(forced.logits.float().masked_fill(banned, -torch.inf))
    return forced.sums(-F.nll_loss(log_probs, forced.targets, reduction="none")), len(forced.targets)
