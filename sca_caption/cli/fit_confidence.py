"""Teach a captioner how far its captions can be trusted: `python -m sca_caption fit confidence`.

Captions a split that the model was not trained on, and writes into the checkpoint how the mean log-probability of a
caption, and the consensus it can expect, go with its CIDEr. `caption.py --scores` then prints probabilities.
"""

from pathlib import Path

import numpy as np

from sca_caption import checkpoint
from sca_caption.cli.parser import Parser, program
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.evaluation.caption_metrics import Cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.guidance.confidence import fit, spearman
from sca_caption.inference.batching import reader
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError

FOLDS = 10


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption fit confidence", description=__doc__)
    p.add_argument("checkpoint", type=Path, help="best.pt of a run, or another captioner; it is changed")
    p.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="see preprocess.py")
    p.add_argument("--split", default="val", choices=("val", "test"), help="(default: %(default)s)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    data, pipeline = CaptionDataset(arguments.data), CaptionPipeline(arguments.checkpoint)
    rows = data.indices(arguments.split).tolist()
    if len(rows) < 2 * FOLDS:
        raise UserError(
            f"{data.path} has {len(rows)} images in split {arguments.split}; at least {2 * FOLDS}"
        )
    read = reader(data, pipeline.models, pipeline.transform)
    captions = [result.captions[0] for result in pipeline.stream(rows, read=read)]
    cider = Cider([[ptb_tokenize(text) for text in data.references(row)] for row in rows])
    scores = np.array(cider.score([ptb_tokenize(caption.text) for caption in captions])[1])
    x, good = np.array([caption.mean_log_prob for caption in captions]), scores > np.median(scores)
    consensus = None
    if pipeline.consensus is not None:
        consensus = np.array([caption.consensus for caption in captions])
    checkpoint.add_metrics(arguments.checkpoint, fit(x, good, consensus).metrics())
    confidence = held_out(x, good, consensus)
    print(
        f"Spearman's rank correlation with CIDEr over {len(rows)} images: {spearman(confidence, scores):.2f}"
    )
    for quarter in np.array_split(confidence.argsort(), 4):
        low, high = confidence[quarter].min(), confidence[quarter].max()
        share, count = 100 * good[quarter].mean(), len(quarter)
        print(f"confidence {low:.2f} to {high:.2f}: {share:3.0f}% of {count} better than the median")
    return 0


def held_out(x: np.ndarray, good: np.ndarray, consensus: np.ndarray | None = None) -> np.ndarray:
    """The confidence in each caption, (N,), from curves fitted to the captions of other images; arguments as `fit`'s."""
    fold, confidence = np.arange(len(x)) % FOLDS, np.empty(len(x))
    for left_out in range(FOLDS):
        others = fold != left_out
        curve = fit(x[others], good[others], None if consensus is None else consensus[others])
        for row in np.flatnonzero(~others):
            confidence[row] = curve.probability(x[row], None if consensus is None else consensus[row])
    return confidence


if __name__ == "__main__":
    raise SystemExit(main())
