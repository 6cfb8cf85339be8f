"""Reliability diagram of calibrated confidence (Guo et al. 2017, arXiv 1706.04599, figure 4)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sca_caption.guidance.confidence import HeldOut, expected_calibration_error, reliability_bins
from sca_caption.runtime.figures import shorten_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^Dv<>PX*"  # tell files apart without colours
LEGEND_TITLE = "expected calibration error (ECE) per data file"
LEGEND_LINE = 0.21  # inches per line of the legend


def draw_reliability(held_out: Mapping[str, HeldOut]) -> "Figure":
    """The share of good captions by confidence, one line per data file, and the diagonal of perfect calibration.

    held_out: by the file's name. A point is a bin of `reliability_bins`, at its mean confidence.
    """
    from matplotlib.figure import Figure

    figure = Figure((5.4, 5.3 + LEGEND_LINE * (2 + len(held_out))), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1, label="perfect calibration")
    for number, (name, each) in enumerate(held_out.items()):
        means, shares, _ = reliability_bins(each.confidence, each.good)
        error = expected_calibration_error(each.confidence, each.good)
        axes.plot(
            means,
            shares,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            label=f"{shorten_name(name)}: {len(each.good):,} captions, ECE {error:.3f}",
        )
    axes.set_xlabel("held-out confidence")
    axes.set_ylabel("share of captions better than the median")
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks)
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, title=LEGEND_TITLE, title_fontsize=9)
    return figure
