"""Reading of image files: modes, orientations, damage, resizing, augmentation, warnings and errors."""

import contextlib
import io
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from sca_caption import images
from sca_caption.images import (
    UPRIGHT,
    ImageError,
    Transform,
    augment,
    find_images,
    fit,
    load,
    open_image,
    opened,
    upright_size,
)
from sca_caption.runtime.errors import UserError
from tests.helpers.odd_folders import lock, odd_folder

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(side: int = 32) -> Image.Image:
    """An image of four colours: red and green at the top, blue and white at the bottom."""
    image = Image.new("RGB", (side, side), RED)
    half = side // 2
    for colour, corner in ((GREEN, (half, 0)), (BLUE, (0, half)), (WHITE, (half, half))):
        image.paste(colour, (*corner, corner[0] + half, corner[1] + half))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Colours at the centres of the four quadrants: top left, top right, bottom left, bottom right."""
    width, height = image.size
    return [image.getpixel((x * width // 4, y * height // 4)) for y in (1, 3) for x in (1, 3)]


def close(found, wanted, tolerance: int = 12) -> bool:
    return bool(np.abs(np.array(found, int) - np.array(wanted, int)).max() <= tolerance)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def palette_with_transparency() -> bytes:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (4, 0, 8, 8))
    return encoded(image, "PNG", transparency=1)


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)


def half_transparent(mode: str) -> bytes:
    image = Image.new("RGBA", (8, 8), (*RED, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    return encoded(image.convert(mode), "PNG")


GREY_16 = np.array([[0, 65535], [32768, 257]], np.uint16).repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(quadrants(), "PNG"), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants(), "BMP"), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants(), "TIFF"), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants(), "WEBP", lossless=True), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants(), "JPEG", quality=95, subsampling=0), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants().convert("CMYK"), "JPEG", quality=95), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants().convert("CMYK"), "TIFF"), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants().quantize(4), "PNG"), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants().convert("YCbCr"), "TIFF"), (RED, GREEN, BLUE, WHITE)),
        (encoded(quadrants().convert("L"), "PNG"), ((76,) * 3, (150,) * 3, (29,) * 3, WHITE)),
        (encoded(Image.fromarray(GREY_16), "PNG"), ((0,) * 3, WHITE, (128,) * 3, (1,) * 3)),
        (encoded(Image.fromarray(GREY_16), "TIFF"), ((0,) * 3, WHITE, (128,) * 3, (1,) * 3)),
        (encoded(Image.fromarray(GREY_16.astype(np.int32)), "TIFF"), ((0,) * 3, WHITE, (128,) * 3, (1,) * 3)),
        (
            encoded(Image.fromarray(GREY_16.astype(np.float32) / 65535), "TIFF"),
            ((0,) * 3, WHITE, (128,) * 3, (1,) * 3),
        ),
        (encoded(Image.fromarray((GREY_16 > 999) * np.uint8(255)).convert("1"), "PNG"),
         ((0,) * 3, WHITE, WHITE, (0,) * 3)),
        (half_transparent("RGBA"), (RED, WHITE, RED, WHITE)),
        (half_transparent("LA"), ((76,) * 3, WHITE, (76,) * 3, WHITE)),
        (palette_with_transparency(), (RED, WHITE, RED, WHITE)),
        (encoded(quadrants(), "PNG", transparency=GREEN), (RED, WHITE, BLUE, WHITE)),
        (animation("GIF"), (RED,) * 4),
        (animation("WEBP"), (RED,) * 4),
        (animation("PNG"), (RED,) * 4),
    ],
    ids=["png", "bmp", "tiff", "webp", "jpeg", "cmyk jpeg", "cmyk tiff", "palette", "ycbcr", "grey",
         "16-bit png", "16-bit tiff", "32-bit", "float", "1-bit", "rgba", "la", "palette transparency",
         "rgb transparency", "animated gif", "animated webp", "animated png"],
)  # fmt: skip
def test_every_mode_becomes_rgb_with_the_displayed_colours(tmp_path, data, expected):
    path = tmp_path / "imágé 画.bin"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (data, path, str(path)):
            image = open_image(source)
            assert image.mode == "RGB"
            assert close(corners(image), expected), corners(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_once(orientation):
    upright = quadrants().resize((48, 32), Image.Resampling.NEAREST)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)  # the two quarter turns undo each other
    stored = upright if orientation == 1 else upright.transpose(UPRIGHT[inverse])
    exif = Image.Exif()
    exif[0x0112] = orientation
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = orientation
    files = [encoded(stored, kind, exif=exif.tobytes()) for kind in ("JPEG", "PNG", "WEBP")]
    files += [
        encoded(stored, "TIFF", tiffinfo=tags, **options) for options in ({}, {"compression": "tiff_lzw"})
    ]
    for data in files:
        with opened(data) as image:
            kind = image.format
            assert upright_size(image) == (48, 32), kind
        for source in (data, Image.open(io.BytesIO(data))):
            image = open_image(source)
            assert image.size == (48, 32)
            assert close(corners(image), (RED, GREEN, BLUE, WHITE), 60), (kind, corners(image))
        small = Image.fromarray(load(data, Transform(24)))
        assert close(corners(small), (RED, GREEN, BLUE, WHITE), 60), (kind, corners(small))


def test_image_with_damaged_exif_is_read():
    data = encoded(quadrants(), "JPEG", exif=b"Exif\0\0garbage in, garbage out")
    assert close(corners(open_image(data)), (RED, GREEN, BLUE, WHITE), 60)


def noise(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


JPEG, PNG = encoded(noise(64, 64), "JPEG"), encoded(noise(64, 64), "PNG")
VIDEO = b"\0\0\0\x18ftypisom" + bytes(40)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty file \(0 bytes\); get the file again"),
        (b"not a picture at all\n" * 9, "not an image, or damaged at its start; get it again or convert it"),
        (VIDEO, "a kind of file Pillow cannot open; convert it to JPEG"),
        (JPEG[: len(JPEG) // 2], r"damaged image \(image file is truncated .*\); get the file again"),
        (PNG[: len(PNG) // 2], r"damaged image \(.*\); get the file again"),
        (PNG[:40], "not an image, or damaged at its start"),
        (JPEG[:30], r"(damaged|not an) image"),
        (PNG.replace(b"IDAT", b"IDAX", 1), "not an image, or damaged at its start"),
    ],
    ids=["empty", "text", "video", "half a jpeg", "half a png", "png header", "jpeg header",
         "png without data"],
)  # fmt: skip
def test_unusable_files_raise_path_and_reason_in_one_line(tmp_path, content, reason):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        load(path, Transform(32))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match=r"^the image: "):
        open_image(content)


def test_missing_files_folders_and_too_many_pixels(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match=r"none\.jpg: no such file; check the path"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="a folder without images; give an image or a folder of images"):
        open_image(tmp_path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/a.jpg").touch()
    with pytest.raises(ImageError, match="a folder, not an image; give the images in it"):
        open_image(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    open_image(encoded(Image.new("1", (1400, 1400)), "PNG"))  # Pillow warns here; the warning is hidden
    with pytest.raises(ImageError, match="more than 2 million pixels; make it smaller first"):
        open_image(encoded(Image.new("1", (1500, 1500)), "PNG"))


def test_image_error_is_a_user_error_and_pickles():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "why; what to do")))
    assert isinstance(error, UserError)
    assert (str(error), error.name, error.reason) == ("a.jpg: why; what to do", "a.jpg", "why; what to do")


def test_resize_squashes_the_image_and_crop_takes_the_centre():
    wide = Image.new("RGB", (90, 30), RED)
    wide.paste(GREEN, (30, 0, 60, 30))
    wide.paste(BLUE, (60, 0, 90, 30))
    squashed = fit(wide, Transform(30, "resize"))
    assert [tuple(squashed[15, x]) for x in (4, 15, 25)] == [RED, GREEN, BLUE]
    cropped = fit(wide, Transform(30, "crop"))
    assert np.array_equal(cropped, np.full((30, 30, 3), GREEN, np.uint8))
    tall = fit(wide.transpose(Image.Transpose.ROTATE_90), Transform(30, "crop"))
    assert np.array_equal(tall, cropped)


def test_image_of_model_size_is_unchanged():
    image = noise(48, 48)
    for mode in ("resize", "crop"):
        assert np.array_equal(fit(image, Transform(48, mode)), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2), (7, 5)])
@pytest.mark.parametrize("mode", ["resize", "crop"])
def test_any_size_is_resized_to_model_size(size, mode):
    data = encoded(Image.new("RGB", size, (10, 20, 30)), "PNG")
    assert np.array_equal(load(data, Transform(32, mode)), np.full((32, 32, 3), (10, 20, 30)))


def test_jpeg_decoded_at_reduced_size_is_close_to_full_decoding():
    smooth = noise(16, 12).resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95)
    for mode in ("resize", "crop"):
        transform = Transform(96, mode)
        small, whole = load(data, transform), fit(open_image(data), transform)
        assert np.abs(small.astype(int) - whole.astype(int)).mean() < 1


def test_transform_is_checked_and_restored_from_a_dict():
    transform = Transform(160, "crop")
    assert Transform.from_dict(transform.to_dict()) == transform
    with pytest.raises(UserError, match="unknown resize mode 'zoom'; one of: crop, resize"):
        Transform(224, "zoom")
    with pytest.raises(UserError, match="image size is 0 pixels"):
        Transform(0)


def test_find_images_searches_folders_and_keeps_files(tmp_path):
    names = ["b.JPG", "a.png", "sub/c.webp", "sub/deep/d.jpeg", "notes.txt", ".hidden.jpg", "._b.JPG",
             ".cache/e.jpg", "__MACOSX/f.jpg", "sub/ü.gif"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    odd = tmp_path / "notes.txt"
    found = find_images([odd, tmp_path, tmp_path / "empty", tmp_path / "missing.jpg"])
    inside = ["a.png", "b.JPG", "sub/c.webp", "sub/ü.gif", "sub/deep/d.jpeg"]
    assert found == [odd, *(tmp_path / name for name in inside), tmp_path / "empty", tmp_path / "missing.jpg"]


def test_find_images_keeps_folders_that_cannot_be_listed(tmp_path, photos, monkeypatch):
    folder = odd_folder(tmp_path / "odd", photos[0])
    names = ["a.jpg", "again.jpg", "broken.jpg", "b/c.jpg", "linked/e.jpg", "shut/d.jpg"]
    assert find_images([folder]) == [folder / name for name in names]
    lock(monkeypatch, folder / "shut")
    assert find_images([folder]) == [folder / name for name in [*names[:-1], "shut"]]
    with pytest.raises(ImageError, match=r"shut: .*cannot be listed \(Permission denied\)"):
        open_image(folder / "shut")
    with pytest.raises(ImageError, match=r"broken\.jpg: no such file"):
        open_image(folder / "broken.jpg")


def test_augment_is_deterministic_and_keeps_colours_and_sides():
    transform, picture = Transform(32), quadrants(64)
    for seed in range(30):
        view = augment(picture, transform, random.Random(seed))
        assert view.shape == (32, 32, 3)
        assert view.dtype == np.uint8
        assert np.array_equal(view, augment(np.asarray(picture), transform, random.Random(seed)))
        above_left, above_right, below_left, _ = corners(Image.fromarray(view))
        assert [np.argmax(c) for c in (above_left, above_right, below_left)] == [0, 1, 2]


def test_augment_with_flip_mirrors_half_of_the_images():
    transform, picture = Transform(16), quadrants()
    views = [augment(picture, transform, random.Random(seed), flip=True) for seed in range(200)]
    mirrored = sum(np.argmax(corners(Image.fromarray(view))[0]) == 1 for view in views)
    assert 70 < mirrored < 130  # 4 sigma around 100


def test_augment_limits_cropping_and_changes_of_brightness():
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    transform = Transform(256)
    widths, means = [], []
    for seed in range(100):
        view = augment(ramp // 2 + 64, transform, random.Random(seed)).astype(float)
        widths.append(np.ptp(view.mean((0, 2))))
        means.append(view.mean())
    assert min(widths) > 127 * 0.7**0.5 * 0.85**0.5 * 0.85**2 - 3
    assert 128 * 0.75 < min(means) < 128 < max(means) < 128 * 1.25


def test_reading_in_threads_keeps_warning_filters():
    """`warnings.catch_warnings` in overlapping threads would replace the user's filters for good."""
    odd = encoded(Image.new("P", (64, 64)), "PNG", transparency=b"\0" * 9)  # Pillow warns as it converts it

    def other_warning_is_shown() -> bool:
        with pytest.warns(RuntimeWarning, match="not of Pillow"):
            warnings.warn("not of Pillow", RuntimeWarning, stacklevel=1)
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # stands for a filter of the user
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as threads:
            for _ in threads.map(lambda _: load(odd, Transform(32)), range(200)):
                pass
        assert warnings.filters == before
        assert other_warning_is_shown()


def test_catch_warnings_while_images_are_read_keeps_warning_filters():
    """`catch_warnings` copies the list of filters, and restores the first list when it ends."""
    before = list(warnings.filters)
    with contextlib.ExitStack() as image, warnings.catch_warnings():
        image.enter_context(opened(PNG))
    assert warnings.filters == before
    image = contextlib.ExitStack()
    image.enter_context(opened(PNG))
    with warnings.catch_warnings():
        image.close()
        assert warnings.filters == before
    assert warnings.filters == before


def test_errors_of_the_callers_block_propagate():
    data = encoded(quadrants(), "PNG")
    with pytest.raises(NameError), opened(data) as image:
        image.load()
        undefined_name  # noqa: B018, F821
    with pytest.raises(ImageError, match="damaged"):
        load(data[:-40], Transform(32))


@pytest.mark.parametrize("error", [NameError, TypeError])
def test_errors_outside_decoding_propagate(monkeypatch, error):
    """Only calls into Pillow's decoders may turn errors into ImageError."""

    def broken(image, transform):
        raise error("a mistake in this package")

    monkeypatch.setattr(images, "_resized", broken)
    with pytest.raises(error, match="a mistake in this package"):
        load(PNG, Transform(32))


def test_every_error_of_a_decoder_is_an_image_error():
    """Damage random bytes of one file per format. With this seed, Pillow raises errors of at least three types."""
    rng, causes = random.Random(0), set()
    originals = [
        encoded(noise(24, 24), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
    ]
    for trial in range(2100):
        data = bytearray(originals[trial % len(originals)])
        for _ in range(rng.choice([1, 2, 4, 8])):
            data[rng.randrange(min(len(data), 120))] = rng.randrange(256)
        try:
            load(bytes(data), Transform(8))
        except ImageError as error:
            causes.add(type(error.__cause__))
    assert len(causes) >= 3, causes
