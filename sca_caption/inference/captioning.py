"""CaptionPipeline: images in, captions out. It runs a captioner and its guides in batches, with images read ahead."""

import copy
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from sca_caption import checkpoint as checkpoints
from sca_caption import images
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import BATCH_SIZE, SamplingConfig, SearchConfig
from sca_caption.decoding.beam_search import beam_search
from sca_caption.decoding.caption_grammar import grammar_of
from sca_caption.decoding.lexical_constraints import word_groups
from sca_caption.decoding.rules import bad_endings, conjunctions
from sca_caption.decoding.sampling import draw
from sca_caption.decoding.stepper import Hypothesis
from sca_caption.guidance.distinct import content_of, select_distinct
from sca_caption.guidance.groups import gendered_words
from sca_caption.guidance.guide import ForcedWords, Guide
from sca_caption.guidance.masking import MaskedWords
from sca_caption.images import Transform
from sca_caption.inference.batching import in_batches, stack
from sca_caption.inference.captions import Caption, Result
from sca_caption.inference.torch_captioner import Inputs, TorchCaptioner
from sca_caption.models.attention_trace import Trace, trace
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.devices import find_device, require_usable
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import EOS, Vocabulary


class CaptioningModel(Protocol):
    """Interface of the captioners that the pipeline runs: `TorchCaptioner` and `export.onnx_captioner.OnnxCaptioner`."""

    vocabulary: Vocabulary
    transform: Transform
    device: torch.device
    networks: list[SCACNN]  # none in an exported model
    survives_fork: bool  # whether a forked process can use it

    @property
    def sca_cnn(self) -> SCACNN:
        """The network whose attention can be shown. Raises UserError if there is not exactly one."""

    def start(self, batch: Any, guides: Sequence[Guide]) -> tuple[Any, dict[str, Tensor]]:
        """The state before the first word, one row per image, and the predictions of guides by name."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Previous words (rows,) -> logits of all words (rows, W), and the state after them."""


class CaptionPipeline:
    """A captioning model and its guides, ready to caption. `load` makes it from checkpoints.

    Args:
        model: encoder and decoder.
        guides: in the order in which they act (see `guidance.GUIDES`).
        search: how captions are searched for.
        batch_size: images per search, an upper bound on memory: batch_size * beam_size captions grow together.
        force_words: words that every caption must contain, or of which it must contain one: "dog", "cat/cats/kitten". If
            no grammatical caption with them is found, captions lack them and say so (`Caption.missing_words`).
        guidance: whether guides may exclude words. neutral: never use words for one gender (man, girl, his, ...), with
        any model.
        sampling: draw captions at random instead of searching.

    Attributes:
        dropped_words: alternatives in `force_words` that the vocabulary lacks.

    Raises UserError for unknown words and contradicting settings.
    """

    def __init__(
        self,
        model: CaptioningModel,
        guides: Sequence[Guide] = (),
        *,
        search: SearchConfig | None = None,
        batch_size: int = BATCH_SIZE,
        force_words: Sequence[str] = (),
        guidance: bool = True,
        neutral: bool = False,
        sampling: SamplingConfig | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: must be at least 1")
        if sampling and force_words:
            raise UserError("--force-words needs a search; leave --sample out")
        self.model, self.batch_size, self.sampling = model, batch_size, sampling
        self._loaded_in = os.getpid()
        self.vocabulary, self.transform, self.device = model.vocabulary, model.transform, model.device
        self.guides, self.neutral = active(guides, guidance), neutral
        self._configure(search or SearchConfig(), force_words)
        if sampling:
            self._generator = torch.Generator(self.device).manual_seed(sampling.seed)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint | str | Path | Sequence[Checkpoint | str | Path] | None = None,
        *,
        device: str = "auto",
        style: str = "",
        **options: Any,
    ) -> Self:
        """The pipeline of a checkpoint.

        checkpoint: loaded, or the path of one; None is the model that ships; several are an ensemble, without guides.
        device: "cpu", "cuda", "cuda:1", ... or "auto": the first GPU, else the CPU. style: the data set whose manner
        captions shall have, one of `ModelConfig.styles` (default: the first). options: as for CaptionPipeline.

        Raises UserError for a checkpoint that cannot be used, and for a device or a style that does not exist.
        """
        several: Sequence[Checkpoint | str | Path | None]
        single = checkpoint is None or isinstance(checkpoint, Checkpoint | str | Path)
        several = [checkpoint] if single else checkpoint  # type: ignore[list-item,assignment]
        loaded = [each if isinstance(each, Checkpoint) else checkpoints.load(each) for each in several]
        require_same_inputs(several, loaded)
        if style:
            loaded = [with_style(each, style) for each in loaded]
        model, guides = TorchCaptioner.from_checkpoints(loaded, find_device(device))
        return cls(model, guides, **options)

    def with_search(
        self,
        search: SearchConfig,
        force_words: Sequence[str] = (),
        *,
        guidance: bool = True,
        neutral: bool | None = None,
    ) -> "CaptionPipeline":
        """Copy the pipeline with other settings. guidance=False removes the guides that exclude words.

        neutral: None keeps the pipeline's own.
        """
        other = copy.copy(self)
        other.sampling = None
        other.guides = active(self.guides, guidance)
        other.neutral = self.neutral if neutral is None else neutral
        other._configure(search, force_words)
        return other

    def _configure(self, search: SearchConfig, force_words: Sequence[str]) -> None:
        self.search, self.force_texts = search, tuple(force_words)
        self.force_words, self.dropped_words = word_groups(force_words, self.vocabulary)
        self._gendered = list(gendered_words(self.vocabulary)) if self.neutral else []
        for text, group in zip(force_words, self.force_words, strict=True):
            if set(group) <= set(self._gendered):
                raise UserError(f"--force-words {text}: --neutral excludes it; leave one of them out")
        self._rules: dict[str, Any] = {
            "min_length": search.min_length,
            "max_length": search.max_length,
            "bad_endings": bad_endings(self.vocabulary) if search.remove_bad_endings else (),
            "block_ngrams": search.block_ngrams,
            "length_penalty": search.length_penalty,
        }
        self._content = content_of(self.vocabulary) if self.selects else []
        self._beams: dict[str, Any] = {
            "beam_size": search.beam_size,
            "conjunctions": conjunctions(self.vocabulary) if search.block_ngrams else (),
            "grammar": grammar_of(self.vocabulary) if search.grammar and force_words else None,
            "num_captions": self._candidates,
            "diverse_groups": search.diverse_groups,
            "diversity": search.diversity,
        }

    @property
    def reranks(self) -> bool:
        """Whether guides rerank the candidates: not if captions are sampled, or if groups of them shall differ."""
        rated = any(guide.rates for guide in self.guides) and not self.sampling
        return rated and self.search.rerank_weight > 0 and self.search.diverse_groups == 1

    @property
    def selects(self) -> bool:
        """Whether the captions of an image are chosen to differ in content: neither samples nor diverse groups."""
        search = self.search
        several = search.num_captions > 1 and search.beam_size > 1 and search.diverse_groups == 1
        return several and search.distinct and not self.sampling

    @property
    def _candidates(self) -> int:
        """How many captions the search finds, to rerank them or to choose from them."""
        if self.reranks:
            return self.search.candidates
        return self.search.beam_size if self.selects else self.search.num_captions

    @property
    def gives_confidence(self) -> bool:
        """Whether captions have a calibrated confidence."""
        return any(guide.gives_confidence for guide in self.guides)

    @property
    def networks(self) -> list[SCACNN]:
        return self.model.networks

    @property
    def sca_cnn(self) -> SCACNN:
        """The network whose attention can be shown. Raises UserError if there is not exactly one."""
        return self.model.sca_cnn

    def caption_batch(self, batch: Inputs, forced: ForcedWords | None = None) -> list[tuple[Caption, ...]]:
        """Images uint8 (B, 3, S, S), or features as a tuple of (B, ...) -> the captions of each, best first.

        forced: groups of word ids per image (default: those of `force_words`), see `decoding.beam_search`.
        """
        return self._caption(batch, forced)[0]

    def trace_batch(self, batch: Inputs) -> list[tuple[tuple[Caption, ...], Trace]]:
        """As `caption_batch`, with attention traces of the best captions. Raises UserError as `sca_cnn` does."""
        network = self.sca_cnn
        captions, state = self._caption(batch)
        traces = trace(network, state, [best.tokens for best, *_ in captions])
        return [*zip(captions, traces, strict=True)]

    @torch.inference_mode()
    def score_caption(self, batch: Inputs, tokens: Sequence[int]) -> tuple[Caption, Trace]:
        """A given caption (word ids) of one image, with the score, ratings and confidence that a search gives it."""
        require_usable(self._loaded_in, self.model.survives_fork)
        state, predictions = self.model.start(batch, self.guides)
        (found,) = trace(self.sca_cnn, state, [[*tokens, EOS]])
        log_prob = float(np.log(np.maximum(found.probabilities, 1e-30)).sum())
        given = Hypothesis([*tokens], log_prob, log_prob, True)
        given = replace(given, score=self._length_normalised(given))
        ((rated,),) = self.rate([[given]], predictions, [self.force_words])
        return self._finish(rated), found.truncate(len(tokens))

    @torch.inference_mode()
    def _caption(
        self, batch: Inputs, forced: ForcedWords | None = None
    ) -> tuple[list[tuple[Caption, ...]], Any]:
        """The captions, and the state before their first words."""
        require_usable(self._loaded_in, self.model.survives_fork)
        state, predictions = self.model.start(batch, self.guides)
        forced = [self.force_words] * len(state) if forced is None else forced
        banned = self._banned_words(predictions, forced)
        mask = None if banned is None else MaskedWords(banned)
        if self.sampling:
            options: dict[str, Any] = {
                name: getattr(self.sampling, name) for name in ("temperature", "top_k", "top_p")
            }
            options |= {"num_captions": self.search.num_captions, "generator": self._generator, "mask": mask}
            found = draw(self.model, state, **self._rules, **options)
        else:
            search = partial(beam_search, self.model, state, mask=mask, **self._rules)
            found = search(force_words=forced, **self._beams)
        found = self.rate(found, predictions, forced)
        if self.selects:
            diverse = {"diverse_groups": self.search.beam_size, "num_captions": self.search.beam_size}
            others = [[]] * len(state) if any(forced) else search(**self._beams | diverse)
            others = self.rate(others, predictions, forced)
            found = [
                select_distinct(ranked, further, self.search.num_captions, self._content, groups)
                for ranked, further, groups in zip(found, others, forced, strict=True)
            ]
        captions = [tuple(map(self._finish, several[: self.search.num_captions])) for several in found]
        return captions, state

    def _banned_words(self, predictions: Mapping[str, Tensor], forced: ForcedWords) -> Tensor | None:
        """Words that guides exclude and neutral captions lack: bool (B, W), or None."""
        words = len(self.vocabulary)
        found = [
            guide.banned_words(predictions[guide.name], forced, words)
            for guide in self.guides
            if guide.name in predictions
        ]
        masks = [mask for mask in found if mask is not None]
        if not masks and not self._gendered:
            return None
        banned = torch.zeros(len(forced), words, dtype=torch.bool, device=self.device)
        for mask in masks:
            banned |= mask
        banned[:, self._gendered] = True
        return banned

    def rate(
        self, found: list[list[Hypothesis]], predictions: Mapping[str, Tensor], forced: ForcedWords
    ) -> list[list[Hypothesis]]:
        """Candidates with their ratings by guides, and reranked by them."""
        rating = [
            (guide, predictions[guide.name].cpu())
            for guide in self.guides
            if guide.rates and guide.name in predictions
        ]
        if not rating:
            return found
        return [
            self._rate_image(
                several,
                {guide.name: partial(guide.rate, predicted, image) for guide, predicted in rating},
                forced[image],
            )
            for image, several in enumerate(found)
        ]

    def _rate_image(
        self,
        candidates: Sequence[Hypothesis],
        rates: Mapping[str, Callable[[Sequence[int]], float]],
        groups: Sequence[Collection[int]],
    ) -> list[Hypothesis]:
        """Finished captions and those with most of the forced words stay ahead of the others."""
        weight = self.search.rerank_weight if self.reranks else 0.0
        rated = []
        for candidate in candidates:
            ratings = {name: rate(candidate.tokens) for name, rate in rates.items()}
            score = candidate.score + weight * sum(ratings.values())
            rated.append(replace(candidate, score=score, ratings=ratings))

        def key(candidate: Hypothesis) -> tuple[int, bool, float]:
            missing = sum(set(group).isdisjoint(candidate.tokens) for group in groups)
            return missing, not candidate.finished, -candidate.score

        return sorted(rated, key=key) if weight else rated

    def _length_normalised(self, caption: Hypothesis) -> float:
        """Its score without ratings."""
        return caption.log_prob / caption.length**self.search.length_penalty

    def _finish(self, found: Hypothesis) -> Caption:
        mean = found.log_prob / found.length
        confidences = (guide.confidence(mean, found.ratings) for guide in self.guides)
        return Caption(
            text=self.vocabulary.decode(found.tokens),
            log_prob=found.log_prob,
            score=found.score,
            finished=found.finished,
            mean_log_prob=mean,
            confidence=next((each for each in confidences if each is not None), None),
            tokens=tuple(found.tokens),
            ratings=found.ratings,
            missing_words=tuple(
                text
                for text, group in zip(self.force_texts, self.force_words, strict=True)
                if set(group).isdisjoint(found.tokens)
            ),
        )

    def stream(
        self,
        items: Iterable,
        read: Callable[[Any], Any] | None = None,
        *,
        take: Callable[[Any], Any] = lambda item: item,
        traced: bool = False,
    ) -> Iterator[Result]:
        """Caption `items` batch by batch and yield a Result for each, in order; with their traces if `traced`.

        `read(item)` returns an image at model size, uint8 (S, S, 3), or a tuple of features; by default it opens the item
        as an image file. It runs in other threads, one batch ahead of the model, on what `take(item)` returns, which runs
        in the caller's thread as the item comes. An item for which one of them raises UserError yields a Result with that
        error, and the others continue.
        """
        read = read or partial(images.load, transform=self.transform)

        def answer(contents: list) -> list[tuple[tuple[Caption, ...], Trace | None]]:
            batch = stack(contents)
            if traced:
                return list(self.trace_batch(batch))
            return [(each, None) for each in self.caption_batch(batch)]

        for item, found in in_batches(items, read, answer, self.batch_size, take):
            if isinstance(found, UserError):
                yield Result(item, error=found)
            else:
                captions, attention = found
                yield Result(item, captions, trace=attention)


def active(guides: Sequence[Guide], guidance: bool) -> list[Guide]:
    """All guides, or without guidance those that exclude no words."""
    return [guide for guide in guides if guidance or not guide.excludes]


def with_style(checkpoint: Checkpoint, style: str) -> Checkpoint:
    """The checkpoint with another default style; its weights are shared. Raises UserError if it has no such style."""
    model = copy.copy(checkpoint.captioner)
    model.set_style(style)
    return replace(checkpoint, model=model)


def require_same_inputs(names: Sequence, loaded: Sequence[Checkpoint]) -> None:
    """Raise UserError for checkpoints that cannot be an ensemble."""
    first = loaded[0]
    for name, other in zip(names, loaded, strict=True):
        differs = "words" if other.vocabulary != first.vocabulary else "image transform"
        if other.vocabulary != first.vocabulary or other.transform != first.transform:
            raise UserError(
                f"--checkpoint {name}: other {differs} than {names[0]}; give models trained on one data file"
            )
