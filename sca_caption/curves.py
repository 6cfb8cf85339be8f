"""Draw how runs of train.py scored on the validation images, epoch after epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sca_caption.config import Parser
from sca_caption.errors import UserError, program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPILOG = """\
example:
  python -m sca_caption.curves runs/flickr8k runs/flickr8k-cider --output curves.svg
"""
SCORE = "CIDEr"


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.curves", description=__doc__, epilog=EPILOG)
    p.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="--output of train.py")
    p.add_argument("--output", type=Path, required=True, metavar="FILE", help=".svg, .png or .pdf")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from sca_caption.figures import check_figure, save_figure

    check_figure(arguments.output, "--output")
    save_figure(draw({str(run): scores(run) for run in arguments.runs}), arguments.output, "--output")
    return 0


def scores(run: Path) -> dict[int, float]:
    """Validation scores of a run by epoch. Raises UserError where there is no run, or it has none."""
    from sca_caption import checkpoint

    history = checkpoint.load(run / "last.pt").training.get("history", [])
    found = {record["epoch"]: record[SCORE] for record in history if SCORE in record}
    if not found:
        raise UserError(f"{run / 'last.pt'} has no {SCORE} of validation images; give another run")
    return found


def draw(runs: Mapping[str, Mapping[int, float]]) -> "Figure":
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


if __name__ == "__main__":
    raise SystemExit(main())
