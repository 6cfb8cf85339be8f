"""Figures of training runs: the progress of one run, and the validation scores of several."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = {"caption": "CIDEr", "classify": "top-1"}  # the validation score of each task
LINE_COLOR, FUTURE_COLOR, BEST_COLOR = "tab:blue", "0.75", "tab:red"


# ---- several runs ----------------------------------------------------------------------------------------------------


def scores(runs: Sequence[Path]) -> tuple[str, dict[str, dict[int, float]]]:
    """The name of the runs' validation score, and its values: run -> epoch -> score.

    Raises UserError if a folder has no run, if a run has no scores, and for captioners beside classifiers.
    """
    from sca_caption import checkpoint

    found: dict[str, dict[int, float]] = {}
    first = ""
    for run in runs:
        task, history = checkpoint.training_history(run / "last.pt")
        first = first or task
        if task != first:
            raise UserError(
                f"{run} is a run of --task {task}, {runs[0]} one of --task {first}; their scores differ, plot them apart"
            )
        name = SCORES[task]
        found[str(run)] = {record["epoch"]: record[name] for record in history if name in record}
        if not found[str(run)]:
            raise UserError(f"{run / 'last.pt'} has no {name} of validation images; give another run")
    return SCORES[first], found


def draw_curves(runs: Mapping[str, Mapping[int, float]], score: str) -> "Figure":
    """Validation scores by epoch, one line per run; epoch 0 is the score before training. score: its name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in runs.items():
        axes.plot(list(values), list(values.values()), marker="o", markersize=4, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {score}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


# ---- one run ---------------------------------------------------------------------------------------------------------


def save_progress(
    path: Path,
    history: Sequence[dict],
    loss_name: str,
    score_name: str,
    rates: Sequence[tuple[float, float]],
    title: str,
) -> None:
    """Write the figure of `draw_run` to `path` (.svg, .png or .pdf). Raises UserError if it cannot be written."""
    save_figure(draw_run(history, loss_name, score_name, rates, title), path, "--output")


def draw_run(
    history: Sequence[dict],
    loss_name: str,
    score_name: str,
    rates: Sequence[tuple[float, float]],
    title: str,
) -> "Figure":
    """Training loss, validation score and learning rate in three panels over the epochs.

    history: one dict per epoch, as `loop.train` returns it. loss_name: "loss" or "reward". score_name: the validation
    figure that chooses best.pt; the panel is left out if the history does not have it. rates: pairs (epochs passed,
    learning rate) over the whole run; the part that is still to come is grey.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scored = [(record["epoch"], record[score_name]) for record in history if score_name in record]
    panels = 3 if scored else 2
    height = 1 + 1.9 * panels  # inches
    figure = Figure((7, height))
    # Margins are fixed, because computing a layout would take longer than drawing the figure.
    edges = {"left": 0.12, "right": 0.98, "bottom": 0.5 / height, "top": 1 - 0.3 / height, "hspace": 0.2}
    heights = [2] * (panels - 1) + [1.2]
    loss_panel, *score_panels, rate_panel = figure.subplots(
        panels, sharex=True, height_ratios=heights, gridspec_kw=edges
    )

    markers = 4 if len(history) <= 40 else 0
    losses = [(record["epoch"], record[loss_name]) for record in history if loss_name in record]
    loss_panel.set_title(title, loc="left", fontsize=10)
    loss_panel.plot(*zip(*losses, strict=True), color=LINE_COLOR, marker="o", markersize=markers)
    annotate(loss_panel, losses[-1], f"{losses[-1][1]:.3f}")
    loss_panel.set_ylabel(f"training {loss_name}")

    for panel in score_panels:
        best = max(scored, key=lambda point: point[1])  # the first of equal ones, as best.pt
        panel.plot(*zip(*scored, strict=True), color=LINE_COLOR, marker="o", markersize=markers)
        panel.plot(*best, color=BEST_COLOR, marker="o", markersize=9, fillstyle="none", linestyle="none")
        annotate(panel, best, f"best {best[1]:.1f}", BEST_COLOR)
        panel.set_ylabel(f"validation {score_name}")
        if min(score for _, score in scored) == best[1]:  # an automatic scale would magnify rounding errors
            panel.set_ylim(max(0, best[1] - 1), best[1] + 1)

    now = history[-1]["epoch"]
    rate_panel.plot(*zip(*rates, strict=True), color=FUTURE_COLOR)
    rate_panel.plot(*zip(*(point for point in rates if point[0] <= now), strict=True), color=LINE_COLOR)
    rate_panel.set_ylabel("learning rate")
    rate_panel.set_xlabel("epoch")
    rate_panel.set_xlim(0, rates[-1][0] * 1.02)
    rate_panel.set_ylim(0, None)
    rate_panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate_panel.ticklabel_format(axis="y", scilimits=(-2, 3))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_label_coords(-0.09, 0.5)
    return figure


def annotate(axes: "Axes", point: tuple[float, float], text: str, color: str = LINE_COLOR) -> None:
    """Write text above a point."""
    axes.annotate(
        text, point, (0, 7), textcoords="offset points", ha="center", va="bottom", fontsize=9, color=color
    )
