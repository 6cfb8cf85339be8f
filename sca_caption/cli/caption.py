"""Describe photographs in English.

One image file prints its caption. Several files or folders (searched recursively) print `path<TAB>caption` a
line.
"""

import argparse
import csv
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TextIO

from sca_caption import __version__
from sca_caption.atomic import replacing
from sca_caption.config import Parser, add_flags, make
from sca_caption.distributed import Processes, joined
from sca_caption.errors import UserError, program
from sca_caption.search import BATCH_SIZE, SamplingConfig, SearchConfig

EPILOG = """\
examples:
  python caption.py photo.jpg                          # prints the caption, nothing else
  python caption.py a.jpg b.png photos/                # path<TAB>caption, a line an image
  find . -name '*.jpg' | python caption.py -           # paths from standard input
  python caption.py photos/ --output captions.json     # COCO results; .jsonl and .csv likewise
  python caption.py photo.jpg --num-captions 3         # three captions, a line each, best first
  python caption.py photo.jpg --mention dog ball       # a caption with these words

Results files hold image_id, file_name, caption and score (log-probability / length^X). image_id is the number
that is the file's name where all have one (COCO's), else the position in the input, from 1. With
--num-captions, JSON lists all captions of an image under "captions", and CSV gives each a row.

Exit status: 0; 1 when some images could not be read; 2 when none could, or for a mistake in the command.
"""

# Photographs of everyday scenes in the wheels of packages, which may or may not be installed.
DEMO = (
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d+)")


def parser() -> Parser:
    p = Parser(description=__doc__, epilog=EPILOG, usage="%(prog)s [options] [IMAGE ...]")
    p.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image file, folder, or - for paths on standard input"
    )
    p.add_argument("--demo", action="store_true", help="caption photographs of installed packages")
    p.add_argument(
        "--output", type=Path, metavar="FILE", help="write results there instead: .json, .jsonl or .csv"
    )
    p.add_argument(
        "--checkpoint",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a model of train.py, or several that speak as one (default: the one that ships)",
    )
    p.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    p.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N",
                   help="images at once; fewer take less memory (default: %(default)s)")  # fmt: skip
    p.add_argument("--mention", nargs="+", default=(), metavar="WORD", help="words that captions must have, at most "
                   "three; any of several: dog/puppy")  # fmt: skip
    p.add_argument("--no-objects", dest="objects", action="store_false",
                   help="do not put in nouns that ImageNet's classifier is sure of, of a model that has it")  # fmt: skip
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    p.add_argument("--scores", action="store_true", help="before each caption, how far to trust it")
    p.add_argument("--sample", action="store_true", help="draw captions at random in place of the search")
    add_flags(p, SearchConfig, SamplingConfig)
    return p


@program
def main(argv: list[str] | None = None) -> int:
    with joined() as processes:
        return run(argv, processes)


def run(argv: list[str] | None, processes: Processes) -> int:
    """Caption, each process its share of the images; the first prints and writes them all, in order."""
    p = parser()
    arguments = p.parse_args(argv)
    if arguments.checkpoint:
        arguments.checkpoint, images = split(arguments.checkpoint)
        arguments.images += images
    if arguments.sample and "num_captions" in arguments:
        arguments.beam_size = arguments.num_captions  # there are no beams to allow more
    search, sampling = make(SearchConfig, arguments), make(SamplingConfig, arguments)
    useless = [name for name in vars(sampling) if name in arguments and not arguments.sample]
    if useless:
        raise UserError(f"--{useless[0].replace('_', '-')} has no effect on the search; give --sample too")
    # Of several processes only one can read standard input.
    paths = processes.broadcast(paths_of(arguments, p.prog) if processes.first else None)
    single = len(arguments.images) == 1 and arguments.images != ["-"] and paths == [Path(arguments.images[0])]
    if not any(
        path.exists() and not path.is_dir() for path in paths
    ):  # spare the user the loading of the model
        return report_all(paths)

    if arguments.output:
        check_results_file(arguments.output)

    from sca_caption.inference import Describer

    describer = Describer(
        arguments.checkpoint,
        search=search,
        device=arguments.device,
        batch_size=arguments.batch_size,
        mentions=arguments.mention,
        sampling=sampling if arguments.sample else None,
        objects=arguments.objects,
    )
    results = processes.in_order(paths, describer.stream)
    writes = arguments.output and processes.first
    extra = ("confidence",) if describer.calibration else ()
    with results_file(arguments.output, image_ids(paths), extra) if writes else nullcontext() as output:
        failed, (bar, say) = 0, progress(len(paths), quiet=not output and sys.stdout.isatty())
        for index, result in enumerate(results):
            if result.error:
                failed += 1
                say(f"error: {one_line(result.error)}")
            elif output:
                output.write(index, result.item, result.captions)
            else:
                start = "" if single else f"{one_line(result.item)}\t"
                scores = [
                    f"{trust(caption):.2f}\t" if arguments.scores else "" for caption in result.captions
                ]
                lines = zip(scores, result.captions, strict=True)
                show("\n".join(start + score + caption.text for score, caption in lines))
            bar.update()
        bar.close()
    if output and failed < len(paths):
        print(
            f"{len(paths) - failed} of {len(paths)} images captioned in {arguments.output}", file=sys.stderr
        )
    if arguments.demo:
        print(f"\nTo caption your own: {command(p.prog)} photo.jpg (or a folder; {command(p.prog)} --help)")
    if failed == len(paths):
        return 2
    return 1 if failed and processes.size == 1 else 0  # torchrun takes any other status for a crash


def trust(caption: "Caption") -> float:  # noqa: F821
    return caption.mean_log_prob if caption.confidence is None else caption.confidence


def split(files: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """What follows --checkpoint: models, the first in any case, and images, so that these may stand there too."""
    model = [index == 0 or file.suffix in (".pt", ".safetensors") for index, file in enumerate(files)]
    return [f for f, is_model in zip(files, model, strict=True) if is_model], [
        str(f) for f, is_model in zip(files, model, strict=True) if not is_model
    ]


def paths_of(arguments: argparse.Namespace, prog: str) -> list[Path]:
    """The files to caption, folders unfolded. Raises UserError where there is nothing to do."""
    from sca_caption.images import find_images

    if arguments.demo and arguments.images:
        raise UserError(
            f"--demo has its own photographs, found {arguments.images[0]!r} too; give one or the other"
        )
    if arguments.demo:
        return demo_photographs()
    if not arguments.images:
        raise UserError(f"no image given; try {command(prog)} photo.jpg, or {command(prog)} --demo")
    named = []
    for image in arguments.images:
        named += read_list(sys.stdin.buffer.read()) if image == "-" else [image]
    if not named:
        raise UserError("no paths on standard input; give one a line")
    return find_images(named)


def read_list(lines: bytes) -> list[str]:
    """Paths, one a line or, as `find -print0` writes them, ended by zero bytes; in the disk's encoding."""
    separator = b"\0" if b"\0" in lines else b"\n"
    return [os.fsdecode(path) for line in lines.split(separator) if (path := line.rstrip(b"\r"))]


def demo_photographs() -> list[Path]:
    found = []
    for package, name in DEMO:
        spec = importlib.util.find_spec(package)  # finds the package without running it
        if spec is not None and spec.origin:
            found.append(Path(spec.origin).parent / name)
    found = [path for path in found if path.is_file()]
    if not found:
        raise UserError(
            "no installed package carries a photograph; run: pip install matplotlib, or give your own"
        )
    return found


def command(prog: str) -> str:
    return f"python {prog}" if prog.endswith(".py") else prog


def report_all(paths: Sequence[Path]) -> int:
    """Say of each path why it cannot be opened."""
    from sca_caption.images import ImageError, open_image

    for path in paths:
        try:
            open_image(path)
        except ImageError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
    return 2


def image_ids(paths: Sequence[Path]) -> list[int]:
    """The numbers that the names are (000139.jpg, COCO_val2014_000000000042.jpg) if all differ; or 1, 2..."""
    numbers = [int(match[1]) for path in paths if (match := COCO_NAME.fullmatch(path.stem))]
    if len(set(numbers)) == len(paths):
        return numbers
    return list(range(1, len(paths) + 1))


def one_line(text: object) -> str:
    """Text for the terminal: control characters and what the terminal cannot write as escapes."""
    text = "".join(
        c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in str(text)
    )
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def show(text: str) -> None:
    """Print at once, for whoever reads along. Raises UserError where stdout goes to a full disk."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again as it exits
        raise UserError(f"cannot write to standard output ({error.strerror}); free space") from error


def progress(total: int, quiet: bool) -> tuple["tqdm", Callable[[str], None]]:  # noqa: F821
    """A bar if stderr is a terminal and there are many images, and how to write lines on stderr beside it."""
    from tqdm import tqdm

    off = quiet or total <= BATCH_SIZE or not sys.stderr.isatty()
    bar = tqdm(total=total, unit="image", disable=off, dynamic_ncols=True)
    return bar, partial(print, file=sys.stderr) if off else partial(tqdm.write, file=sys.stderr)


def check_results_file(path: Path) -> None:
    """Raise UserError for what cannot be the name of a results file."""
    if path.suffix.lower() not in (".json", ".jsonl", ".csv"):
        raise UserError(f"--output {path}: unknown kind {path.suffix!r}; one of: .json, .jsonl, .csv")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: no folder {path.parent}; make it first")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file")


@contextmanager
def results_file(path: Path, ids: Sequence[int], extra: Sequence[str] = ()) -> Iterator["Results"]:
    """Captions in COCO's results format, in a temporary file that takes the name of `path` when complete.

    Raises UserError where the file cannot be written; nothing half-written stays behind, and without captions
    no file.
    """
    with replacing(path) as temporary:
        # A file name's bytes that are no UTF-8 come out as \\udcXX, which JSON reads back.
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            results = Results(file, path.suffix.lower(), ids, extra)
            yield results
            file.write(results.end)
        if not results.count:
            temporary.unlink()


class Results:
    """Writes entries one by one, so that memory does not grow with their number."""

    def __init__(self, file: TextIO, kind: str, ids: Sequence[int], extra: Sequence[str] = ()):
        self.file, self.ids, self.numbers, self.csv, self.count = file, ids, ("score", *extra), None, 0
        self.start, self.between, self.end = ("[\n", ",\n", "\n]\n") if kind == ".json" else ("", "\n", "\n")
        if kind == ".csv":
            self.end, self.csv = "", csv.writer(file, lineterminator="\n")
            self.csv.writerow(("image_id", "file_name", "caption", *self.numbers))

    def write(self, index: int, path: Path, captions: Sequence) -> None:
        """Add the captions (best first) of the image at `index`."""
        entry = {"image_id": self.ids[index], "file_name": str(path)}
        found = [
            {"caption": caption.text} | {name: round(getattr(caption, name), 4) for name in self.numbers}
            for caption in captions
        ]
        if self.csv:
            self.csv.writerows((*entry.values(), *each.values()) for each in found)
        else:
            entry |= found[0]
            if len(found) > 1:
                logs = ({"log_prob": round(caption.log_prob, 4)} for caption in captions)
                entry["captions"] = [each | log for each, log in zip(found, logs, strict=True)]
            self.file.write(
                (self.between if self.count else self.start) + json.dumps(entry, ensure_ascii=False)
            )
        self.count += 1
