"""Small files that take much memory where pixels, lengths or sizes are believed: written by hand, in little memory."""

import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sca_caption.checkpoint import SHIPPED

SIDE = 13_300  # pixels; Pillow opens up to 178 million
SPARSE_BYTES, MEMBER_BYTES = 5_000_000_000, 3_000_000_000
STEP = 1 << 20


def _deflated(byte: bytes, count: int, window: int = zlib.MAX_WBITS) -> bytes:
    """`count` times the same byte, compressed."""
    packer, parts = zlib.compressobj(9, wbits=window), []
    for start in range(0, count, STEP):
        parts.append(packer.compress(byte * min(STEP, count - start)))
    return b"".join([*parts, packer.flush()])


def png(bits: int, colour_type: int, samples: int) -> bytes:
    """A black PNG of SIDE x SIDE pixels (PNG specification, sections 5 and 11)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour_type, 0, 0, 0)
    pixels = _deflated(b"\0", SIDE * (1 + SIDE * samples * bits // 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def float_tiff() -> bytes:
    """A TIFF of SIDE x SIDE floats in one deflated strip (TIFF 6.0, section 2)."""
    strip = _deflated(b"\0", SIDE * SIDE * 4)
    tags = {256: SIDE, 257: SIDE, 258: 32, 259: 8, 262: 1, 273: 8, 277: 1, 278: SIDE, 279: len(strip), 339: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    folder = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + folder


def jpeg(components: int, progressive: bool, interleaved: bool) -> bytes:
    """A grey JPEG of SIDE x SIDE pixels, all of whose coefficients are 0 (ITU-T T.81, annexes B and G).

    Both Huffman tables have one code of one bit, for "difference 0" and "end of block".
    """

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">HH", 0xFF00 | marker, len(data) + 2) + data

    def scan(which: list[int]) -> bytes:
        head = bytes([len(which), *(byte for number in which for byte in (number, 0))])
        end = bytes([0, 0, 0]) if progressive else bytes([0, 63, 0])
        bits = blocks * len(which) * (1 if progressive else 2)
        return segment(0xDA, head + end) + bytes(bits // 8) + bytes(bits % 8 > 0)

    blocks, numbers = (-(-SIDE // 8)) ** 2, [*range(1, components + 1)]
    frame = struct.pack(">BHHB", 8, SIDE, SIDE, components)
    frame += b"".join(bytes([number, 0x11, 0]) for number in numbers)
    table = bytes([1, *[0] * 15, 0])
    head = segment(0xDB, bytes([0]) + bytes([16]) * 64) + segment(0xC2 if progressive else 0xC0, frame)
    head += segment(0xC4, b"\0" + table) + segment(0xC4, b"\x10" + table)
    scans = [numbers] if interleaved else [[number] for number in numbers]
    return b"\xff\xd8" + head + b"".join(map(scan, scans)) + b"\xff\xd9"


def zip_of_zeros(name: str) -> bytes:
    """A zip whose only member has MEMBER_BYTES zeros (APPNOTE.TXT, section 4.3)."""
    check = 0
    for start in range(0, MEMBER_BYTES, STEP):
        check = zlib.crc32(bytes(min(STEP, MEMBER_BYTES - start)), check)
    data = _deflated(b"\0", MEMBER_BYTES, -zlib.MAX_WBITS)
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, check, len(data), MEMBER_BYTES, len(name), 0)
    local = b"PK\3\4" + common + name.encode() + data
    central = (
        b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    )
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def oversized_checkpoint() -> bytes:
    """The checkpoint that ships, whose description says that its LSTM has 12,000 units."""
    data = SHIPPED.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["sca_caption"])
    about["config"]["lstm_size"] = 12_000
    header["__metadata__"]["sca_caption"] = json.dumps(about)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


IMAGES: dict[str, Callable[[], bytes]] = {
    "16-bit.png": lambda: png(16, 0, 1),
    "RGBA.png": lambda: png(8, 6, 4),
    "16-bit RGBA.png": lambda: png(16, 6, 4),
    "grey.png": lambda: png(8, 0, 1),
    "float.tif": float_tiff,
    **{
        f"{name}, {kind}.jpg": partial(jpeg, components, *options)
        for name, components in (("RGB", 3), ("CMYK", 4))
        for kind, options in {
            "baseline": (False, True),
            "not interleaved": (False, False),
            "progressive": (True, True),
        }.items()
    },
}


def data_sets(folder: Path) -> None:
    """Data sets of a table, one with a sparse photograph of 5 GB and one with a zip member of 3 GB, beside good ones."""
    rows = "image,caption,split\n" + "".join(f"{i}.jpg,a dog runs,train\n" for i in range(4))
    for name in ("sparse", "zip"):
        (folder / name).mkdir()
        (folder / name / "captions.csv").write_text(rows)
    with open(folder / "sparse" / "0.jpg", "wb") as file:
        file.truncate(SPARSE_BYTES)
    (folder / "zip" / "photographs.zip").write_bytes(zip_of_zeros("0.jpg"))
