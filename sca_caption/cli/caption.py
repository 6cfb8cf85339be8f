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
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Self

from sca_caption import __version__
from sca_caption.config import add_flags, make
from sca_caption.errors import UserError, program
from sca_caption.search import BATCH_SIZE, SearchConfig

EPILOG = """\
examples:
  python caption.py photo.jpg                          # prints the caption, nothing else
  python caption.py a.jpg b.png photos/                # path<TAB>caption, a line an image
  find . -name '*.jpg' | python caption.py -           # paths from standard input
  python caption.py photos/ --output captions.json     # COCO results; .jsonl and .csv likewise
  python caption.py photo.jpg --num-captions 3         # three captions, a line each, best first

Results files hold image_id, file_name, caption and score (log-probability / length^penalty). image_id is the
number in the file name where every file has its own (COCO's names), else the position in the input, from 1.
With --num-captions, JSON lists all of an image's under "captions", CSV gives each a row. Exit status: 0; 1
when some of the images could not be read; 2 when none could, or for a mistake in the command.
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


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> Parser:
    p = Parser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image file, folder, or - for paths on standard input"
    )
    p.add_argument("--demo", action="store_true", help="caption photographs that installed packages carry")
    p.add_argument(
        "--output", type=Path, metavar="FILE", help="write results there instead: .json, .jsonl or .csv"
    )
    p.add_argument(
        "--checkpoint", metavar="FILE", help="a model that train.py made (default: the one that ships)"
    )
    p.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    p.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N",
                   help="images at once; fewer take less memory (default: %(default)s)")  # fmt: skip
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_flags(p, SearchConfig)
    return p


@program
def main(argv: list[str] | None = None) -> int:
    p = parser()
    arguments = p.parse_args(argv)
    search = make(SearchConfig, arguments)
    paths = paths_of(arguments, p.prog)
    single = len(arguments.images) == 1 and arguments.images != ["-"] and paths == [Path(arguments.images[0])]
    if not any(
        path.exists() and not path.is_dir() for path in paths
    ):  # spare the user the loading of the model
        return report_all(paths)

    with ResultsFile(arguments.output, image_ids(paths)) if arguments.output else nullcontext() as output:
        from sca_caption.inference import Describer

        describer = Describer(
            arguments.checkpoint, search=search, device=arguments.device, batch_size=arguments.batch_size
        )
        failed, (bar, say) = 0, progress(len(paths), quiet=not output and sys.stdout.isatty())
        for index, result in enumerate(describer.stream(paths)):
            if result.error:
                failed += 1
                say(f"error: {one_line(result.error)}")
            elif output:
                output.write(index, result.item, result.captions)
            else:
                start = "" if single else f"{one_line(result.item)}\t"
                print("\n".join(start + caption.text for caption in result.captions), flush=True)
            bar.update()
        bar.close()
    if output and failed < len(paths):
        print(
            f"{len(paths) - failed} of {len(paths)} images captioned in {arguments.output}", file=sys.stderr
        )
    if arguments.demo:
        print(f"\nTo caption your own: {command(p.prog)} photo.jpg (or a folder; {command(p.prog)} --help)")
    return 0 if not failed else 2 if failed == len(paths) else 1


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
    """Paths, one a line (or separated by zero bytes, as `find -print0` does), in whatever encoding the disk has."""
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
    """Numbers in the names (000000000139.jpg, COCO_val2014_000000000042.jpg) if all have one and no two the same."""
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


def progress(total: int, quiet: bool) -> tuple["tqdm", Callable[[str], None]]:  # noqa: F821
    """A bar on stderr where that is a terminal and many images wait, and how to write lines on stderr beside it."""
    from tqdm import tqdm

    off = quiet or total <= BATCH_SIZE or not sys.stderr.isatty()
    bar = tqdm(total=total, unit="image", disable=off, dynamic_ncols=True)
    return bar, partial(print, file=sys.stderr) if off else partial(tqdm.write, file=sys.stderr)


class ResultsFile:
    """Captions in COCO's results format, written as they come to a temporary file that takes its name when complete.

    Raises UserError where the file cannot be written; nothing half-written stays behind.
    """

    def __init__(self, path: Path, ids: Sequence[int]):
        self.path, self.ids, self.format = path, ids, path.suffix.lower()
        if self.format not in (".json", ".jsonl", ".csv"):
            raise UserError(f"--output {path}: unknown kind {path.suffix!r}; one of: .json, .jsonl, .csv")
        if not path.parent.is_dir():
            raise UserError(f"--output {path}: no folder {path.parent}; make it first")
        if path.is_dir():
            raise UserError(f"--output {path} is a folder; name a file")
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.count = 0

    def __enter__(self) -> Self:
        try:
            # A file name's bytes that are no UTF-8 come out as \udcXX, which JSON reads back.
            self.file = open(self.temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115
            if self.format == ".csv":
                self.rows = csv.writer(self.file, lineterminator="\n")
                self.rows.writerow(("image_id", "file_name", "caption", "score"))
        except OSError as error:
            raise self.unwritable(error) from error
        return self

    def write(self, index: int, path: Path, captions: Sequence) -> None:
        """Add the captions (best first) of the image at `index`."""
        entry = {"image_id": self.ids[index], "file_name": str(path)}
        entries = [{"caption": caption.text, "score": round(caption.score, 4)} for caption in captions]
        try:
            if self.format == ".csv":
                self.rows.writerows((*entry.values(), *each.values()) for each in entries)
            else:
                entry |= entries[0]
                if len(entries) > 1:
                    logs = ({"log_prob": round(caption.log_prob, 4)} for caption in captions)
                    entry["captions"] = [each | log for each, log in zip(entries, logs, strict=True)]
                line = json.dumps(entry, ensure_ascii=False)
                before = "" if self.format == ".jsonl" else ",\n" if self.count else "[\n"
                self.file.write(before + line + "\n" * (self.format == ".jsonl"))
        except OSError as error:
            raise self.unwritable(error) from error
        self.count += 1

    def __exit__(self, kind, error, trace) -> None:
        try:
            if self.format == ".json":
                self.file.write("\n]\n")
            self.file.close()
            if kind is None and self.count:
                os.replace(self.temporary, self.path)
        except OSError as problem:
            if kind is None:
                raise self.unwritable(problem) from problem
        finally:
            self.temporary.unlink(missing_ok=True)

    def unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self.path} ({error.strerror}); free space or choose another --output"
        )
