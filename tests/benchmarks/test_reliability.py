"""The reliability benchmark finds lost rows, tracebacks, half-written and left-over files; hostile files are valid."""

import io
import random
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sca_caption.benchmarks import hostile_files, random_kills, reliability
from sca_caption.image_memory import decoder_bytes
from sca_caption.runtime.atomic_files import atomic_write

SIDE = 333  # pixels, a multiple neither of 8 nor of 2


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(hostile_files, "SIDE", SIDE)
    monkeypatch.setattr(hostile_files, "MEMBER_BYTES", 3_000_001)


@pytest.mark.parametrize("name", hostile_files.IMAGES)
def test_hostile_images_are_valid_and_small(name, small):
    data = hostile_files.IMAGES[name]()
    assert len(data) < 2000
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (SIDE, SIDE)
        levels = np.asarray(image)
    assert (levels == levels.flat[0]).all()


def test_hostile_zip_is_valid_and_small(small):
    data = hostile_files.zip_of_zeros("a.jpg")
    assert len(data) < 4000
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("a.jpg") == bytes(3_000_001)  # compares the checksum


@pytest.mark.parametrize("components", [3, 4])
@pytest.mark.parametrize(
    ("progressive", "interleaved", "whole"),
    [(False, True, 0), (False, False, 2), (True, True, 2), (True, False, 2)],
)
def test_jpegs_of_several_scans_are_decoded_as_a_whole(components, progressive, interleaved, whole, small):
    """A coefficient of 16 bits per component and pixel; libjpeg works row by row where all components are in one scan."""
    with Image.open(io.BytesIO(hostile_files.jpeg(components, progressive, interleaved))) as image:
        assert decoder_bytes(image) == whole * components * SIDE * SIDE
        image.load()


def careful(argv: list[str]) -> int:
    """Write a file atomically."""
    with atomic_write(argv[0]) as temporary:
        for length in (1, 2):
            time.sleep(0.1)
            temporary.write_text('["whole"]'[: length * 5])
    return 0


def careless(argv: list[str]) -> int:
    """Write a file in place, and another one beside it that has no end."""
    file = Path(argv[0])
    for length in (1, 2):
        file.write_text('["whole"]'[: length * 5])
        file.with_suffix(f".{time.time_ns()}").write_text("")
        time.sleep(0.1)
    return 0


def test_kills_find_half_written_and_left_over_files(tmp_path, capsys):
    def failures(main) -> str:
        folder = tmp_path / main.__name__
        return "\n".join(
            random_kills.kill_at_random("it", main, [], "out.json", [], folder, 3, random.Random(1))
        )

    assert failures(careful) == ""
    assert "3 kills" in capsys.readouterr().out
    found = failures(careless)
    assert "half-written by it" in found and "it left out.1" in found


PROGRAM = """
import json, pathlib, sys
photos, output = map(pathlib.Path, (sys.argv[1], sys.argv[3]))
names = sorted(map(str, photos.iterdir()))
output.write_text(json.dumps([{"file_name": name} for name in names[LOST:4]]))
for name in names[4:]:
    print(f"error: {name}: damaged", file=sys.stderr)
if LOST:
    output.with_suffix(".tmp").touch()
    raise SystemExit("Traceback (most recent call last): it broke")
"""


@pytest.mark.parametrize("lost", [0, 1])
def test_images_without_a_row_and_tracebacks_are_found(lost, tmp_path, monkeypatch, capsys):
    code = PROGRAM.replace("LOST", str(lost))
    monkeypatch.setattr(
        reliability, "command", lambda name, *options: [sys.executable, "-c", code, *map(str, options)]
    )
    found = "\n".join(reliability.images(tmp_path, 6, random.Random(0)))
    assert f"{4 - lost} captioned, 2 refused" in capsys.readouterr().out
    if lost:
        assert (
            "1 images have neither" in found and "traceback" in found and "left behind: captions.tmp" in found
        )
    else:
        assert found == ""
