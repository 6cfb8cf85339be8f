"""Opening of image files: formats, every kind of source, metadata, and what is said of sources that are no images."""

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sca_caption import image_files
from sca_caption.benchmarks.programs import encoded_photographs
from sca_caption.image_files import EXTENSIONS, FORMATS, OTHERS, HeldFile, ImageError, hold, opened
from sca_caption.images import Transform, load, open_image

RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PNG = encoded(Image.new("RGB", (8, 6), RED), "PNG")


def pixels(source) -> np.ndarray:
    return np.asarray(open_image(source))


def test_only_listed_formats_are_opened(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for a PostScript file, whatever its name."""

    def started(*_, **__):
        raise AssertionError("Ghostscript is started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    path = tmp_path / "photo.jpg"
    for kind in ("EPS", "PDF", "ICO", "TGA", "PCX"):
        path.write_bytes(encoded(Image.new("RGB", (32, 32), RED), kind))
        said = f"the format {kind} is not opened" if kind in OTHERS.values() else "not an image, or damaged"
        for source in (path, path.read_bytes()):
            with pytest.raises(ImageError, match=f"{said}.*; .*convert it"):
                load(source, Transform(16))
    for kind in set(FORMATS) - {"HEIF"}:
        if kind in Image.SAVE:  # this Pillow may lack AVIF
            path.write_bytes(encoded(Image.new("RGB", (32, 32), RED), kind))
            with opened(path) as image:
                assert image.format == ("JPEG" if kind == "MPO" else kind)
    assert {".jpg", ".png", ".heic", ".webp"} < EXTENSIONS and ".eps" not in EXTENSIONS


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_long_metadata_of_a_png_is_skipped(tmp_path):
    """Image generators store their workflow as text; Pillow refuses more than 1 MB of it, uncompressed."""
    many = zlib.compress(b'{"node": 1}' * 120_000)
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_100_000)))
    texts = chunk(b"zTXt", b"workflow\0\0" + many) + chunk(b"iTXt", b"workflow\0\1\0\0\0" + many)
    texts += chunk(b"zTXt", b"Raw profile type exif\0\0" + many)
    texts += chunk(b"tEXt", b"prompt\0" + b"a cat " * 200_000) + b"\0\0\0\4tEXtabcdwrong checksum"[:16]
    path = tmp_path / "photo.png"
    for data in (PNG[:33] + profile + PNG[33:], PNG[:33] + texts + PNG[33:], PNG[:-12] + texts + PNG[-12:]):
        path.write_bytes(data)
        for source in (path, data):
            assert np.array_equal(pixels(source), np.full((6, 8, 3), RED))


def test_orientation_and_transparency_of_a_png_are_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    image = Image.new("RGB", (8, 6), RED)
    for options in ({"exif": exif.tobytes()}, {"pnginfo": info}):
        assert open_image(encoded(image, "PNG", icc_profile=b"profile", **options)).size == (6, 8)
    palette = image.quantize(2)
    data = encoded(palette, "PNG", icc_profile=b"profile", transparency=palette.getpixel((0, 0)))
    assert np.array_equal(pixels(data), np.full((6, 8, 3), 255))


class OnlyRead:
    """A file object that cannot seek, as of a connection."""

    def __init__(self, data):
        self.data = data

    def read(self):
        return self.data


def test_every_kind_of_source_has_the_same_pixels(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    at_its_end = io.BytesIO(PNG)
    at_its_end.read()
    with open(path, "rb") as file, open(path, "rb", buffering=0) as raw:
        sources = [str(path), path, PNG, bytearray(PNG), memoryview(PNG), memoryview(PNG + PNG)[: len(PNG)]]
        sources += [io.BytesIO(PNG), at_its_end, file, raw, OnlyRead(PNG), OnlyRead(bytearray(PNG))]
        for source in sources:
            for given in (source, source, hold(source)):  # a file can be given twice
                assert np.array_equal(pixels(given), np.full((6, 8, 3), RED)), source


def test_what_is_held_does_not_change(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    buffer = bytearray(PNG)
    held = [hold(path), hold(buffer), hold(io.BytesIO(PNG))]
    path.write_bytes(b"other")
    buffer[:] = bytes(len(PNG))
    for source in held:
        assert np.array_equal(pixels(source), np.full((6, 8, 3), RED))
    path.write_bytes(PNG)
    monkeypatch.setattr(image_files, "HELD_BYTES", len(PNG))
    assert isinstance(hold(path), HeldFile)
    monkeypatch.setattr(image_files, "HELD_BYTES", len(PNG) - 1)
    assert hold(path) == path
    held = HeldFile(b"other", "a name")
    with pytest.raises(ImageError, match=r"^a name: not an image"):
        open_image(held)


def pipe(data: bytes) -> str:
    """The path of a pipe that gives `data` once."""
    reading, writing = os.pipe()

    def write():
        with open(writing, "wb") as file:
            file.write(data)

    threading.Thread(target=write, daemon=True).start()
    return f"/dev/fd/{reading}"


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no paths of open files")
def test_a_pipe_is_read_once(monkeypatch):
    long = encoded(Image.effect_noise((300, 300), 99).convert("RGB"), "PNG")  # more than a pipe holds
    assert np.array_equal(pixels(pipe(long)), pixels(long))
    with pytest.raises(ImageError, match="empty file"):
        open_image(pipe(b""))
    monkeypatch.setattr(image_files, "STREAM_BYTES", len(PNG) - 1)
    with pytest.raises(ImageError, match="no end"):
        open_image(pipe(PNG))


def closed_file() -> io.BytesIO:
    file = io.BytesIO(PNG)
    file.close()
    return file


def closed_image(loaded: bool) -> Image.Image:
    image = Image.open(io.BytesIO(PNG))
    if loaded:
        image.load()
    image.close()
    return image


def image_of_a_closed_file() -> Image.Image:
    file = io.BytesIO(PNG)
    image = Image.open(file)
    file.close()
    return image


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "^NoneType None: not an image; give a path"),
        (7, "^int 7: not an image"),
        ([1], r"^list \[1\]: not an image"),
        ("", "^'': an empty path"),
        ("https://example.com/dog.jpg", "^https://example.com/dog.jpg: a URL, not a file; download it first"),
        (Path("https://example.com/dog.jpg"), "^https://example.com/dog.jpg: a URL, not a file; download it first"),
        ("data:image/png;base64," + "A" * 9000, "^data:image/png;base64,A{150,}…: a URL"),
        ("a" * 9000, "^a{150,}…: no such file"),
        ("a\0b", "no such file"),
        ("dog:1.jpg", r"^dog:1\.jpg: no such file"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
        (OnlyRead("text"), r"^the image: its read\(\) returns str, not bytes; open it in binary mode"),
        (OnlyRead(None), r"its read\(\) returns NoneType"),
        (io.StringIO("text"), "open it in binary mode"),
        (closed_file(), "closed"),
        (closed_image(loaded=False), "closed before its pixels were read; give it before it is closed"),
        (closed_image(loaded=True), "closed before its pixels were read"),
        (image_of_a_closed_file(), "closed before its pixels were read"),
        (io.BytesIO(PNG[:-30]), r"damaged image \(.*\); get the file again"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_image_is_said_to_be_no_image(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        open_image(source)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_paths_that_cannot_be_opened(tmp_path, monkeypatch):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "file").write_bytes(PNG)
    for path, message in {
        "loop.jpg": "a link that leads back to itself",
        "none.jpg": "no such file; check the path",
        "file/a.jpg": "no such file; check the path",
    }.items():
        with pytest.raises(ImageError, match=message):
            open_image(tmp_path / path)

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(image_files, "_open_path", lambda path, name: Failing())
    with pytest.raises(ImageError, match=r"cannot be read \(Input/output error\); check the disk"):
        open_image(tmp_path / "file")


def test_heic_without_its_package_is_named(monkeypatch):
    monkeypatch.setattr(image_files, "register_heif", lambda: False)
    with pytest.raises(ImageError, match=r"pip install -e '\.\[heic\]'"):
        open_image(b"\0\0\0\x18ftypheic" + bytes(40))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_opened_upright(tmp_path, orientation):
    pytest.importorskip("pillow_heif")
    image_files.register_heif()
    image = Image.new("RGB", (96, 64), RED)
    image.paste((0, 0, 255), (0, 32, 96, 64))
    inverse = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = image if orientation == 1 else image.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(stored, "HEIF", exif=exif.tobytes(), quality=95))
    for source in (path, path.read_bytes()):
        with opened(source) as opened_image:
            assert opened_image.format == "HEIF"
        found = open_image(source)
        assert found.size == (96, 64)
        for place, colour in {(48, 8): RED, (48, 56): (0, 0, 255)}.items():
            assert np.abs(np.array(found.getpixel(place)) - colour).max() < 30


@given(st.text() | st.binary().map(os.fsdecode))
def test_any_text_as_a_path_is_no_image(path):
    with pytest.raises(ImageError):
        open_image(path)


WHOLES = encoded_photographs()
EDITS = st.lists(st.tuples(st.integers(0, 300) | st.integers(0, 20_000), st.integers(0, 255)), max_size=4)


@given(st.sampled_from(sorted(WHOLES)), EDITS, st.none() | st.integers(0, 20_000))
def test_photographs_with_other_bytes_are_read_or_refused(name, edits, cut):
    data = bytearray(WHOLES[name])
    for place, value in edits:
        data[place % len(data)] = value
    read_or_refused(bytes(data[:cut]))


@given(st.binary(), st.sampled_from([b"", *(whole[:24] for whole in WHOLES.values())]))
def test_any_bytes_are_read_or_refused(data, head):
    read_or_refused(head + data)


def read_or_refused(data: bytes) -> None:
    try:
        found = load(data, Transform(16))
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert found.shape == (16, 16, 3) and found.dtype == np.uint8
