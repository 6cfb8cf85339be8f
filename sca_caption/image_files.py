"""Image files: where they are, which formats are opened, and the errors of those that cannot be used."""

import contextlib
import errno
import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from PIL import Image, UnidentifiedImageError

from sca_caption.image_memory import one_at_a_time
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.folders import walk
from sca_caption.runtime.programs import install_command

# The formats that are opened, by Pillow's names, and the suffixes that folders are searched for. Pillow knows others,
# of which EPS starts Ghostscript.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "MPO": (".mpo",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
    "HEIF": (".heic", ".heif"),
}
EXTENSIONS = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# How files of other formats begin that come instead of photographs.
OTHERS = {
    b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF", b"8BPS": "PSD", b"<svg": "SVG", b"\0\0\1\0": "ICO",
}  # fmt: skip
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
# What Pillow's decoders raise for damaged files, found in the `raise` statements of its plugins and by decoding 120,000
# randomly damaged files of 33 formats. NameError is not among them. DecompressionBombError and MemoryError are handled
# separately.
DECODING_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_BYTES = 1 << 20  # of a text in a PNG; Pillow refuses longer ones
URL = re.compile(r"(data(?=:)|[A-Za-z][A-Za-z0-9+.-]+(?=:/)):/*")
NAME_CHARACTERS = 200  # of a name in messages
HELD_BYTES = 1 << 26  # of a file on disk; a larger one is read later
STREAM_BYTES = 1 << 28  # read at most from a pipe, which may have no end


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self) -> bytes: ...


Source = str | os.PathLike | bytes | bytearray | memoryview | Readable | Image.Image
CLOSED = "closed before its pixels were read; give it before it is closed"
KINDS = "give a path, the bytes of a file, a file opened in binary mode, a PIL image, an array or a tensor"


class ImageError(UserError):
    """An image that cannot be used. name: of the image. reason: why, and what to do."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both in args, so that it pickles across processes
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class HeldFile(io.BytesIO):
    """The contents of a file in memory, with the file's name."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


def is_readable(value: Any) -> bool:
    """Whether `value` is a file object."""
    return callable(getattr(value, "read", None))


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The image files that `paths` name: folders are searched by file extension and sorted, files stay as given.

    See `runtime.folders.walk` for what is searched. A folder without images, one that cannot be listed and a missing file
    stay in the list; opening them raises the error that says what is wrong.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        found += _images_in(path) if os.path.isdir(path) else [path]
    return found


def _images_in(folder: Path) -> list[Path]:
    unlisted: list[Path] = []
    files = [
        folder / path
        for path, entry in walk(folder, lambda path, _: unlisted.append(path))
        if os.path.splitext(entry.name)[1].lower() in EXTENSIONS
    ]
    return [*files, *unlisted] or [folder]


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """`source` as Pillow opens it, not decoded yet.

    Raises ImageError if it cannot be opened. Errors of the caller's block pass unchanged; `images.decode` raises
    ImageError for damaged pixels.
    """
    with pillow_warnings_hidden(), contextlib.ExitStack() as stack:
        if isinstance(source, Image.Image):
            yield source
            return
        name = name_of(source)
        with image_errors(name):
            file = stack.enter_context(_open_file(source, name))
            image = stack.enter_context(_open_image(file, name))
            stack.enter_context(one_at_a_time(image))
        yield image


def hold(source: Source) -> Source:
    """`source` as it is now: files and buffers are read, because they may change or be read only once.

    A file on disk of more than HELD_BYTES stays a path. Raises ImageError for one that cannot be read.
    """
    if isinstance(source, bytes | Image.Image):
        return source
    name = name_of(source)
    with _open_file(source, name) as file:
        if not isinstance(file, io.BytesIO) and file.seek(0, os.SEEK_END) > HELD_BYTES:
            return source
        return HeldFile(_contents(file, name), name)


@contextlib.contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Raise what Pillow's decoders raise as ImageError. For blocks of calls into Pillow alone.

    Other errors, such as NameError, are programming errors and pass unchanged.
    """
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(name, f"more than {limit:.0f} million pixels; make it smaller first") from error
    except MemoryError as error:
        raise ImageError(name, "does not fit in memory; make it smaller first") from error
    except DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno:
            raise ImageError(name, unreadable(error)) from error
        if isinstance(error, ValueError) and "closed" in str(error):
            raise ImageError(name, CLOSED) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"damaged image ({reason}); get the file again") from error


def unreadable(error: OSError) -> str:
    """Why a file cannot be opened or read, and what to do."""
    if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG:
        return "no such file; check the path"
    if isinstance(error, PermissionError):
        return "no permission to read it; change the file's permissions"
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself; give the file that is meant"
    return f"cannot be read ({error.strerror or error}); check the disk or the connection to it"


def name_of(source: object) -> str:
    """The name of an image in messages."""
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source) or "''"
    else:
        names = (getattr(source, attribute, "") for attribute in ("filename", "name"))
        name = next((name for name in names if isinstance(name, str) and name), "the image")
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"


def _open_file(source: object, name: str) -> BinaryIO:
    """The file of a source, which can be read from its start again. Raises ImageError if it cannot be read."""
    if isinstance(source, str | os.PathLike):
        return _open_path(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source if isinstance(source, bytes) else bytes(source))
    if is_readable(source):
        return io.BytesIO(_contents(source, name))
    shown = " ".join(repr(source).split())[:60]
    raise ImageError(f"{type(source).__name__} {shown}", f"not an image; {KINDS}")


def _open_path(path: str | os.PathLike, name: str) -> BinaryIO:
    if not os.fspath(path):
        raise ImageError(name, "an empty path; give the path of an image")
    try:
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    except IsADirectoryError as error:
        raise ImageError(name, _folder_reason(Path(os.fsdecode(path)))) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        url = URL.match(name)
        if url and not isinstance(error, PermissionError):
            rest = name[url.end() :]
            name = f"{url[1]}:{rest}" if url[1] == "data" else f"{url[1]}://{rest}"
            raise ImageError(name, "a URL, not a file; download it first") from error
        reason = unreadable(error) if isinstance(error, OSError) else "no such file; check the path"
        raise ImageError(name, reason) from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:  # a pipe can be read once and not from its start again
        data = file.read(STREAM_BYTES + 1)
    if len(data) > STREAM_BYTES:
        raise ImageError(name, f"no end after {STREAM_BYTES / 1e6:.0f} MB; save the image to a file first")
    return io.BytesIO(data)


def _folder_reason(folder: Path) -> str:
    """What is wrong with a folder instead of an image."""
    errors: list[OSError] = []
    files = walk(folder, lambda _, error: errors.append(error))
    if any(os.path.splitext(entry.name)[1].lower() in EXTENSIONS for _, entry in files):
        return "a folder, not an image; give the images in it"
    if errors:
        return f"a folder that cannot be listed ({errors[0].strerror}); change its permissions"
    return "a folder without images; give an image or a folder of images"


def _contents(file: Any, name: str) -> bytes:
    """All bytes of a file object, from its start if it can seek."""
    if isinstance(file, io.BytesIO):
        try:
            return file.getvalue()
        except ValueError as error:
            raise ImageError(name, CLOSED) from error
    try:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # what files that cannot seek raise
            file.seek(0)
        data = file.read()
    except Exception as error:  # a caller's object raises what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"cannot be read ({reason}); give a file that is open") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        kind = type(data).__name__
        raise ImageError(name, f"its read() returns {kind}, not bytes; open it in binary mode")
    return bytes(data)


def _open_image(file: BinaryIO, name: str) -> Image.Image:
    """Image.open for the formats of FORMATS, with reasons in plain words."""
    head = file.read(64)
    file.seek(0)
    if not head:
        raise ImageError(name, "empty file (0 bytes); get the file again")
    if head.startswith(PNG_SIGNATURE):
        file = without_png_metadata(file)
    is_heif = head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
    heif = is_heif and register_heif()
    try:
        return _identify(file)
    except UnidentifiedImageError as error:
        if is_heif and not heif:
            install = install_command("heic")
            reason = f"HEIC needs pillow-heif, which is not installed; {install}, or convert it"
            raise ImageError(name, reason) from error
        if head[4:8] == b"ftyp" and not is_heif:
            raise ImageError(name, "a kind of file Pillow cannot open; convert it to JPEG") from error
        if head[:4] in OTHERS:
            reason = f"the format {OTHERS[head[:4]]} is not opened; convert it to JPEG or PNG"
            raise ImageError(name, reason) from error
        raise ImageError(name, "not an image, or damaged at its start; get it again or convert it") from error


def _identify(file: BinaryIO) -> Image.Image:
    """Image.open for the formats of FORMATS. Raises UnidentifiedImageError for others."""
    tried: set[str] = set()
    for register in (Image.preinit, Image.init):  # the second imports all plugins, which takes longer
        register()
        known = [name for name in FORMATS if name in Image.OPEN and name not in tried]
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(file, formats=known)
        tried.update(known)
    raise UnidentifiedImageError


def without_png_metadata(file: BinaryIO) -> BinaryIO:
    """The PNG without colour profiles, texts, later frames and other chunks that do not change its pixels.

    Pillow refuses a file with a profile or a text of more than 1 MB, such as the workflow of an image generator.
    """
    position, end = len(PNG_SIGNATURE), file.seek(0, os.SEEK_END)
    parts = [(0, position)]  # the bytes that are kept, from and to
    while position + 8 <= end:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        after = min(end, position + length + 12)
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf") or _holds_orientation(kind, file, length):
            start, stop = parts[-1]
            parts[-1:] = [(start, after)] if stop == position else [(start, stop), (position, after)]
        position = after
    file.seek(0)
    if parts == [(0, end)]:
        return file
    kept = io.BytesIO()
    for start, stop in parts:
        file.seek(start)
        kept.write(file.read(stop - start))
    kept.seek(0)
    return kept


def _holds_orientation(kind: bytes, file: BinaryIO, length: int) -> bool:
    """Whether a chunk, whose contents come next in the file, is a text that Pillow reads the orientation from."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or length > TEXT_BYTES:
        return False
    keyword, _, text = file.read(length).partition(b"\0")
    if keyword not in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
        return False
    if kind == b"tEXt" or (kind == b"iTXt" and text[:1] == b"\0"):
        return True
    try:
        return kind == b"zTXt" and len(zlib.decompressobj().decompress(text[1:], TEXT_BYTES)) < TEXT_BYTES
    except zlib.error:
        return False


def register_heif() -> bool:
    """Let Pillow open HEIC, if pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


# Pillow's warnings about odd metadata are hidden while at least one block reads an image.
_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_hiding = threading.Lock()  # guards the two below
_hiding_blocks = 0
_filters: list = []  # the list to which the first block added the filter


def _renew_lock() -> None:
    """After a fork, the thread that held the lock is gone."""
    global _hiding
    _hiding = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextlib.contextmanager
def pillow_warnings_hidden() -> Iterator[None]:
    """Hide warnings of Pillow's modules in the block, also while several threads read images.

    `warnings.catch_warnings` is not thread-safe: overlapping blocks restore each other's filters, so the user's filters
    can be lost. Here, the first block adds one filter and the last block removes it. All others stay as they are.
    """
    global _hiding_blocks, _filters
    with _hiding:
        _hiding_blocks += 1
        if _hiding_blocks == 1:
            _filters = warnings.filters  # type: ignore[assignment]
            _filters.insert(0, _PILLOW_FILTER)
    try:
        yield
    finally:
        with _hiding:
            _hiding_blocks -= 1
            if not _hiding_blocks:
                # Two lists, if another thread has entered or left `catch_warnings`, which copies the list, meanwhile.
                for filters in (_filters, warnings.filters):
                    filters[:] = [each for each in filters if each is not _PILLOW_FILTER]  # type: ignore[index]
