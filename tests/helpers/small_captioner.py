"""A small SCACNN on the toy CNN, batches for it, and one caption's logits computed on their own."""

import torch
import torch.nn.functional as F

from sca_caption.config import ModelConfig
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.batches import Batch, Example, collate
from sca_caption.vocab import BOS, PAD

MODES = ("S", "C", "S-C", "C-S")
LAYERS = {1: ("block",), 2: ("block.relu", "block"), 3: ("low", "block.relu", "block")}
FORMS = [(mode, layers) for mode in MODES for layers in LAYERS]
WORDS = 17


def captioner(
    mode: str = "C-S", layers: int = 2, words: int = WORDS, spread: bool = True, **changes
) -> SCACNN:
    """A small captioner. spread: with larger weights, so that attention and word probabilities are far from uniform."""
    settings = {"attention_width": 8, "embedding_size": 12, "lstm_size": 16, "dropout": 0.0, **changes}
    config = ModelConfig(backbone="toy", layers=LAYERS[layers], attention=mode, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SCACNN(config, words)
        if spread:
            with torch.no_grad():
                for parameter in model.attention.parameters():
                    parameter.normal_(0, 0.7)
                model.word.weight *= 5
                model.embedding.weight *= 5
    return model


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Random images of 5 x 5 coloured squares, uint8 (count, 3, 32, 32)."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, 32).to(torch.uint8)


def batch_of(counts=(2, 1, 3), seed: int = 0) -> Batch:
    """A batch with counts[i] random captions of image i, of 1 to 6 words each."""
    rng = torch.Generator().manual_seed(seed)

    def caption() -> list[int]:
        length = int(torch.randint(1, 7, (1,), generator=rng))
        return torch.randint(3, WORDS, (length,), generator=rng).tolist()

    images = pixels(len(counts), seed)
    examples = [
        Example(image, [caption() for _ in range(n)], None, 0)
        for image, n in zip(images, counts, strict=True)
    ]
    return collate(examples)


def decode_alone(model: SCACNN, batch: Batch, row: int):
    """One caption by `step`, without batch or padding: log-probabilities (T, W), attention weights and target ids."""
    targets = batch.captions[row][batch.captions[row] != PAD]
    image = batch.image_index[row]
    state = model.start(model.encode(batch.images[image : image + 1]))
    logits, attention, word = [], [], torch.tensor([BOS])
    for target in targets:
        step_logits, state = model.step(word, state)
        logits.append(step_logits[0])
        attention.append(state.attention)
        word = target[None]
    return torch.stack(logits).log_softmax(1), attention, targets
