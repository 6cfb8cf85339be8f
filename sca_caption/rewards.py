"""What self-critical training rewards: a caption's CIDEr-D, and BLEU-4 if so wished; computed beside the model's work.

Words are those that evaluation sees, the PTB tokenizer's of the decoded text.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from sca_caption.metrics import Cider, measure_bleu, ngrams_of, ptb_tokenize
from sca_caption.store import CaptionData

END = "<eos>"  # counted as a word, so that a caption is also rewarded for ending where people end theirs

Caption = tuple[int, list[int], bool]  # row of the data file, word ids, whether the model ended it


class Reward:
    """CIDEr-D + bleu_weight * BLEU-4 of captions of the images in `rows`, which alone give the document frequencies."""

    def __init__(self, data: CaptionData, rows: Sequence[int], bleu_weight: float = 0.0):
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


class Critics:
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
