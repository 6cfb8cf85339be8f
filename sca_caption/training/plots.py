"""Draw how runs of train.py scored on the validation images, epoch after epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SCORE = "CIDEr"


def scores(run: Path) -> dict[int, float]:
    """Validation scores of a run by epoch. Raises UserError where there is no run, or it has none."""
    from sca_caption import checkpoint

    history = checkpoint.load(run / "last.pt").training.get("history", [])
    found = {record["epoch"]: record[SCORE] for record in history if SCORE in record}
    if not found:
        raise UserError(f"{run / 'last.pt'} has no {SCORE} of validation images; give another run")
    return found


def draw_curves(runs: Mapping[str, Mapping[int, float]]) -> "Figure":
    """A line for each run, by epoch; epoch 0 is the score before training."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in runs.items():
        axes.plot(list(values), list(values.values()), marker="o", markersize=4, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {SCORE}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


LINE, AHEAD, BEST = "tab:blue", "0.75", "tab:red"


def save_progress(path: Path, *drawn, **named) -> None:
    """Replace the picture `path` (.svg, .png, .pdf) by what `draw` makes. Raises UserError where it cannot be written."""
    save_figure(draw(*drawn, **named), path, "--output")


def draw(
    history: Sequence[dict], measured: str, score: str, rates: Sequence[tuple[float, float]], title: str
) -> "Figure":
    """Three panels above each other that share the axis of epochs.

    history: as `training.train` returns it, an entry an epoch. measured: "loss" or "reward", what is trained on.
    score: the validation figure that chooses best.pt, drawn if the history has it. rates: (epochs passed, learning
    rate) over the whole run; what lies ahead is drawn in grey.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scored = [(record["epoch"], record[score]) for record in history if score in record]
    panels = 3 if scored else 2
    height = 1 + 1.9 * panels  # inches
    figure = Figure((7, height))
    # Fixed margins: a layout that is computed would take longer than all of the drawing.
    edges = {"left": 0.12, "right": 0.98, "bottom": 0.5 / height, "top": 1 - 0.3 / height, "hspace": 0.2}
    heights = [2] * (panels - 1) + [1.2]
    top, *middle, bottom = figure.subplots(panels, sharex=True, height_ratios=heights, gridspec_kw=edges)
    top.set_title(title, loc="left", fontsize=10)

    markers = 4 if len(history) <= 40 else 0
    trained = [(record["epoch"], record[measured]) for record in history if measured in record]
    top.plot(*zip(*trained, strict=True), color=LINE, marker="o", markersize=markers)
    note(top, trained[-1], f"{trained[-1][1]:.3f}")
    top.set_ylabel(f"training {measured}")

    for axes in middle:
        best = max(scored, key=lambda point: point[::-1])  # the last of several, as best.pt
        axes.plot(*zip(*scored, strict=True), color=LINE, marker="o", markersize=markers)
        axes.plot(*best, color=BEST, marker="o", markersize=9, fillstyle="none", linestyle="none")
        note(axes, best, f"best {best[1]:.1f}", BEST)
        axes.set_ylabel(f"validation {score}")
        if (
            min(scored, key=lambda point: point[1])[1] == best[1]
        ):  # else the axis would show differences of nothing
            axes.set_ylim(max(0, best[1] - 1), best[1] + 1)

    now = history[-1]["epoch"]
    bottom.plot(*zip(*rates, strict=True), color=AHEAD)
    bottom.plot(*zip(*(point for point in rates if point[0] <= now), strict=True), color=LINE)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    bottom.set_xlim(0, rates[-1][0] * 1.02)
    bottom.set_ylim(0, None)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.ticklabel_format(axis="y", scilimits=(-2, 3))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_label_coords(-0.09, 0.5)
    return figure


def note(axes, point: tuple[float, float], text: str, colour: str = LINE) -> None:
    """A value above its point."""
    axes.annotate(
        text, point, (0, 7), textcoords="offset points", ha="center", va="bottom", fontsize=9, color=colour
    )
