"""Figure of a classifier's confusion matrix."""

from pathlib import Path

import numpy as np

from sca_caption.evaluation.classification_metrics import CONFIDENCE, Scores
from sca_caption.runtime.figures import save_figure, shorten_name

MAX_COUNTS = 20  # with at most so many classes, cells show their number of images
MAX_NAMES = 120  # with at most so many classes, the axes show class names


def save_confusion(path: Path, scores: Scores, title: str) -> None:
    """Draw the confusion matrix as a .png, .svg or .pdf file. Each row is in per cent of the images of its class.

    Rows are true classes, columns predicted classes. With more than MAX_COUNTS classes, colours are proportional to the
    square root of the value, so that rare mistakes are visible. Raises UserError if the file cannot be written.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    K = len(scores.per_class)
    totals = scores.confusion.sum(1, keepdims=True)
    percent = np.where(totals, 100 * scores.confusion / np.maximum(totals, 1), np.nan)
    side = 2 + min(12.0, max(2.5, 0.5 * K if K <= MAX_COUNTS else 4 + 0.1 * K))  # inches
    figure = Figure((side + 1, side), layout="compressed")
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")  # visible in rows of classes without images
    norm = PowerNorm(1.0 if K <= MAX_COUNTS else 0.5, 0, 100)
    picture = axes.imshow(percent, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(picture, ax=axes, label="% of the images of the true class", shrink=0.8, fraction=0.05)

    low, high = scores.interval
    found = f"top-1 {scores.top1:.1f} % ({CONFIDENCE}% interval {low:.1f} to {high:.1f}), {scores.images:,} images"
    axes.set_title(f"{title}\n{found}", fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if K <= MAX_NAMES:
        names, size = [shorten_name(name) for name in scores.per_class], max(5.5, min(9.0, 300 / K))
        axes.set_yticks(range(K), names, fontsize=size)
        if K <= MAX_COUNTS:
            axes.set_xticks(range(K), names, fontsize=size, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(range(K), names, fontsize=size, rotation=90)
        axes.tick_params(length=2 if K <= MAX_COUNTS else 0, pad=2)
    else:
        axes.set_xlabel("predicted (class index)")
        axes.set_ylabel("truth (class index)")
    if K <= MAX_COUNTS:
        for (row, column), count in np.ndenumerate(scores.confusion):
            if count:
                colour = "white" if percent[row, column] > 60 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path, "--confusion")
