"""`python -m sca_caption fit`: fit what guides the captions of a trained captioner."""

from pathlib import Path

from sca_caption.cli.flags import add_device
from sca_caption.cli.parser import Parser, program

EPILOG = """\
examples:
  python -m sca_caption fit consensus runs/flickr8k/best.pt --data data/flickr8k.h5
  python -m sca_caption fit presence runs/flickr8k/best.pt --data data/coco.h5
  python -m sca_caption fit confidence runs/flickr8k/best.pt --data data/flickr8k.h5

consensus: reranks candidates by the words that annotators would use (expected CIDEr).

presence: keeps people, dogs and colours that are not in the image out of its caption. Fit it to data that includes
photographs without people and dogs.

confidence: calibrates the probability that a caption is better than the median. Fit it last, to images that the
captioner was not trained on.
"""


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption fit",
        description="Fit one guide of a captioner to a data file, and store it in the checkpoint.",
        epilog=EPILOG,
    )
    p.add_argument("guide", choices=("consensus", "presence", "confidence"), help="what to fit")
    p.add_argument(
        "checkpoint", type=Path, help="best.pt of a run, or another captioner; the file is changed"
    )
    p.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="see preprocess.py")
    p.add_argument(
        "--split", choices=("train", "val", "test"), help="images to fit to (default: train; confidence: val)"
    )
    add_device(p)
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from sca_caption import checkpoint
    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.runtime.devices import find_device
    from sca_caption.training.fit_guidance import FITS

    data, found = CaptionDataset(arguments.data), checkpoint.load(arguments.checkpoint)
    fit, split = FITS[arguments.guide]
    rows = data.indices(arguments.split or split).tolist()
    guide, lines = fit(found, data, rows, find_device(arguments.device))
    checkpoint.add_guide(arguments.checkpoint, arguments.guide, guide)
    print(f"{arguments.checkpoint}: {lines[0]}", *lines[1:], sep="\n")
    return 0
