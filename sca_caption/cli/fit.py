"""`python -m sca_caption fit`: fit what guides the captions of a trained captioner."""

from pathlib import Path

from sca_caption.cli.flags import add_device
from sca_caption.cli.parser import Parser, program

EPILOG = """\
examples:
  python -m sca_caption fit consensus runs/flickr8k/best.pt --data data/flickr8k.h5
  python -m sca_caption fit words runs/everyday/best.pt --data data/everyday.h5
  python -m sca_caption fit confidence runs/flickr8k/best.pt --data data/flickr8k.h5
  python -m sca_caption fit words confidence runs/both/best.pt --data data/flickr8k.h5 data/coco.h5
  python -m sca_caption fit confidence runs/both/best.pt --data data/flickr8k.h5 data/coco.h5 --plot confidence.svg

consensus: reranks candidates by the words that annotators would use (expected CIDEr).

words: keeps people, animals, colours and genders that the captioner's own word predictor finds unlikely out of
captions. Only for captioners with --word-rank. Prints a table of the thresholds.

confidence: calibrates the probability that a caption is better than the median of its data file. Fit it last, to
images that the captioner was not trained on. Each file is captioned in the style of its name, if the model has it.
"""


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption fit",
        description="Fit guides of a captioner to data files, and store them in the checkpoint.",
        epilog=EPILOG,
    )
    p.add_argument(
        "guides",
        nargs="+",
        choices=("consensus", "words", "confidence"),
        metavar="GUIDE",
        help="what to fit: consensus, words, confidence; several are fitted one after the other",
    )
    p.add_argument(
        "checkpoint", type=Path, help="best.pt of a run, or another captioner; the file is changed"
    )
    p.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="FILE.h5", help="data files, see preprocess.py"
    )
    p.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="images to fit to (default: train; words and confidence: val)",
    )
    p.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="confidence: reliability diagram of held-out captions: .svg, .png or .pdf",
    )
    add_device(p)
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from sca_caption import checkpoint
    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.datasets.mixture import Mixture
    from sca_caption.runtime.devices import find_device
    from sca_caption.runtime.errors import UserError
    from sca_caption.runtime.figures import check_figure, save_figure
    from sca_caption.training.fit_guidance import FITS
    from sca_caption.training.reliability_plot import draw_reliability

    if arguments.plot:
        if "confidence" not in arguments.guides:
            raise UserError(
                f"--plot {arguments.plot}: fit {' '.join(arguments.guides)} draws no figure; leave the flag out"
            )
        check_figure(arguments.plot, "--plot")
    data = Mixture([CaptionDataset(path) for path in arguments.data])
    for guide in arguments.guides:
        fit, split = FITS[guide]
        rows = data.indices(arguments.split or split).tolist()
        fitted = fit(checkpoint.load(arguments.checkpoint), data, rows, find_device(arguments.device))
        checkpoint.add_guide(arguments.checkpoint, guide, fitted.guide)
        print(f"{arguments.checkpoint}: {fitted.lines[0]}", *fitted.lines[1:], sep="\n")
        if arguments.plot and guide == "confidence":
            save_figure(draw_reliability(fitted.held_out), arguments.plot, "--plot")
    return 0
