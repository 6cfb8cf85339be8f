"""The table and the figure of a comparison of attention blocks."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sca_caption.benchmarks.attention import Cost
from sca_caption.evaluation.classification_metrics import best_mean
from sca_caption.evaluation.significance import ERRATIC, Comparison, compare_with_control

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = (
    "block",
    "top-1",
    "best five",
    "difference",
    "p",
    "parameters",
    "multiply-adds",
    "forward",
    "training",
)
BEST = 5  # epochs
ROW_HEIGHT = 0.28  # inches


@dataclass(frozen=True)
class Row:
    """A block's results: top-1 of every epoch per seed, of complete runs alone, and its cost."""

    name: str
    scores: Sequence[Sequence[float]]  # seeds, epochs
    cost: Cost

    @property
    def last(self) -> list[float]:
        """Top-1 of the last epoch per seed."""
        return [epochs[-1] for epochs in self.scores]


def table(rows: Sequence[Row], test_to_train: float, unfit: Mapping[str, str]) -> str:
    """A Markdown table; the first row is the plain network. A block that lacks seeds is not compared.

    test_to_train: see `compare_with_control`. unfit: blocks that do not fit the network, and why.
    """
    compared, limit = compare(rows, test_to_train)
    seeds = len(rows[0].scores)
    lines = [f"| {' | '.join(HEAD)} |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        name = row.name if row is rows[0] else f"`{row.name}`"
        found = compared.get(row.name)
        versus = (
            f"{found.difference:+.2f} | {format_p(found.adjusted)}{'*' * found.erratic}" if found else " | "
        )
        lines.append(f"| {name} | {spread(row.last, seeds)} | {best(row)} | {versus} | {row.cost.cells()} |")
    lines += [f"| `{name}` | does not fit |" + " |" * (len(HEAD) - 2) for name in unfit]
    lines += ["", f"top-1 in %: mean and standard deviation over {seeds} seeds, last epoch."]
    if compared:
        lines.append(
            f"p: paired with the plain network, Holm's method for {len(compared)} blocks. A difference of less than "
            f"{limit:.2f} points would not be significant (5%) even for a single block."
        )
    if any(found.erratic for found in compared.values()):
        lines.append(
            f"*: more than {ERRATIC:g} times the usual spread over seeds, so tested by its own spread."
        )
    return "\n".join(lines)


def compare(rows: Sequence[Row], test_to_train: float) -> tuple[dict[str, Comparison], float]:
    """Comparisons with the first row by block, of blocks with as many seeds, and the smallest significant difference."""
    seeds = len(rows[0].scores)
    complete = [row for row in rows[1:] if len(row.scores) == seeds]
    if seeds < 2 or not complete:
        return {}, 0.0
    scores = np.array([row.last for row in (rows[0], *complete)])
    comparisons, limit = compare_with_control(scores, test_to_train)
    return {row.name: found for row, found in zip(complete, comparisons, strict=True)}, limit


def spread(values: Sequence[float], seeds: int) -> str:
    """Mean and standard deviation; also the number of values if it is not `seeds`."""
    if not values:
        return "unfinished"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}" + f" (n = {len(values)})" * (len(values) != seeds)


def best(row: Row) -> str:
    """The mean over seeds of the mean of the best five epochs, or of all if there are fewer."""
    return f"{statistics.mean(best_mean(epochs, BEST) for epochs in row.scores):.2f}" if row.scores else ""


def format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def draw(rows: Sequence[Row], title: str) -> "Figure":
    """Top-1 per block with its seeds, mean and standard deviation, beside the ratio of its training time."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.scores]
    figure = Figure((8, 1.3 + ROW_HEIGHT * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    figure.suptitle(title, fontsize=10)
    for place, row in enumerate(shown):
        deviation = statistics.stdev(row.last) if len(row.last) > 1 else 0.0
        left.plot(row.last, [place] * len(row.last), "o", color="0.6", markersize=4)
        left.errorbar(
            statistics.mean(row.last),
            place,
            xerr=deviation,
            color="tab:blue",
            marker="D",
            markersize=5,
            capsize=3,
        )
        right.barh(place, row.cost.training, color="tab:blue", height=0.6)
    if shown and shown[0] is rows[0]:
        left.axvline(statistics.mean(rows[0].last), color="tab:red", linewidth=1)
    left.set_yticks(range(len(shown)), [row.name for row in shown])
    left.invert_yaxis()
    left.set_xlabel("top-1 in %: seeds, mean, standard deviation; red: the plain network")
    right.axvline(1, color="tab:red", linewidth=1)
    right.set_xlabel("training time, ratio")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    return figure
