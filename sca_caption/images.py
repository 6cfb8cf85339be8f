"""Images from a path, bytes or Pillow, of any mode and size, to RGB uint8 at model size.

The only module that knows how images are resized, and the mean and standard deviation that networks were trained with.
"""

import contextlib
import dataclasses
import io
import os
import random
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.folders import walk

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB in 0..1, as torchvision's weights expect
STD = (0.229, 0.224, 0.225)
MODES = ("resize", "crop")
EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".heic", ".heif",
))  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag, and the transpositions that turn each of its values upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise for damaged files, found in the `raise` statements of its plugins and by decoding 120,000
# randomly damaged files of 33 formats. NameError is not among them. DecompressionBombError and MemoryError are handled
# separately.
DECODING_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
Source = str | os.PathLike | bytes | Image.Image


class ImageError(UserError):
    """An image that cannot be used. name: of the image. reason: why, and what to do."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both in args, so that it pickles across processes
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Transform:
    """Geometric transform of a photograph to `size` x `size` pixels.

    mode: "resize" squashes the whole photograph; "crop" keeps its aspect ratio and takes the centre.
    """

    size: int = 224
    mode: str = "resize"

    def __post_init__(self):
        choice(self.mode, MODES, "resize mode")
        if not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise UserError(f"image size is {self.size!r} pixels; give a whole number from 1 to 4096")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Transform":
        return cls(**fields)


def open_image(source: Source) -> Image.Image:
    """Open any image that Pillow knows, as upright RGB: transparency on white, the first frame of an animation.

    Raises ImageError with the path and the reason.
    """
    with opened(source) as image:
        upright = _upright_rgb(image, _name_of(source))
        # A copy is neither the caller's object nor tied to a file.
        return upright.copy() if upright is image else upright


def load(source: Source, transform: Transform) -> np.ndarray:
    """`source` at model size: uint8 (S, S, 3). Raises ImageError with the path and the reason."""
    with opened(source) as image:
        reduced = None if image is source else transform  # `draft` would change the caller's object
        return fit(_upright_rgb(image, _name_of(source), reduced), transform)


def load_with_thumbnail(
    source: str | os.PathLike, transform: Transform, side: int
) -> tuple[np.ndarray, Image.Image]:
    """The result of `load`, and the whole image upright with no side longer than `side`, from one decoding."""
    with opened(source) as image:
        upright = _upright_rgb(image, _name_of(source), transform)
        small = upright.copy()
        small.thumbnail((side, side))
        return fit(upright, transform), small


def decode(image: Image.Image, transform: Transform, name: str = "the image") -> Image.Image:
    """The image that `opened` yields for a file, as RGB at model size; decodes a JPEG no larger than needed.

    Raises ImageError with the name and the reason.
    """
    return _resized(_upright_rgb(image, name, transform), transform)


def fit(image: Image.Image, transform: Transform) -> np.ndarray:
    """Fit an RGB image to model size: uint8 (S, S, 3)."""
    return np.array(_resized(image, transform))


def crop_box(size: tuple[int, int], transform: Transform) -> tuple[float, float, float, float]:
    """The part of an image of `size` (width, height) that becomes the square: left, top, right, bottom."""
    width, height = size
    if transform.mode == "resize":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _resized(image: Image.Image, transform: Transform) -> Image.Image:
    size = transform.size
    if image.size == (size, size):
        return image
    box = crop_box(image.size, transform)  # cropped while resizing: a long strip is never enlarged whole
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def augment(
    image: Image.Image | np.ndarray,
    transform: Transform,
    rng: random.Random,
    flip: bool = False,
    *,
    crop_scale: float = 0.7,
    ratio: float = 0.75,
    color_jitter: float = 0.15,
) -> np.ndarray:
    """A random view for training, uint8 (S, S, 3), that captions of the image still describe by default.

    flip: mirror with probability 1/2; not for captions that say left or right. crop_scale: smallest fraction of the area
    to crop. ratio: the crop's aspect ratio changes by a factor from `ratio` to 1 / `ratio`. color_jitter: largest change
    of brightness and contrast. Hue is unchanged, because captions name colours.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    width, height = image.size
    area, aspect = rng.uniform(crop_scale, 1.0), rng.uniform(ratio, 1 / ratio)
    crop_width = min(width, width * (area * aspect) ** 0.5)
    crop_height = min(height, height * (area / aspect) ** 0.5)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    image = image.resize((transform.size, transform.size), Image.Resampling.BILINEAR, box=box)
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if not color_jitter:
        return np.array(image)
    brightness, contrast = (rng.uniform(1 - color_jitter, 1 + color_jitter) for _ in range(2))
    levels = (np.arange(256) - 128) * contrast * brightness + 128 * brightness
    return np.array(image.point(np.clip(levels, 0, 255).astype(np.uint8).tolist() * 3))


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The image files that `paths` name: folders are searched by file extension and sorted, files stay as given.

    See `runtime.folders.walk` for what is searched. A folder without images, one that cannot be listed and a missing file
    stay in the list; opening them raises the error that says what is wrong.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        found += _images_in(path) if path.is_dir() else [path]
    return found


def _images_in(folder: Path) -> list[Path]:
    unlisted: list[Path] = []
    files = [
        folder / path
        for path, entry in walk(folder, lambda path, _: unlisted.append(path))
        if os.path.splitext(entry.name)[1].lower() in EXTENSIONS
    ]
    return [*files, *unlisted] or [folder]


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DECODING_ERRORS:  # the pixels of an image with damaged EXIF data are intact
        return 1
    return value if value in UPRIGHT else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image that `opened` yields, as it is seen."""
    # Pillow gives the size of a TIFF as it is seen.
    swapped = orientation(image) >= 5 and image.format != "TIFF"
    return image.size[::-1] if swapped else image.size


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """`source` as Pillow opens it, not decoded yet.

    Raises ImageError if it cannot be opened. Errors of the caller's block pass unchanged; `decode` raises ImageError for
    damaged pixels.
    """
    with _pillow_warnings_hidden():
        if isinstance(source, Image.Image):
            yield source
            return
        name = _name_of(source)
        with _image_errors(name):
            image = _open(source, name)
        with image:
            yield image


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"damaged image ({reason}); get the file again") from error


def _name_of(source: Source) -> str:
    """The name of an image in messages."""
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "the image"
    return "the image" if isinstance(source, bytes) else str(os.fspath(source))


# Pillow's warnings about odd metadata are hidden while at least one block reads an image.
_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_hiding = threading.Lock()  # guards the two below
_hiding_blocks = 0
_filters: list = []  # the list to which the first block added the filter


@contextlib.contextmanager
def _pillow_warnings_hidden() -> Iterator[None]:
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


def _open(source: str | os.PathLike | bytes, name: str) -> Image.Image:
    """Image.open, with reasons in plain words."""
    try:
        if isinstance(source, bytes):
            head = source[:64]
        else:
            with open(source, "rb") as file:
                head = file.read(64)
        if not head:
            raise ImageError(name, "empty file (0 bytes); get the file again")
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError as error:
        raise ImageError(name, "no such file; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(name, _folder_reason(Path(name))) from error
    except PermissionError as error:
        raise ImageError(name, "no permission to read it; change the file's permissions") from error
    except UnidentifiedImageError as error:
        if head[4:8] == b"ftyp":
            raise ImageError(name, "a kind of file Pillow cannot open; convert it to JPEG") from error
        raise ImageError(name, "not an image, or damaged at its start; get it again or convert it") from error


def _folder_reason(folder: Path) -> str:
    """What is wrong with a folder in the place of an image."""
    errors: list[OSError] = []
    files = walk(folder, lambda _, error: errors.append(error))
    if any(os.path.splitext(entry.name)[1].lower() in EXTENSIONS for _, entry in files):
        return "a folder, not an image; give the images in it"
    if errors:
        return f"a folder that cannot be listed ({errors[0].strerror}); change its permissions"
    return "a folder without images; give an image or a folder of images"


def _upright_rgb(image: Image.Image, name: str, transform: Transform | None = None) -> Image.Image:
    """Decode the first frame and convert every mode to RGB. Raises ImageError with the name and the reason.

    transform: decode a JPEG at 1/2, 1/4 or 1/8 of its size if it is still twice as large as the model's images.
    """
    with _image_errors(name):
        if transform is not None:
            image.draft(None, (2 * transform.size, 2 * transform.size))
        image.load()
        # Only now, because Pillow itself turns the pixels of a TIFF while it loads them, and then takes the tag away.
        turn = UPRIGHT.get(orientation(image))
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_to_8_bit(np.asarray(image)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return image.transpose(turn) if turn is not None else image


def _to_8_bit(levels: np.ndarray) -> np.ndarray:
    """Grey levels of 16 or 32 bits or floats as uint8; Pillow's own conversion would clip them at 255."""
    if levels.dtype.itemsize == 2:
        top = 65535.0
    else:  # the mode does not give the range: take the smallest usual one that holds the values
        levels = np.nan_to_num(levels.astype(np.float64), posinf=0.0, neginf=0.0)
        top = next((top for top in (1.0, 255.0, 65535.0) if levels.max() <= top), levels.max())
        top = 255.0 if top == 1.0 and levels.min() >= 0 and np.array_equal(levels, np.round(levels)) else top
    return np.clip(levels / top * 255 + 0.5, 0, 255).astype(np.uint8)
