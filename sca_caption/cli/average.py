"""`python -m sca_caption average`: write a checkpoint for distribution, from one checkpoint or the mean of several."""

from pathlib import Path

from sca_caption.checkpoint import save
from sca_caption.cli.parser import Parser, program
from sca_caption.models import quantization
from sca_caption.training.weight_soup import average


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption average",
        description="Write a checkpoint without training state, from one checkpoint or the weight average of several.",
    )
    p.add_argument("output", type=Path, help="file to write, such as captioner.safetensors")
    p.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="best.pt of a run")
    p.add_argument(
        "--shares",
        nargs="+",
        type=float,
        metavar="X",
        help="weight per checkpoint in the average (default: equal)",
    )
    p.add_argument(
        "--dtype",
        choices=quantization.DTYPES,
        default="float16",
        help="data type of the weights (default: %(default)s)",
    )
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    found = average(arguments.checkpoints, arguments.shares)
    save(arguments.output, found, arguments.dtype)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")
    return 0
