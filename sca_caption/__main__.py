"""`python -m sca_caption COMMAND`: the commands beside the four programs."""

import importlib
import sys

from sca_caption.cli.parser import Parser, program
from sca_caption.runtime.errors import choice

# Command: module that has its `main`, and a line of help.
COMMANDS = {
    "fit": ("sca_caption.cli.fit", "fit guides of a trained captioner"),
    "average": (
        "sca_caption.cli.average",
        "average checkpoints, or convert one to ship",
    ),
    "export": ("sca_caption.cli.export", "write ONNX graphs, or a page for browsers"),
    "classify": ("sca_caption.cli.classify", "classify images with a trained classifier"),
    "ray": ("sca_caption.cli.ray", "caption photographs on a Ray cluster"),
    "curves": ("sca_caption.cli.curves", "plot the validation scores of training runs"),
}


def parser() -> Parser:
    commands = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
    return Parser(
        prog="python -m sca_caption",
        usage="python -m sca_caption COMMAND [options]",
        description="Commands beside preprocess.py, train.py, caption.py and evaluate.py.",
        epilog=f"commands:\n{commands}\n\nEach has its own --help. Benchmarks: python -m sca_caption.benchmarks.NAME",
    )


@program
def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        parser().parse_args(argv)
        parser().print_help()
        return 0 if argv else 2
    module, _ = COMMANDS[choice(argv[0], COMMANDS, "command")]
    return importlib.import_module(module).main(argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
