"""`python -m sca_caption export`: write a captioner as ONNX graphs or as a browser page."""

import sys
from pathlib import Path

from sca_caption import checkpoint
from sca_caption.cli.flags import add_style
from sca_caption.cli.parser import Parser, program
from sca_caption.export.model_json import DTYPES
from sca_caption.export.onnx_folder import export
from sca_caption.inference.captioning import with_style

EPILOG = """\
examples:
  python -m sca_caption export --output model/
  python -m sca_caption export --output model/ --checkpoint runs/flickr8k/best.pt --dtype float32 int8
  python -m sca_caption export --output site/ --browser node_modules/onnxruntime-web
"""


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption export",
        description="Write a captioner as ONNX graphs with its vocabulary and settings, to run without PyTorch.",
        epilog=EPILOG,
    )
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write or to replace")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="captioner (default: the packaged model)")
    add_style(p, "the model's first")
    p.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], metavar="NAME",
        help="data types of the weights: float32, which is always written, and int8 (default: float32)",
    )  # fmt: skip
    p.add_argument(
        "--browser", type=Path, metavar="DIR",
        help="also write a web page that captions in the browser; DIR: npm's folder of onnxruntime-web",
    )  # fmt: skip
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    dtypes = [dtype for dtype in DTYPES if dtype == "float32" or dtype in arguments.dtype]
    given = checkpoint.load(arguments.checkpoint)
    export(
        arguments.output,
        with_style(given, arguments.style) if arguments.style else given,
        arguments.checkpoint,
        dtypes,
        arguments.browser,
    )
    for path in sorted(arguments.output.rglob("*")):
        if path.is_file():
            size = path.stat().st_size / 1e6
            print(f"{path.relative_to(arguments.output)}\t{size:.1f} MB", file=sys.stderr)
    if arguments.browser:
        print(f"open it with: python -m http.server -d {arguments.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
