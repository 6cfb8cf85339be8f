"""Fit guides to a trained captioner and data files: consensus reranking, predicted words, confidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sca_caption.checkpoint import Checkpoint
from sca_caption.config import BATCH_SIZE
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.confidence import HeldOut, fit_confidence, ranks, spearman
from sca_caption.guidance.consensus import fit_consensus, signed_sqrt
from sca_caption.guidance.groups import genders, mention_groups
from sca_caption.guidance.guide import TrainedGuide
from sca_caption.guidance.words import fit_words, gender_sums, mention_rates
from sca_caption.inference.batching import in_batches, reader, stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.captions import Caption
from sca_caption.inference.torch_captioner import TorchCaptioner, require_word_predictor
from sca_caption.runtime.errors import UserError

RANK = 256  # of the consensus map: as good as full rank on Flickr8k's dev, and smaller
CONSENSUS_RIDGE, CONTRAST = 1.0, 0.05  # chosen there too
FOLDS = 10


@dataclass(frozen=True)
class Fitted:
    """A fitted guide.

    Attributes:
        lines: what the program prints of the fit.
        held_out: of the confidence model, the held-out captions of each data file, by the file's name without .h5.
    """

    guide: TrainedGuide
    lines: list[str]
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)


# A checkpoint, data files, rows of the images to fit to, and the device to run the captioner on.
Fit = Callable[[Checkpoint, Mixture, Sequence[int], torch.device], Fitted]


# ---- guides that predict words of images -----------------------------------------------------------------------------


def fit_consensus_from_dataset(
    checkpoint: Checkpoint, data: Mixture, rows: Sequence[int], device: torch.device
) -> Fitted:
    """The consensus predictor of the references of the images `rows`."""
    words = checkpoint.vocabulary
    assert words is not None
    features = features_from_dataset(checkpoint, data, rows, device)
    captions = [
        [words.encode(word for word in ptb_tokenize(text) if word in words) for text in data.references(row)]
        for row in rows
    ]
    fitted = fit_consensus(features, captions, len(words), RANK, CONSENSUS_RIDGE, CONTRAST)
    return Fitted(fitted, [f"fitted to the references of {count_images(data, rows)}"])


def features_from_dataset(
    checkpoint: Checkpoint, data: Mixture, rows: Sequence[int], device: torch.device
) -> Tensor:
    """`signed_sqrt` of `State.features` of the images `rows`, (N, C).

    Raises UserError if a file has no rows, and for an image that cannot be read.
    """
    require_images(data, rows)
    model, _ = TorchCaptioner.from_checkpoints([replace(checkpoint, guides={})], device)

    def features_of(contents: list) -> Tensor:
        state, _ = model.start(stack(contents), [])
        return signed_sqrt(state.features).cpu()

    return compute_for_images(features_of, model, data, rows)


def compute_for_images(
    compute: Callable[[list], Tensor], model: TorchCaptioner, data: Mixture, rows: Sequence[int]
) -> Tensor:
    """What `compute` returns for batches of the images `rows`, in their order: (N, ...), with a progress bar.

    Raises UserError for an image that cannot be read.
    """
    found = []
    with torch.inference_mode():
        answers = in_batches(rows, reader(data, model.networks, model.transform), compute, BATCH_SIZE)
        for _, each in tqdm(answers, total=len(rows), unit="image", disable=None, dynamic_ncols=True):
            if isinstance(each, UserError):
                raise each
            found.append(each)
    return torch.stack(found)


def fit_words_from_dataset(
    checkpoint: Checkpoint, data: Mixture, rows: Sequence[int], device: torch.device
) -> Fitted:
    """The guide by predicted words, with thresholds for the images `rows`.

    Raises UserError for a captioner without a word predictor, if a file has no rows, and for an image that cannot be
    read.
    """
    require_word_predictor(checkpoint.captioner, "words")
    require_images(data, rows)
    words = checkpoint.vocabulary
    assert words is not None
    groups, (male, female, _) = [*mention_groups(words).values()], genders(words)
    model, _ = TorchCaptioner.from_checkpoints([replace(checkpoint, guides={})], device)

    def summary_of(contents: list) -> Tensor:
        state, _ = model.start(stack(contents), [])
        predicted = state.words.sigmoid()
        return torch.cat([mention_rates(predicted, groups), gender_sums(predicted, male, female)], 1).cpu()

    rates, sums = compute_for_images(summary_of, model, data, rows).split([len(groups), 2], 1)
    references = [[words.encode(ptb_tokenize(text)) for text in data.references(row)] for row in rows]
    fitted, lines = fit_words(words, rates, sums, references)
    return Fitted(fitted, [f"thresholds chosen by the references of {count_images(data, rows)}", *lines])


# ---- confidence ------------------------------------------------------------------------------------------------------


def fit_confidence_from_dataset(
    checkpoint: Checkpoint, data: Mixture, rows: Sequence[int], device: torch.device
) -> Fitted:
    """The confidence model of the captions of the images `rows`, and how well it does on held-out images.

    Each file is captioned in its own style if the model has it, otherwise in the default style. A caption is good if its
    CIDEr, among the references of its own file, is above the median of the captions of that file.

    Raises UserError for fewer than 2 * FOLDS images of a file, and for an image that cannot be read.
    """
    require_images(data, rows, 2 * FOLDS)
    files = rows_by_file(data, rows)
    captions, scores = [], []
    for file, own_rows in files:
        found = captions_from_dataset(checkpoint, file, own_rows, device)
        cider = Cider([[ptb_tokenize(text) for text in file.references(row)] for row in own_rows])
        captions += found
        scores.append(np.array(cider.score([ptb_tokenize(caption.text) for caption in found])[1]))
    x = np.array([caption.mean_log_prob for caption in captions])
    good = np.concatenate([each > np.median(each) for each in scores])
    ratings = {
        name: np.array([caption.ratings[name] for caption in captions]) for name in captions[0].ratings
    }
    confidence = held_out_confidence(x, good, ratings)
    ends = np.cumsum([len(each) for each in scores])[:-1]
    held_out = {
        file.path.stem: HeldOut(*each)
        for (file, _), *each in zip(
            files, np.split(confidence, ends), scores, np.split(good, ends), strict=True
        )
    }
    styles = [style_of(checkpoint, file) for file, _ in files]
    return Fitted(fit_confidence(x, good, ratings), confidence_lines(held_out, styles), held_out)


def style_of(checkpoint: Checkpoint, file: CaptionDataset) -> str:
    """The style that a file is captioned in: its name, if the model has it, otherwise the default; "" without styles."""
    model, name = checkpoint.captioner, file.path.stem
    styles = model.config.styles
    if not styles:
        return ""
    return name if name in styles else styles[model.default_style]


def captions_from_dataset(
    checkpoint: Checkpoint, file: CaptionDataset, rows: Sequence[int], device: torch.device
) -> list[Caption]:
    """The best captions of images in the style of their file. Raises UserError as `fit_confidence_from_dataset` does."""
    style = style_of(checkpoint, file)
    pipeline = CaptionPipeline.load(checkpoint, device=str(device), style=style)
    captions = []
    for result in pipeline.stream(rows, reader(file, pipeline.networks, pipeline.transform)):
        if result.error:
            raise result.error
        captions.append(result.captions[0])
    return captions


def held_out_confidence(x: np.ndarray, good: np.ndarray, ratings: dict[str, np.ndarray]) -> np.ndarray:
    """Confidence in each caption, (N,), by models fitted to the other folds; arguments as for `fit_confidence`.

    Every tenth caption is of one fold, so that each fold has captions of all files.
    """
    fold, confidence = np.arange(len(x)) % FOLDS, np.empty(len(x))
    for left_out in range(FOLDS):
        others = fold != left_out
        model = fit_confidence(
            x[others], good[others], {name: each[others] for name, each in ratings.items()}
        )
        for row in np.flatnonzero(~others):
            confidence[row] = model.probability(x[row], {name: each[row] for name, each in ratings.items()})
    return confidence


def confidence_lines(held_out: Mapping[str, HeldOut], styles: Sequence[str]) -> list[str]:
    """Rank correlation and quarters of held-out captions, per file and together.

    styles: per file, the style of its captions; "" for a model without styles. Together, captions are compared by the
    rank of their CIDEr within their own file, because CIDEr of different references cannot be compared.
    """
    if len(held_out) == 1:
        (only,) = held_out.values()
        return correlation_and_quarters(only, "CIDEr")
    lines = [f"fitted to the captions of {len(held_out)} files"]
    for (name, each), style in zip(held_out.items(), styles, strict=True):
        first, *others = correlation_and_quarters(each, "CIDEr")
        lines += [f"{name} (style {style}): {first}" if style else f"{name}: {first}", *others]
    together = HeldOut(
        np.concatenate([each.confidence for each in held_out.values()]),
        np.concatenate([ranks(each.quality) / len(each.quality) for each in held_out.values()]),
        np.concatenate([each.good for each in held_out.values()]),
    )
    first, *others = correlation_and_quarters(together, "the rank of CIDEr within each file")
    return [*lines, f"together: {first}", *others]


def correlation_and_quarters(held_out: HeldOut, quality: str) -> list[str]:
    """Five lines. quality: name of what captions are compared by."""
    confidence, good = held_out.confidence, held_out.good
    correlation = spearman(confidence, held_out.quality)
    lines = [f"Spearman's rank correlation with {quality} over {len(confidence)} images: {correlation:.2f}"]
    for quarter in np.array_split(confidence.argsort(), 4):
        low, high = confidence[quarter].min(), confidence[quarter].max()
        share, size = 100 * good[quarter].mean(), len(quarter)
        lines.append(f"confidence {low:.2f} to {high:.2f}: {share:3.0f}% of {size} better than the median")
    return lines


# ---- data files ------------------------------------------------------------------------------------------------------


def rows_by_file(data: Mixture, rows: Sequence[int]) -> list[tuple[CaptionDataset, list[int]]]:
    """Each data file with its own numbers of those of the images `rows` that it holds."""
    return [
        (file, [row - part.start for row in rows if row in part])
        for file, part in zip(data.files, data.parts, strict=True)
    ]


def require_images(data: Mixture, rows: Sequence[int], least: int = 1) -> None:
    """Raise UserError if fewer than `least` of the images `rows` are of one of the files."""
    for file, own_rows in rows_by_file(data, rows):
        if len(own_rows) < least:
            needed = f"at least {least} are needed" if least > 1 else "choose another --split"
            raise UserError(f"{file.path} has {len(own_rows)} images in that split; {needed}")


def count_images(data: Mixture, rows: Sequence[int]) -> str:
    """The number of images, and of files if there are several."""
    return f"{len(rows)} images" + (f" of {len(data.files)} files" if len(data.files) > 1 else "")


# What `python -m sca_caption fit NAME` fits, and the split that it reads by default.
FITS: dict[str, tuple[Fit, str]] = {
    "consensus": (fit_consensus_from_dataset, "train"),
    "words": (fit_words_from_dataset, "val"),
    "confidence": (fit_confidence_from_dataset, "val"),
}
