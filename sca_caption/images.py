"""Images of any mode and size to RGB uint8 at model size. `image_files` opens them.

The only module that knows how images are resized, and the mean and standard deviation that networks were trained with.
"""

import dataclasses
import math
import os
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image

from sca_caption.image_files import (
    CLOSED,
    DECODING_ERRORS,
    EXTENSIONS,
    ImageError,
    Source,
    find_images,
    hold,
    image_errors,
    name_of,
    opened,
)
from sca_caption.image_memory import LIMIT_BYTES, decoder_bytes, pixel_bytes
from sca_caption.runtime.errors import UserError, choice

__all__ = [
    "EXTENSIONS", "MEAN", "MODES", "STD", "ImageError", "Source", "Transform", "augment", "crop_box", "decode",
    "find_images", "fit", "hold", "load", "load_with_thumbnail", "open_image", "opened", "orientation", "upright_size",
]  # fmt: skip
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB in 0..1, as torchvision's weights expect
STD = (0.229, 0.224, 0.225)
MODES = ("resize", "crop")
LARGE_PIXELS = 1 << 24  # larger images are reduced before they are resized, if that is enough
PART_SIDE = 1024  # pixels of the parts in which an image is converted
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


@dataclasses.dataclass(frozen=True)
class Transform:
    """Geometric transform of a photograph to `size` x `size` pixels.

    mode: "resize" squashes the whole photograph; "crop" keeps its aspect ratio and takes the centre.
    """

    size: int = 224
    mode: str = "resize"

    def __post_init__(self) -> None:
        choice(self.mode, MODES, "resize mode")
        if not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise UserError(f"image size is {self.size!r} pixels; give a whole number from 1 to 4096")

    def __str__(self) -> str:
        return f"images of {self.size} x {self.size} pixels ({self.mode})"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Transform":
        return cls(**fields)


def open_image(source: Source, enough: int | None = None) -> Image.Image:
    """Open an image as upright RGB: transparency on white, the first frame of an animation.

    enough: pixels of each side that are enough; larger images may be reduced.

    Raises ImageError with the path and the reason.
    """
    with opened(source) as image:
        upright = _upright_rgb(image, name_of(source), enough, is_file=image is not source)
        # A copy is neither the caller's object nor tied to a file.
        return upright.copy() if upright is image else upright


def load(source: Source, transform: Transform) -> np.ndarray:
    """`source` at model size: uint8 (S, S, 3). Raises ImageError with the path and the reason."""
    with opened(source) as image:
        return fit(
            _upright_rgb(image, name_of(source), 2 * transform.size, is_file=image is not source), transform
        )


def load_with_thumbnail(
    source: str | os.PathLike, transform: Transform, side: int
) -> tuple[np.ndarray, Image.Image]:
    """The result of `load`, and the whole image upright with no side longer than `side`, from one decoding."""
    with opened(source) as image:
        upright = _upright_rgb(image, name_of(source), max(2 * transform.size, side))
        small = upright.copy()
        small.thumbnail((side, side))
        return fit(upright, transform), small


def decode(image: Image.Image, transform: Transform, name: str = "the image") -> Image.Image:
    """The image that `opened` yields for a file, as RGB at model size; decodes a JPEG no larger than needed.

    Raises ImageError with the name and the reason.
    """
    return _resized(_upright_rgb(image, name, 2 * transform.size), transform)


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


def _upright_rgb(
    image: Image.Image, name: str, enough: int | None = None, *, is_file: bool = True
) -> Image.Image:
    """Decode the first frame and convert every mode to RGB. Raises ImageError with the name and the reason.

    enough: pixels of each side that are enough; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as they remain,
    and other large images are reduced. is_file: false for an image of the caller, which stays as it is.
    """
    if getattr(image, "fp", image) is None and getattr(image, "tile", False):  # pixels that nobody has read
        raise ImageError(name, CLOSED)
    if not image.width or not image.height:
        raise ImageError(name, f"{image.width} x {image.height} pixels; give an image that has some")
    with image_errors(name):
        size, beside = image.size, decoder_bytes(image) if is_file else 0
        if enough is not None and is_file:
            image.draft(None, (enough, enough))
        factor = 1
        if enough is not None and image.width * image.height > LARGE_PIXELS:
            factor = max(1, min(image.size) // enough)
        if is_file:
            _require_memory(image, size, beside, factor, name)
        image.load()
        # Only now, because Pillow itself turns the pixels of a TIFF while it loads them, and then takes the tag away.
        turn = UPRIGHT.get(orientation(image))
        rgb = _rgb(image, factor)
        return rgb.transpose(turn) if turn is not None else rgb


def _require_memory(image: Image.Image, size: tuple[int, int], beside: int, factor: int, name: str) -> None:
    """Raise ImageError if an image, which takes `beside` bytes more to decode, exceeds LIMIT_BYTES. size: of the file."""
    pixels = image.width * image.height
    converted = 0 if image.mode == "RGB" and factor == 1 else pixels // factor**2 * 4
    needed = pixels * pixel_bytes(image) + beside + converted
    if needed > LIMIT_BYTES:
        found = f"{size[0]} x {size[1]} pixels take {needed / 1e9:.1f} GB of memory"
        raise ImageError(
            name, f"{found}, at most {LIMIT_BYTES / 1e9:.1f} GB are allowed; make it smaller first"
        )


def _rgb(image: Image.Image, factor: int) -> Image.Image:
    """A decoded image as RGB with 1/factor of its sides. Converted part by part, because every step makes a copy."""
    is_levels = image.mode.startswith("I") or image.mode == "F"
    if image.mode == "RGB" and factor == 1 and not image.has_transparency_data:
        return image
    width, height = image.size
    found = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    top = _top_level(image) if is_levels else 0
    for left, upper, right, lower in _parts(image, factor):
        part = image.crop((left, upper, right, lower))
        if is_levels:
            part = Image.fromarray(_to_8_bit(np.asarray(part), top))
        if part.has_transparency_data:
            part = part.convert("RGBA")
            white = Image.new("RGBA", part.size, "white")
            part = Image.alpha_composite(white, part)
        part = part.convert("RGB")
        found.paste(part.reduce(factor) if factor > 1 else part, (left // factor, upper // factor))
    return found


def _parts(image: Image.Image, factor: int = 1) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover an image, whose corners are multiples of `factor`."""
    side = max(1, PART_SIDE // factor) * factor
    for upper in range(0, image.height, side):
        for left in range(0, image.width, side):
            yield left, upper, min(left + side, image.width), min(upper + side, image.height)


def _top_level(image: Image.Image) -> float:
    """The level of white in an image of 16 or 32 bits or floats."""
    if pixel_bytes(image) == 2:
        return 65535.0
    # The mode does not give the range: take the smallest usual one that holds the values.
    lowest, highest, is_whole = math.inf, -math.inf, True
    for box in _parts(image):
        levels = _finite(np.asarray(image.crop(box)))
        lowest, highest = min(lowest, levels.min()), max(highest, levels.max())
        is_whole = is_whole and np.array_equal(levels, np.round(levels))
    top = next((top for top in (1.0, 255.0, 65535.0) if highest <= top), highest)
    return 255.0 if top == 1.0 and lowest >= 0 and is_whole else top


def _finite(levels: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaNs that signal
        return np.nan_to_num(levels.astype(np.float64), posinf=0.0, neginf=0.0)


def _to_8_bit(levels: np.ndarray, top: float) -> np.ndarray:
    """Levels from 0 to `top` as uint8; Pillow's own conversion would clip them at 255."""
    return np.clip(_finite(levels) / top * 255 + 0.5, 0, 255).astype(np.uint8)
