"""Classify images with a classifier trained by train.py.

For one image file, prints its most probable classes. For several files or folders (searched recursively), prints
`path<TAB>class<TAB>probability`, one line per image.
"""

import argparse
import json
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sca_caption.cli.flags import add_batch_size, add_device
from sca_caption.cli.inputs import read_list, require_reread
from sca_caption.cli.parser import Parser, program
from sca_caption.cli.terminal import one_line, progress, report_all, show
from sca_caption.config import BATCH_SIZE
from sca_caption.inference.results_formats import csv_writer
from sca_caption.runtime.atomic_files import atomic_write, check_writable
from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.figures import check_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from sca_caption.inference.classification import ClassificationPipeline


EPILOG = """\
examples:
  python -m sca_caption classify photo.jpg --checkpoint runs/caltech101-resnet18/best.pt
  python -m sca_caption classify a.jpg photos/ --checkpoint F --output classes.csv     # or .json, .jsonl
  python -m sca_caption classify photo.jpg --checkpoint F --explain why.png            # Grad-CAM

Exit status: 0; 1 if some images could not be read; 2 if none could be read or the command is wrong.
"""
OUTPUT_SUFFIXES = (".csv", ".json", ".jsonl")


def parser() -> Parser:
    p = Parser(
        prog="python -m sca_caption classify",
        description=__doc__,
        epilog=EPILOG,
    )
    p.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, folder, or - for paths on standard input"
    )
    p.add_argument("--checkpoint", required=True, type=Path, metavar="FILE", help="best.pt of a classifier")
    p.add_argument("--top", type=int, default=5, metavar="N", help="number of classes for a single image, and "
                   "per image in --output (default: %(default)s)")  # fmt: skip
    p.add_argument("--explain", type=Path, metavar="FILE", help="Grad-CAM figure of a single image: .png, .svg "
                   "or .pdf")  # fmt: skip
    p.add_argument(
        "--output", type=Path, metavar="FILE", help="write results to a file: .json, .jsonl or .csv"
    )
    add_device(p)
    add_batch_size(p, BATCH_SIZE)
    return p


@program
def main(argv: list[str] | None = None) -> int:
    from sca_caption.images import find_images

    arguments = parser().parse_args(argv)
    inputs: list[str] = []
    for image in arguments.images:
        inputs += read_list(sys.stdin.buffer.read()) if image == "-" else [image]
    paths = find_images(inputs)
    check(arguments, paths)
    single = arguments.images != ["-"] and paths == [Path(arguments.images[0])]
    if not any(
        os.path.exists(path) and not os.path.isdir(path) for path in paths
    ):  # no need to load the model
        return report_all(paths)

    from sca_caption.inference.classification import ClassificationPipeline

    model = ClassificationPipeline(
        arguments.checkpoint, device=arguments.device, batch_size=arguments.batch_size
    )
    top = min(arguments.top, len(model.classes))
    with results_file(arguments.output) if arguments.output else nullcontext() as output:
        failed, (bar, say) = 0, progress(len(paths), quiet=not output and sys.stdout.isatty())
        for path, logits in model.stream(paths):
            bar.update()
            if isinstance(logits, UserError):
                failed += 1
                say(f"error: {one_line(logits)}")
                continue
            found = top_classes(logits, model.classes, top)
            if output:
                output.write(path, found)
            elif single:
                show("\n".join(f"{one_line(name)}\t{probability:.4f}" for name, probability in found))
            else:
                show(f"{one_line(path)}\t{one_line(found[0][0])}\t{found[0][1]:.4f}")
            if arguments.explain:
                explain(arguments.explain, model, path, logits)
        bar.close()
    if output and failed < len(paths):
        print(
            f"{len(paths) - failed} of {len(paths)} images classified in {arguments.output}", file=sys.stderr
        )
    return 0 if not failed else 2 if failed == len(paths) else 1


def check(arguments: argparse.Namespace, paths: "Sequence[Path]") -> None:
    """Raise UserError for invalid flags before the model is loaded."""
    if not paths:
        raise UserError("no paths on standard input; give one per line")
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: must be at least 1")
    if arguments.output:
        choice(arguments.output.suffix.lower(), OUTPUT_SUFFIXES, "kind of --output")
        check_writable(arguments.output)
    if arguments.explain:
        from sca_caption.explain.grad_cam import require_grad_cam

        check_figure(arguments.explain, "--explain")
        if len(paths) > 1:
            raise UserError(f"--explain draws a single image, found {len(paths)}; give one")
        require_reread(paths[0], "--explain")
        require_grad_cam()


def top_classes(logits: "np.ndarray", classes: "Sequence[str]", top: int) -> list[tuple[str, float]]:
    """The `top` most probable classes of logits (K,), with their probabilities, most probable first."""
    import torch

    probabilities = torch.from_numpy(logits).softmax(0)
    order = probabilities.argsort(descending=True, stable=True)[:top].tolist()
    return [(classes[k], probabilities[k].item()) for k in order]


def explain(path: Path, model: "ClassificationPipeline", image: Path, logits: "np.ndarray") -> None:
    """Write the Grad-CAM figure of an image to `path`."""
    from sca_caption.explain.grad_cam import save_explanation
    from sca_caption.images import load

    save_explanation(path, model.model, load(image, model.transform), logits, image.name)


class ResultsWriter:
    """Writes the results of images one by one, so memory does not grow with their number."""

    def __init__(self, file: TextIO, kind: str):
        self.file, self.kind, self.count = file, kind, 0
        self.rows = csv_writer(file)
        if kind == ".csv":
            self.rows.writerow(("file_name", "rank", "class", "probability"))

    def write(self, path: Path, found: list[tuple[str, float]]) -> None:
        classes = [{"class": name, "probability": round(probability, 6)} for name, probability in found]
        if self.kind == ".csv":
            self.rows.writerows((path, rank, *each.values()) for rank, each in enumerate(classes, 1))
        else:
            entry = json.dumps({"file_name": str(path), **classes[0], "classes": classes}, ensure_ascii=False)
            start = (
                ("[\n" if self.kind == ".json" else "")
                if not self.count
                else (",\n" if self.kind == ".json" else "\n")
            )
            self.file.write(start + entry)
        self.count += 1

    def finish(self) -> None:
        self.file.write({".csv": "", ".json": "\n]\n", ".jsonl": "\n"}[self.kind])


@contextmanager
def results_file(path: Path) -> "Iterator[ResultsWriter]":
    """A writer for the format of the path's suffix. Without results, no file is written."""
    with atomic_write(path) as temporary:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            results = ResultsWriter(file, path.suffix.lower())
            yield results
            results.finish()
        if not results.count:
            temporary.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
