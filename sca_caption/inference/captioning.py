"""Many images in, captions or classes out: a checkpoint at work in batches, with images decoded while the model runs."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sca_caption import checkpoint as checkpoints
from sca_caption import images
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import BATCH_SIZE, SamplingConfig, SearchConfig
from sca_caption.decoding import beam_search, stepper
from sca_caption.decoding.lexical_constraints import word_groups
from sca_caption.decoding.rules import dangling, joining
from sca_caption.decoding.sampling import draw
from sca_caption.guidance.confidence import Calibration
from sca_caption.guidance.consensus import Consensus, Ranking
from sca_caption.guidance.hallucination import Subjects, closed, rules_of
from sca_caption.guidance.masking import Discreet
from sca_caption.guidance.novel_objects import Namer
from sca_caption.inference.batching import in_batches, stack
from sca_caption.models.attention_trace import Trace, trace
from sca_caption.models.ensemble import Ensemble
from sca_caption.models.sca_cnn import SCACNN, State
from sca_caption.runtime.devices import find_device
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import Vocabulary


@dataclass(frozen=True)
class Caption:
    """A caption in words. `log_prob` is natural; `score` is what captions were ranked by (see `decode`).

    mean_log_prob: that of its words, the end included, on average. confidence: the probability that the caption is
    better than the median, where the checkpoint knows (see `calibration`).
    """

    text: str
    log_prob: float
    score: float
    finished: bool
    mean_log_prob: float
    confidence: float | None = None
    tokens: tuple[int, ...] = ()  # ids of the words, in `CaptionPipeline.words`
    consensus: float | None = None  # see `consensus.Ranking`, where the checkpoint knows


@dataclass(frozen=True)
class Result:
    """What became of one item: its captions, best first, or the reason why there are none.

    trace: what was attended at every word of the best caption, where it was asked for.
    """

    item: Any
    captions: tuple[Caption, ...] = ()
    error: UserError | None = None
    trace: Trace | None = None


class CaptionPipeline:
    """A model with its vocabulary and transform, ready to caption on one device.

    Args:
        checkpoint: a loaded checkpoint, the path of one, None for the model that ships, or several, which then
        speak as one (see `ensemble`), without nouns of `objects`. device: "cpu",
        "cuda", "cuda:1", ... or "auto": the first GPU, or the CPU. batch_size: images searched at once, an
        upper bound on memory: batch_size * beam_size captions grow together. mentions: words that every caption
        must have, or of which it must have one: "dog", "cat/cats/kitten". objects: whether a model that can (see
        `naming`) puts nouns that it is sure of into its captions, and (see `subjects`) leaves people, dogs and colours
        out of captions of other things; the first needs images, not stored features.
        sampling: draw captions at random so in place of the search; of `search` counts what is not about beams.

    Raises UserError for a checkpoint that cannot be used, a device that is not there and words it does not know.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path | Sequence[Checkpoint | str | Path] | None = None,
        *,
        search: SearchConfig | None = None,
        device: str = "auto",
        batch_size: int = BATCH_SIZE,
        mentions: Sequence[str] = (),
        objects: bool = True,
        sampling: SamplingConfig | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: must be at least 1")
        several = (
            checkpoint
            if isinstance(checkpoint, Sequence) and not isinstance(checkpoint, str)
            else [checkpoint]
        )
        loaded = [each if isinstance(each, Checkpoint) else checkpoints.load(each) for each in several]
        require_alike(several, loaded)
        self.device = find_device(device)
        self.models = [each.model.to(self.device).eval() for each in loaded]
        checkpoint, self.model = loaded[0], self.models[0] if len(loaded) == 1 else Ensemble(self.models)
        self.vocabulary, self.transform = checkpoint.vocabulary, checkpoint.transform
        self.batch_size = batch_size
        self.calibration = Calibration.of(checkpoint.metrics) if len(loaded) == 1 else None
        self.consensus, self.idf = checkpoint.consensus if len(loaded) == 1 else None, None
        self.subjects, self.rules = None, []
        if self.consensus is not None:
            self.consensus = self.consensus.to(self.device)
            self.idf = self.consensus.idf.tolist()
        self.drawing = None
        self._set(search or SearchConfig(), mentions)
        if sampling:
            if mentions:
                raise UserError("--mention needs a search; leave --sample out")
            self.drawing = drawing_of(sampling, self._settings_of(self.search), self.device)
        self.namer, self.words, self.objects = None, self.vocabulary, None
        if checkpoint.objects is not None and len(loaded) == 1:
            self.objects = checkpoint.objects.to(self.device)
            if objects:
                self.namer = Namer(self.model, self.vocabulary, self.objects)
                self.words = self.namer.vocabulary
        if checkpoint.subjects is not None and len(loaded) == 1 and objects:
            self.subjects = checkpoint.subjects.to(self.device)
            self.rules = rules_of(self.subjects, self.vocabulary)

    def searching(
        self, search: SearchConfig, mentions: Sequence[str] = (), *, objects: bool = True
    ) -> "CaptionPipeline":
        """The same models, which search so, and without nouns of `objects` where that is False."""
        other = copy.copy(self)
        other.drawing = None
        other._set(search, mentions)
        if not objects:
            other.namer, other.words, other.subjects = None, other.vocabulary, None
        return other

    def _set(self, search: SearchConfig, mentions: Sequence[str]) -> None:
        self.search, self.mentions = search, word_groups(mentions, self.vocabulary)
        self.settings = self._settings_of(search)
        if self.ranks:
            self.settings["num_captions"] = search.ranked

    def _settings_of(self, search: SearchConfig) -> dict[str, Any]:
        return settings_of(search, self.vocabulary)

    @property
    def ranks(self) -> bool:
        """Whether captions are ranked by consensus: not where they are drawn, or groups of them shall differ."""
        known = self.idf is not None and not self.drawing
        return known and self.search.rerank_weight > 0 and self.search.diverse_groups == 1

    def encode(self, batch: Tensor | tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Images or features -> what the captioner attends, and what ImageNet's network saw of images (B, C), where it is
        there and has a use."""
        names = self.namer is not None and not self.drawing
        needed = names or any(
            part is not None and part.reads_objects for part in (self.consensus, self.subjects)
        )
        if not needed or self.objects is None:
            return self.model.encode(batch), None
        with self.objects.watching(self.model.backbone) as below:
            encoded = self.model.encode(batch)
        return encoded, self.objects(torch.cat(below)) if below else None

    def silent(self, shares: Tensor | None, mentions: Sequence[Sequence[Collection[int]]]) -> Tensor | None:
        """Words that captions of images keep from, for the shares (B, K) of their `subjects`: bool (B, W), or None."""
        return None if shares is None else closed(shares, self.rules, len(self.vocabulary), mentions)

    def ranking(self, expected: Tensor | None) -> Ranking | None:
        """How captions of images of which this is `expected`, (B, W), are ranked; None where nothing is."""
        if expected is None:
            return None
        return Ranking(expected.cpu(), self.idf, self.search.rerank_weight if self.ranks else 0.0)

    def caption_batch(
        self,
        batch: Tensor | tuple[Tensor, ...],
        mentions: Sequence[Sequence[Collection[int]]] | None = None,
    ) -> list[tuple[Caption, ...]]:
        """Images uint8 (B, 3, S, S), or features as a tuple of (B, ...) -> captions of each, best first.

        mentions: for each image groups of ids of words, see `decode.beam_search` (default: those of all images).
        """
        return self._search(batch, mentions)[0]

    def trace_batch(self, batch: Tensor | tuple[Tensor, ...]) -> list[tuple[tuple[Caption, ...], Trace]]:
        """The same, with what was attended at every word of the best caption of each image.

        Raises UserError for several models that speak as one: each attends for itself.
        """
        speaker = self.speaker
        captions, state = self._search(batch)
        return [*zip(captions, trace(speaker, state, [best.tokens for best, *_ in captions]), strict=True)]

    @property
    def speaker(self) -> SCACNN:
        """The one model that says all of `words`. Raises UserError where several speak as one."""
        if len(self.models) > 1:
            raise UserError(
                f"the attention of {len(self.models)} models cannot be shown at once; give one --checkpoint"
            )
        return self.namer.model if self.namer else self.model

    @torch.inference_mode()
    def _search(
        self, batch: Tensor | tuple[Tensor, ...], mentions: Sequence[Sequence[Collection[int]]] | None = None
    ) -> tuple[list[tuple[Caption, ...]], State]:
        """The captions, and where the captioner stood before their first words."""
        batch = (
            batch.to(self.device) if isinstance(batch, Tensor) else tuple(x.to(self.device) for x in batch)
        )
        encoded, seen = self.encode(batch)
        state = self.model.start(encoded)
        mentions = [self.mentions] * len(state) if mentions is None else mentions
        silent = self.silent(read_by(self.subjects, encoded[0], seen), mentions)
        model = self.model if silent is None else Discreet(self.model, silent)
        if self.drawing:
            found = draw(model, state, **self.drawing)
        else:
            found = beam_search.beam_search(model, state, mentions=mentions, **self.settings)
        ranking = self.ranking(read_by(self.consensus, encoded[0], seen))
        found = ranking.of_all(found, mentions) if ranking else found
        if self.namer and seen is not None and not self.drawing:
            found = self.namer.improve(found, state, seen, mentions, ranking, silent, **self.settings)
        captions = [tuple(map(self._caption, hypotheses[: self.search.num_captions])) for hypotheses in found]
        return captions, state

    def _caption(self, found: stepper.Hypothesis) -> Caption:
        mean = found.log_prob / (len(found.tokens) + found.finished)
        confidence = self.calibration.probability(mean, found.consensus) if self.calibration else None
        text = self.words.decode(found.tokens)
        tokens = tuple(found.tokens)
        return Caption(
            text, found.log_prob, found.score, found.finished, mean, confidence, tokens, found.consensus
        )

    def stream(
        self, items: Iterable, read: Callable[[Any], Any] | None = None, *, traced: bool = False
    ) -> Iterator[Result]:
        """Caption `items` one batch after another and yield a Result for each, in order; `traced`, with their traces.

        `read(item)` gives an image at model size, uint8 (S, S, 3), or a tuple of features. It runs in other
        threads, ahead of the model by one batch; by default it opens the item as an image file. An item that
        it raises UserError for yields a Result with that error, and the others go on.
        """
        read = read or partial(images.load, transform=self.transform)

        def answer(contents: list) -> list[tuple[tuple[Caption, ...], Trace | None]]:
            batch = stack(contents)
            return self.trace_batch(batch) if traced else [(each, None) for each in self.caption_batch(batch)]

        for item, found in in_batches(items, read, answer, self.batch_size):
            if isinstance(found, UserError):
                yield Result(item, error=found)
            else:
                captions, attention = found
                yield Result(item, captions, trace=attention)


def read_by(part: Consensus | Subjects | None, maps: Tensor, seen: Tensor | None) -> Tensor | None:
    """What a part says of images with these maps (B, C, H, W), of which `CaptionPipeline.encode` saw that.

    None where there is no such part, or what was seen is lacking, as of stored features.
    """
    return None if part is None or (part.reads_objects and seen is None) else part(maps, seen)


def require_alike(names: Sequence, loaded: Sequence[Checkpoint]) -> None:
    """Raise UserError where checkpoints cannot speak as one."""
    first = loaded[0]
    for name, other in zip(names, loaded, strict=True):
        what = "words" if other.vocabulary != first.vocabulary else "image transform"
        if other.vocabulary != first.vocabulary or other.transform != first.transform:
            raise UserError(
                f"--checkpoint {name}: other {what} than those of {names[0]}; give models trained on one data file"
            )


def settings_of(search: SearchConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """What `decode.beam_search` takes to search so."""
    settings = dict(vars(search))
    del settings["rerank_weight"]  # it ranks what was found
    return settings | {
        "never_last": dangling(vocabulary) if settings.pop("remove_bad_endings") else (),
        "joining": joining(vocabulary) if search.block_ngrams else (),
    }


def drawing_of(sampling: SamplingConfig, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What `sampling.draw` takes to draw so, from what `decode.beam_search` takes."""
    of_beams = ("beam_size", "joining", "diverse_groups", "diversity")
    drawing = {name: value for name, value in (settings | vars(sampling)).items() if name not in of_beams}
    return drawing | {"generator": torch.Generator(device).manual_seed(drawing.pop("seed"))}
