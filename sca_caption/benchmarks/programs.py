"""The programs as processes, and photographs for them."""

import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

import sca_caption
from sca_caption.image_files import register_heif

PHOTOGRAPHS = Path(sca_caption.__file__).with_name("photographs")


def command(name: str, *options: str | Path) -> list[str]:
    """The command that starts a program, installed or not."""
    call = f"import sys; from sca_caption.cli.{name} import main; sys.exit(main())"
    return [sys.executable, "-c", call, *map(str, options)]


def tracebacks(log: str) -> Iterator[str]:
    if "Traceback" in log:
        yield f"traceback: {log[log.index('Traceback') :][:4000]}"


def encoded_photographs() -> dict[str, bytes]:
    """A small photograph in every format that this Pillow writes, by file name."""
    register_heif()
    photo = Image.open(PHOTOGRAPHS / "coffee.jpg").convert("RGB").resize((96, 64))
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("a.jpg", "RGB", {}), ("progressive.jpg", "RGB", {"progressive": True}), ("cmyk.jpg", "CMYK", {}),
        ("a.png", "RGB", {}), ("rgba.png", "RGBA", {}), ("palette.png", "P", {}), ("16.png", "I;16", {}),
        ("a.gif", "P", {}), ("a.bmp", "RGB", {}), ("a.ppm", "RGB", {}), ("a.webp", "RGB", {}), ("a.avif", "RGB", {}),
        ("a.tif", "RGB", {"compression": "tiff_adobe_deflate"}), ("jpeg.tif", "RGB", {"compression": "jpeg"}),
        ("float.tif", "F", {}), ("a.jp2", "RGB", {}), ("a.heic", "RGB", {}),
    ]  # fmt: skip
    found = {}
    for name, mode, options in ways:
        stream = io.BytesIO()
        with suppress(KeyError, OSError):  # a format that this Pillow does not write
            photo.convert("L" if mode == "I;16" else mode).convert(mode).save(
                stream, Image.registered_extensions()[Path(name).suffix], **options
            )
            found[name] = stream.getvalue()
    return found
