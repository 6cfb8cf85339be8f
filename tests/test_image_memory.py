"""Bounds of the memory that decoding takes: their arithmetic, images in parts, and large images one at a time."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sca_caption import image_memory, images
from sca_caption.image_files import opened
from sca_caption.image_memory import decoder_bytes, one_at_a_time, pixel_bytes
from sca_caption.images import ImageError, Transform, load, open_image

WIDTH, HEIGHT = 162, 96  # multiples of 3, the factor by which some are reduced
LEVELS = np.random.default_rng(0).integers(0, 256, (6, 10, 4), np.uint8)
SMOOTH = Image.fromarray(LEVELS).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


RGB = SMOOTH.convert("RGB")
SIXTEEN = Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257)
FLOATS = Image.fromarray(np.asarray(RGB.convert("L")).astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("data", "pixel", "decoder"),
    [
        (encoded(RGB, "JPEG"), 4, 0),
        # Coefficients of 16 bits: three of each pixel, or one and two quarters.
        (encoded(RGB, "JPEG", progressive=True, subsampling=0), 4, 6 * WIDTH * HEIGHT),
        (encoded(RGB, "JPEG", progressive=True, subsampling="4:2:0"), 4, 3 * WIDTH * HEIGHT),
        (encoded(RGB.convert("L"), "JPEG", progressive=True), 1, 2 * WIDTH * HEIGHT),
        (encoded(SMOOTH, "PNG"), 4, 0),
        (encoded(SIXTEEN, "PNG"), 2, 0),
        (encoded(RGB.convert("P"), "GIF"), 1, 0),
        (encoded(FLOATS, "TIFF", tiffinfo={278: 8}), 4, WIDTH * 8 * 4),
        (encoded(FLOATS, "TIFF", tiffinfo={278: 10**6}), 4, WIDTH * HEIGHT * 4),
        (encoded(RGB, "WEBP"), 4, 12 * WIDTH * HEIGHT),
    ],
    ids=["jpeg", "progressive 4:4:4", "progressive 4:2:0", "grey progressive", "rgba", "16-bit", "palette",
         "strips", "one strip", "webp"],
)  # fmt: skip
def test_memory_is_known_from_the_header(data, pixel, decoder):
    with opened(data) as image:
        assert (pixel_bytes(image), decoder_bytes(image)) == (pixel, decoder)


def test_an_image_that_takes_more_is_refused(monkeypatch):
    data, pixels = encoded(SMOOTH, "PNG"), WIDTH * HEIGHT
    monkeypatch.setattr(images, "LIMIT_BYTES", 8 * pixels)  # RGBA, and RGB of 4 bytes too
    open_image(data)
    load(data, Transform(16))
    monkeypatch.setattr(images, "LIMIT_BYTES", 8 * pixels - 1)
    for read in (open_image, lambda data: load(data, Transform(16))):
        with pytest.raises(
            ImageError, match=f"{WIDTH} x {HEIGHT} pixels take .* GB of memory.*make it smaller first"
        ):
            read(data)
    assert open_image(SMOOTH).size == SMOOTH.size  # the caller has it in memory already
    monkeypatch.setattr(images, "LARGE_PIXELS", pixels - 1)
    load(data, Transform(16))  # reduced to a third while it is converted
    progressive = encoded(RGB, "JPEG", progressive=True, subsampling=0)
    monkeypatch.setattr(images, "LIMIT_BYTES", 6 * pixels + 4 * pixels // 4)  # decoded at half its size
    load(progressive, Transform(16))
    with pytest.raises(ImageError, match="GB of memory"):
        open_image(progressive)
    monkeypatch.setattr(
        images, "LIMIT_BYTES", 6 * pixels - 1
    )  # the size is the file's, not the smaller one of decoding
    with pytest.raises(ImageError, match=f"{WIDTH} x {HEIGHT} pixels take"):
        load(progressive, Transform(16))


def test_the_limit_holds_for_all_that_pillow_opens():
    """The largest images that Pillow opens are decoded or refused, and none that phones take is refused."""
    limit, most = image_memory.LIMIT_BYTES, 2 * Image.MAX_IMAGE_PIXELS
    assert limit >= 4 * most  # RGBA that is reduced
    assert limit >= 16 * 50_000_000  # WebP of 50 million pixels
    assert limit <= 1.5e9 - 0.5e9


@pytest.mark.parametrize("image", [SMOOTH, RGB.convert("P"), SIXTEEN, FLOATS, RGB.convert("CMYK"), RGB.convert("1")],
                         ids=lambda image: image.mode)  # fmt: skip
def test_conversion_in_parts_is_conversion_as_a_whole(image, monkeypatch):
    data = encoded(image, "TIFF")
    whole = np.asarray(open_image(data))
    monkeypatch.setattr(images, "PART_SIDE", 33)
    assert np.array_equal(np.asarray(open_image(data)), whole)
    if image.mode != "1":  # dots of black and white, whose mean depends on the filter
        monkeypatch.setattr(images, "LARGE_PIXELS", 100)
        monkeypatch.setattr(images, "PART_SIDE", 10)
        small = load(data, Transform(16, "crop")).astype(int)
        assert np.abs(small - images.fit(Image.fromarray(whole), Transform(16, "crop"))).mean() < 2


def test_orientation_of_a_reduced_image(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(SMOOTH, "PNG", exif=exif.tobytes())
    whole = load(data, Transform(16)).astype(int)
    monkeypatch.setattr(images, "LARGE_PIXELS", 100)
    assert np.abs(load(data, Transform(16)) - whole).mean() < 2


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    inside, most, together = 0, 0, threading.Barrier(4)

    def enter(data):
        nonlocal inside, most
        with opened(data) as image, one_at_a_time(image):  # a thread may be in two blocks
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    def meet(data):
        with opened(data):
            together.wait(timeout=60)

    data = [encoded(SMOOTH, "PNG")] * 4
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(meet, data))
        monkeypatch.setattr(image_memory, "LARGE_BYTES", 0)
        list(threads.map(enter, data))
    assert most == 1
