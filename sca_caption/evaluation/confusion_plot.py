"""A picture of what a classifier took for what."""

from pathlib import Path

import numpy as np

from sca_caption.evaluation.classification_metrics import CONFIDENCE, Scores
from sca_caption.runtime.figures import save_figure, shortened

COUNTED = 20  # up to so many classes the cells say how many images they hold
NAMED = 120  # up to so many the axes name the classes


def save_confusion(path: Path, scores: Scores, title: str) -> None:
    """Draw the confusion matrix, each row as shares of the images of its class; .png, .svg or .pdf.

    Rows are the truth, columns what was predicted. Rare mistakes would be invisible among many classes, so that there
    the colours follow the square root of the share. Raises UserError where the file cannot be written.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    K = len(scores.per_class)
    totals = scores.confusion.sum(1, keepdims=True)
    shares = np.where(totals, 100 * scores.confusion / np.maximum(totals, 1), np.nan)
    side = 2 + min(12.0, max(2.5, 0.5 * K if K <= COUNTED else 4 + 0.1 * K))  # inches
    figure = Figure((side + 1, side), layout="compressed")
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")  # shows through for a class of which there is no image
    norm = PowerNorm(1.0 if K <= COUNTED else 0.5, 0, 100)
    picture = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(picture, ax=axes, label="% of the images of the true class", shrink=0.8, fraction=0.05)

    low, high = scores.interval
    found = f"top-1 {scores.top1:.1f} % ({CONFIDENCE}% interval {low:.1f} to {high:.1f}), {scores.images:,} images"
    axes.set_title(f"{title}\n{found}", fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if K <= NAMED:
        names, size = [shortened(name) for name in scores.per_class], max(5.5, min(9.0, 300 / K))
        axes.set_yticks(range(K), names, fontsize=size)
        if K <= COUNTED:
            axes.set_xticks(range(K), names, fontsize=size, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(range(K), names, fontsize=size, rotation=90)
        axes.tick_params(length=2 if K <= COUNTED else 0, pad=2)
    else:
        axes.set_xlabel("predicted (number of the class)")
        axes.set_ylabel("truth (number of the class)")
    if K <= COUNTED:
        for (row, column), count in np.ndenumerate(scores.confusion):
            if count:
                colour = "white" if shares[row, column] > 60 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path, "--confusion")
