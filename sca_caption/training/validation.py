"""Validation of a captioner during training, on captions that it generates itself."""

import dataclasses
import math

import numpy as np
import torch

from sca_caption.config import SearchConfig, TrainConfig
from sca_caption.datasets.mixture import Mixture
from sca_caption.decoding import beam_search
from sca_caption.evaluation.caption_quality import Quality, quality
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.distributed import SINGLE_PROCESS, Processes
from sca_caption.training import batches
from sca_caption.training.batches import CaptionedImages, collate
from sca_caption.training.losses import caption_loss
from sca_caption.vocab import PAD

SAMPLES = 3  # captions of the validation set that are printed after every epoch


class Validation:
    """Scores generated captions, without teacher forcing, by CIDEr against the raw references.

    indices: rows of the data file to validate on. sample_rows: those whose captions are printed. reference_quality: the
    quality measures of people's captions, to compare with.
    """

    def __init__(self, data: Mixture, indices: np.ndarray, processes: Processes = SINGLE_PROCESS):
        self.data, self.indices, self.processes = data, [int(i) for i in indices], processes
        self.sample_rows = self.indices[:: max(1, len(self.indices) // SAMPLES)][:SAMPLES]
        references = [[ptb_tokenize(text) for text in data.references(i)] for i in self.indices]
        self.cider = Cider(references)
        self.reference_quality = quality([words for several in references for words in several])

    @torch.inference_mode()
    def __call__(
        self, model: SCACNN, config: TrainConfig, device: torch.device
    ) -> tuple[float, Quality, list[tuple[str, str]]]:
        """CIDEr (1.0 is 100), the captions' quality measures, and a few pairs (file name, caption) to print."""
        model.eval()
        dataset = CaptionedImages(self.data, config, augment=False)
        captions, mine = [], self.processes.shard(self.indices)
        for batch in batches.loader(dataset, [(0, i) for i in mine], config, collate):
            batch = batch.to(device)
            state = model.start(model.encode(batch.images), batch.styles)
            if config.validation_beam == 1:
                hypotheses = beam_search.greedy(model, state)
            else:
                beams = beam_search.beam_search(
                    model,
                    state,
                    beam_size=config.validation_beam,
                    length_penalty=config.validation_length_penalty,
                    block_ngrams=SearchConfig.block_ngrams,
                )
                hypotheses = [best for best, *_ in beams]
            captions += [self.data.vocabulary.decode(hypothesis.tokens) for hypothesis in hypotheses]
        captions = self.processes.gather(captions)
        words = [ptb_tokenize(caption) for caption in captions]
        score, _ = self.cider.score(words)
        by_row = dict(zip(self.indices, captions, strict=True))
        samples = [(self.data.file_name(row), by_row[row]) for row in self.sample_rows]
        return score, quality(words), samples

    @torch.inference_mode()
    def word_probability(self, model: SCACNN, config: TrainConfig, device: torch.device) -> float:
        """Geometric mean of the probabilities of the references' words with teacher forcing, in per cent."""
        model.eval()
        config = dataclasses.replace(config, captions_per_image=0)  # all captions
        dataset = CaptionedImages(self.data, config, augment=False)
        total = count = 0.0
        for batch in batches.loader(
            dataset, [(0, i) for i in self.processes.shard(self.indices)], config, collate
        ):
            words = int((batch.captions != PAD).sum())
            total, count = total + words * caption_loss(model, batch.to(device)).item(), count + words
        total, count = self.processes.mean(total, count)
        return 100 * math.exp(-total / count)
