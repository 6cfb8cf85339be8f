"""Fit guides to a trained captioner and a data file: consensus reranking, presence of subjects, confidence."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sca_caption.checkpoint import Checkpoint
from sca_caption.config import BATCH_SIZE
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.evaluation.cider import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.confidence import ConfidenceModel, fit_confidence, spearman
from sca_caption.guidance.consensus import ConsensusPredictor, fit_consensus
from sca_caption.guidance.guide import TrainedGuide
from sca_caption.guidance.hallucination import MIN_IMAGES, PresenceClassifier, fit_presence
from sca_caption.guidance.image_features import signed_sqrt_pool
from sca_caption.inference.batching import in_batches, reader, stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.runtime.errors import UserError

RANK = 256  # of the consensus map: as good as full rank on Flickr8k's dev, and smaller
CONSENSUS_RIDGE, CONTRAST = 1.0, 0.05  # chosen there too
PRESENCE_RIDGE = 1e-4  # a tenth, or three times as much, is as good on MSCOCO's photographs
FOLDS = 10

Fit = Callable[[Checkpoint, CaptionDataset, Sequence[int], torch.device], tuple[TrainedGuide, list[str]]]


def fit_consensus_from_dataset(
    checkpoint: Checkpoint, data: CaptionDataset, rows: Sequence[int], device: torch.device
) -> tuple[ConsensusPredictor, list[str]]:
    """The consensus predictor of the references of the images `rows`, and lines to print."""
    words = checkpoint.vocabulary
    assert words is not None
    features, channels = features_from_dataset(checkpoint, data, rows, device)
    captions = [
        [words.encode(word for word in ptb_tokenize(text) if word in words) for text in data.references(row)]
        for row in rows
    ]
    fitted = fit_consensus(features, captions, len(words), RANK, CONSENSUS_RIDGE, CONTRAST, channels)
    return fitted, [f"fitted to the references of {len(rows)} images"]


def fit_presence_from_dataset(
    checkpoint: Checkpoint, data: CaptionDataset, rows: Sequence[int], device: torch.device
) -> tuple[PresenceClassifier, list[str]]:
    """The presence classifier of the references of the images `rows`, and lines to print.

    Raises UserError if too few images have, or lack, people and dogs.
    """
    features, channels = features_from_dataset(checkpoint, data, rows, device)
    references = [[ptb_tokenize(text) for text in data.references(row)] for row in rows]
    fitted = fit_presence(features, references, PRESENCE_RIDGE, channels)
    if fitted is None:
        raise UserError(
            f"{data.path}: fewer than {MIN_IMAGES} images whose captions mention people or dogs, or whose captions do "
            "not; add photographs of other things"
        )
    return fitted, [f"fitted {', '.join(fitted.names)} to the references of {len(rows)} images"]


def features_from_dataset(
    checkpoint: Checkpoint, data: CaptionDataset, rows: Sequence[int], device: torch.device
) -> tuple[Tensor, list[int]]:
    """`signed_sqrt_pool` of the images `rows`, (N, C), and how many features belong to each network.

    Raises UserError if there are no rows, and for an image that cannot be read.
    """
    if not rows:
        raise UserError(f"{data.path} has 0 images in that split; choose another --split")
    model, guides = TorchCaptioner.from_checkpoints([checkpoint], device)
    read = reader(data, model.networks, model.transform)

    def features_of(contents: list) -> Tensor:
        maps, features = model.encode(stack(contents), guides)
        return signed_sqrt_pool(maps[0], features).cpu()

    found = []
    with torch.inference_mode():
        answers = in_batches(rows, read, features_of, BATCH_SIZE)
        for _, each in tqdm(answers, total=len(rows), unit="image", disable=None, dynamic_ncols=True):
            if isinstance(each, UserError):
                raise each
            found.append(each)
    stacked, own = torch.stack(found), checkpoint.captioner.backbone.channels[0]
    return stacked, [count for count in (own, stacked.shape[1] - own) if count]


def fit_confidence_from_dataset(
    checkpoint: Checkpoint, data: CaptionDataset, rows: Sequence[int], device: torch.device
) -> tuple[ConfidenceModel, list[str]]:
    """The confidence model of the captions of the images `rows`, and lines to print: how well it does on held-out images.

    Raises UserError for fewer than 2 * FOLDS images, for stored features if a guide reads images, and for an image that
    cannot be read.
    """
    if len(rows) < 2 * FOLDS:
        raise UserError(f"{data.path} has {len(rows)} images in that split; at least {2 * FOLDS} are needed")
    pipeline = CaptionPipeline.load(checkpoint, device=str(device))
    blind = [
        guide.name
        for guide in pipeline.guides
        if guide.prediction and checkpoint.guides[guide.name].reads_features
    ]
    if data.encoding == "features" and blind:
        raise UserError(
            f"{data.path} holds features, but {', '.join(blind)} of this model reads images; "
            "preprocess with --encoding jpeg"
        )
    read = reader(data, pipeline.networks, pipeline.transform)
    captions = []
    for result in pipeline.stream(rows, read=read):
        if result.error:
            raise result.error
        captions.append(result.captions[0])
    cider = Cider([[ptb_tokenize(text) for text in data.references(row)] for row in rows])
    scores = np.array(cider.score([ptb_tokenize(caption.text) for caption in captions])[1])
    x, good = np.array([caption.mean_log_prob for caption in captions]), scores > np.median(scores)
    ratings = {
        name: np.array([caption.ratings[name] for caption in captions]) for name in captions[0].ratings
    }
    confidence = held_out_confidence(x, good, ratings)
    lines = [
        f"Spearman's rank correlation with CIDEr over {len(rows)} images: {spearman(confidence, scores):.2f}"
    ]
    for quarter in np.array_split(confidence.argsort(), 4):
        low, high = confidence[quarter].min(), confidence[quarter].max()
        share, count = 100 * good[quarter].mean(), len(quarter)
        lines.append(f"confidence {low:.2f} to {high:.2f}: {share:3.0f}% of {count} better than the median")
    return fit_confidence(x, good, ratings), lines


def held_out_confidence(x: np.ndarray, good: np.ndarray, ratings: dict[str, np.ndarray]) -> np.ndarray:
    """Confidence in each caption, (N,), by models fitted to the other folds; arguments as for `fit_confidence`."""
    fold, confidence = np.arange(len(x)) % FOLDS, np.empty(len(x))
    for left_out in range(FOLDS):
        others = fold != left_out
        model = fit_confidence(
            x[others], good[others], {name: each[others] for name, each in ratings.items()}
        )
        for row in np.flatnonzero(~others):
            confidence[row] = model.probability(x[row], {name: each[row] for name, each in ratings.items()})
    return confidence


# What `python -m sca_caption fit NAME` fits, and the split that it reads by default.
FITS: dict[str, tuple[Fit, str]] = {
    "consensus": (fit_consensus_from_dataset, "train"),
    "presence": (fit_presence_from_dataset, "train"),
    "confidence": (fit_confidence_from_dataset, "val"),
}
