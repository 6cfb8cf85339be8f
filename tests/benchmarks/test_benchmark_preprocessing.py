"""The benchmark `preprocessing` at tiny sizes: all ways make the same pixels, and the tables are consistent."""

import re

import h5py
import numpy as np
import pytest

from sca_caption.benchmarks import preprocessing
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.images import Transform, load
from tests.helpers.made_photos import encoded, photo

SMALL = Transform(24)


def rows(text: str) -> list[list[str]]:
    """The cells of a printed Markdown table, without its header."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ][2:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["made", "folder"])
def test_the_table_of_rates(tmp_path, capsys, kind):
    flags = ["--size", "60x48"]
    if kind == "folder":
        for number in range(3):
            (tmp_path / f"{number}.jpg").write_bytes(encoded(photo(number, (60, 48)), "JPEG"))
        flags = ["--folder", str(tmp_path)]
    assert preprocessing.main([*flags, "--images", "24", "--image-size", "24", "--rounds", "1"]) == 0
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table] == [
        "floor: decode and resize",
        "floor: decode, resize and compress",
        "preprocess.py",
        "plain loop",
        "preprocess.py, past its start",
    ]
    assert (table[0][2], table[1][3]) == ("100%", "100%")
    for _, rate, *shares in table:
        assert float(rate.replace(",", "")) > 0
        assert all(re.fullmatch(r"\d+%", share) for share in shares)


@pytest.mark.slow
def test_the_table_of_memory(capsys):
    assert preprocessing.main(["--memory", "5", "40"]) == 0
    few, many = rows(capsys.readouterr().out)
    assert (few[:2], many[:2]) == (["5", "25"], ["40", "200"])
    for row in (few, many):
        program, worker, data = (float(cell.split()[0]) for cell in row[3:])
        assert program > worker > data > 0


def test_all_ways_make_the_same_pixels(tmp_path):
    sources = preprocessing.make_photographs(tmp_path, (60, 48))
    files = preprocessing.dataset(tmp_path / "all", sources, 70)
    assert len(files) == 70
    assert len({load(path, SMALL).tobytes() for path in files}) == len(sources) == preprocessing.DISTINCT
    out = preprocessing.preprocess(tmp_path / "all", SMALL)
    assert "images      70: train 62, val 4, test 4; 24x24 resize, jpeg" in out
    data = CaptionDataset(tmp_path / "all" / "data.h5")
    preprocessing.plain_loop(files, SMALL, tmp_path / "plain.h5")
    with h5py.File(tmp_path / "plain.h5") as file:
        plain = file["images"][()]
    for row, path in enumerate(files):
        wanted = load(path, SMALL)
        made = preprocessing.decoded((path, 24))
        assert np.array_equal(np.asarray(made), wanted)
        assert np.array_equal(plain[row].transpose(1, 2, 0), wanted)
        assert data.jpeg(row) == encoded(made, "JPEG", quality=90)
        assert len(data.references(row)) == preprocessing.CAPTIONS


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--images 20", "--images 20: "),
        ("--rounds 0", "--rounds 0: "),
        ("--memory 2", "--memory [2]: "),
        ("--size 12", "--size 12: "),
    ],
)
def test_mistakes_exit_2_with_one_line(capsys, flags, error):
    assert preprocessing.main(flags.split()) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {error}") and line.count("\n") == 1
