"""The images that the command line names: files, folders, lists on standard input, and the demo's."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import command

IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
DEMO = Path(__file__).parents[1] / "photographs"


def take_back_images(arguments: argparse.Namespace) -> None:
    """Return images that --checkpoint and --force-words took, because these take all words that follow."""
    if arguments.checkpoint:
        arguments.checkpoint, images = split(arguments.checkpoint, is_model)
        arguments.images += map(str, images)
    if arguments.force_words:
        arguments.force_words, images = split(arguments.force_words, lambda word: not is_image(word))
        arguments.images += images


def split(values: Sequence, belongs: Callable) -> tuple[list, list]:
    """The values that belong to a flag (the first always does), and the others."""
    mine = [index == 0 or belongs(value) for index, value in enumerate(values)]
    return [v for v, is_mine in zip(values, mine, strict=True) if is_mine], [
        v for v, is_mine in zip(values, mine, strict=True) if not is_mine
    ]


def is_model(file: Path) -> bool:
    return file.suffix in (".pt", ".safetensors")


def is_image(word: str) -> bool:
    """Whether a word names an image file or folder; dog/puppy and the bare name of a folder do not."""
    from sca_caption.images import EXTENSIONS

    path = Path(word)
    folder = os.path.isdir(path) and (word.endswith(("/", os.sep)) or path.name != word)
    return word == "-" or path.suffix.lower() in EXTENSIONS or os.path.isfile(path) or folder


def paths_of(arguments: argparse.Namespace) -> list[Path]:
    """The files to caption, folders searched. Raises UserError if there are none."""
    from sca_caption.images import find_images

    if arguments.demo and arguments.images:
        raise UserError(
            f"--demo has its own photographs, found {arguments.images[0]!r} too; give one or the other"
        )
    if arguments.demo:
        return sorted(DEMO.glob("*.jpg"))
    if not arguments.images:
        call = command("caption.py")
        raise UserError(f"no image given; try {call} photo.jpg, or {call} --demo")
    named: list[str] = []
    for image in arguments.images:
        named += read_list(sys.stdin.buffer.read()) if image == "-" else [image]
    if not named:
        raise UserError("no paths on standard input; give one per line")
    return find_images(named)


def require_reread(path: Path, flag: str) -> None:
    """Raise UserError for an image that can be read only once, such as a pipe, with a flag that reads it again."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{flag} reads the image again, which {path} cannot; save it to a file first")


def read_list(lines: bytes) -> list[str]:
    """Paths, one per line or, as `find -print0` writes them, ended by zero bytes; in the file system's encoding.

    Raises UserError for an image in their place.
    """
    if lines.startswith(IMAGE_STARTS):
        raise UserError("- reads paths from standard input, found an image; give /dev/stdin for that")
    separator = b"\0" if b"\0" in lines else b"\n"
    return [os.fsdecode(path) for line in lines.split(separator) if (path := line.rstrip(b"\r"))]
