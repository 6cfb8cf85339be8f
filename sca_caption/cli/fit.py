"""`python -m sca_caption fit`: fit what guides the captions of a trained captioner."""

from contextlib import ExitStack
from pathlib import Path

from sca_caption.cli.flags import add_device
from sca_caption.cli.parser import Parser, program
from sca_caption.models import quantization

EPILOG = """\
examples:
  python -m sca_caption fit consensus runs/flickr8k/best.pt --data data/flickr8k.h5
  python -m sca_caption fit words runs/everyday/best.pt --data data/everyday.h5
  python -m sca_caption fit confidence runs/flickr8k/best.pt --data data/flickr8k.h5
  python -m sca_caption fit words confidence runs/both/best.pt --data data/flickr8k.h5 data/coco.h5
  python -m sca_caption fit confidence runs/both/best.pt --data data/flickr8k.h5 data/coco.h5 --plot confidence.svg
  python -m sca_caption fit words confidence runs/both/best.pt --data data/both.h5 \\
      --output captioner.safetensors --dtype int8
  python -m sca_caption fit confidence runs/b/best.pt --average-with runs/a/best.pt --shares 2 1 \\
      --data data/both.h5 --output captioner.safetensors

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
    p.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the captioner with its guides to this file, without training state; the checkpoint stays as it is",
    )
    p.add_argument(
        "--average-with",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="with --output: first average the checkpoint's weights with those of other runs of the same model",
    )
    p.add_argument(
        "--shares",
        type=float,
        nargs="+",
        metavar="X",
        help="weights of the checkpoint and of those in --average-with (default: equal)",
    )
    p.add_argument(
        "--dtype",
        choices=quantization.DTYPES,
        help="data type of the weights in --output (default: float16)",
    )
    add_device(p)
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from sca_caption import checkpoint
    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.datasets.mixture import Mixture
    from sca_caption.runtime.atomic_files import atomic_write
    from sca_caption.runtime.devices import find_device
    from sca_caption.runtime.errors import UserError
    from sca_caption.runtime.figures import check_figure, save_figure
    from sca_caption.training.fit_guidance import FITS
    from sca_caption.training.reliability_plot import draw_reliability
    from sca_caption.training.weight_soup import average

    if arguments.plot:
        if "confidence" not in arguments.guides:
            raise UserError(
                f"--plot {arguments.plot}: fit {' '.join(arguments.guides)} draws no figure; leave the flag out"
            )
        check_figure(arguments.plot, "--plot")
    for name in ("dtype", "average_with", "shares"):
        if getattr(arguments, name) and not arguments.output:
            raise UserError(f"--{name.replace('_', '-')} is for --output, which is missing")
    data = Mixture([CaptionDataset(path) for path in arguments.data])
    with ExitStack() as files:
        path = arguments.checkpoint
        if arguments.output:
            path = files.enter_context(atomic_write(arguments.output, make_folder=True))
            found = average([arguments.checkpoint, *arguments.average_with], arguments.shares)
            checkpoint.save(path, found, arguments.dtype or "float16")
        for guide in arguments.guides:
            fit, split = FITS[guide]
            rows = data.indices(arguments.split or split).tolist()
            fitted = fit(checkpoint.load(path), data, rows, find_device(arguments.device))
            checkpoint.add_guide(path, guide, fitted.guide)
            print(f"{arguments.output or path}: {fitted.lines[0]}", *fitted.lines[1:], sep="\n")
            if arguments.plot and guide == "confidence":
                save_figure(draw_reliability(fitted.held_out), arguments.plot, "--plot")
    return 0
