"""Teach a captioner how far its captions can be trusted: `python -m sca_caption.calibrate`.

Captions a split that the model was not trained on, and writes into the checkpoint how the mean log-probability of a
caption goes with its CIDEr. `caption.py --scores` then prints probabilities.
"""

from pathlib import Path

import numpy as np

from sca_caption import checkpoint
from sca_caption.calibration import Calibration, fit, spearman
from sca_caption.config import Parser
from sca_caption.errors import UserError, program
from sca_caption.inference import Describer
from sca_caption.metrics import Cider, ptb_tokenize
from sca_caption.store import CaptionData

FOLDS = 10


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.calibrate", description=__doc__)
    p.add_argument("checkpoint", type=Path, help="best.pt of a run, or another captioner; it is changed")
    p.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="see preprocess.py")
    p.add_argument("--split", default="val", choices=("val", "test"), help="(default: %(default)s)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    data, describer = CaptionData(arguments.data), Describer(arguments.checkpoint)
    rows = data.indices(arguments.split).tolist()
    if len(rows) < 2 * FOLDS:
        raise UserError(
            f"{data.path} has {len(rows)} images in split {arguments.split}; at least {2 * FOLDS}"
        )
    captions = [result.captions[0] for result in describer.stream(rows, read=data.image)]
    cider = Cider([[ptb_tokenize(text) for text in data.references(row)] for row in rows])
    scores = np.array(cider.score([ptb_tokenize(caption.text) for caption in captions])[1])
    x, good = np.array([caption.mean_log_prob for caption in captions]), scores > np.median(scores)
    calibration = fit(x, good)
    checkpoint.add_metrics(arguments.checkpoint, calibration.metrics())
    print(f"Spearman's rank correlation with CIDEr over {len(rows)} images: {spearman(x, scores):.2f}")
    for low, high, share, count in reliability(x, good):
        print(f"confidence {low:.2f} to {high:.2f}: {100 * share:3.0f}% of {count} better than the median")
    return 0


def reliability(x: np.ndarray, good: np.ndarray) -> list[tuple[float, float, float, int]]:
    """Quarters by confidence, from curves fitted to other images: its range, the share of good captions, their number."""
    fold, probability = np.arange(len(x)) % FOLDS, np.empty(len(x))
    for held_out in range(FOLDS):
        curve: Calibration = fit(x[fold != held_out], good[fold != held_out])
        probability[fold == held_out] = [curve.probability(each) for each in x[fold == held_out]]
    quarters = np.array_split(probability.argsort(), 4)
    return [(probability[q].min(), probability[q].max(), good[q].mean(), len(q)) for q in quarters]


if __name__ == "__main__":
    raise SystemExit(main())
