"""`python -m sca_caption curves`: plot validation scores of training runs of captioners or classifiers."""

from pathlib import Path

from sca_caption.cli.parser import Parser, program
from sca_caption.training.plots import draw_curves, scores

EPILOG = """\
examples:
  python -m sca_caption curves runs/flickr8k runs/flickr8k-cider --output curves.svg
  python -m sca_caption curves runs/cifar10-resnet18 runs/cifar10-resnet18-cbam --output curves.svg
"""


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption curves",
        description="Plot the validation scores of training runs: CIDEr of captioners, top-1 of classifiers.",
        epilog=EPILOG,
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="run folder (--output of train.py)")
    p.add_argument("--output", type=Path, required=True, metavar="FILE", help="figure: .svg, .png or .pdf")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from sca_caption.runtime.figures import check_figure, save_figure

    check_figure(arguments.output, "--output")
    score, runs = scores(arguments.runs)
    save_figure(draw_curves(runs, score), arguments.output, "--output")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
