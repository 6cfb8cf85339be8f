"""The benchmark `captioning` at tiny sizes: all ways find the same captions, and each has its row."""

import re

import pytest

from sca_caption.benchmarks import captioning
from sca_caption.benchmarks.programs import PHOTOGRAPHS
from sca_caption.inference.captioning import CaptionPipeline
from tests.helpers.tables import rows
from tests.helpers.thorough import thorough

pytestmark = pytest.mark.slow


def test_all_ways_find_the_same_captions(photos, tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "readable"
    folder.mkdir()
    for number, photo in enumerate(photos[:3]):
        (folder / f"{number}{photo.suffix}").write_bytes(photo.read_bytes())
    flags = [str(folder), "--checkpoint", str(tiny_checkpoint), "--singly", "3", "--rounds", "1"]
    assert captioning.main(flags) == 0
    out = capsys.readouterr().out
    assert "one image at a time, 3 of 3 captions are the same" in out
    table = rows(out)
    assert len(table) == 5 and table[0][2] == "1.00" and table[1][3] == "1.00"
    arguments = captioning.parser().parse_args(flags)
    pipeline = CaptionPipeline.load(tiny_checkpoint, device="cpu")
    assert captioning.whole_program(arguments) == captioning.ours(pipeline, sorted(folder.iterdir()))
    assert captioning.main([*flags[:-1], "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --rounds 0")


def test_the_pretrained_model_has_the_same_captions_one_image_at_a_time():
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))[:2]
    pipeline = CaptionPipeline.load(None, device="cpu", guidance=False)
    assert [captioning.singly(pipeline, path) for path in paths] == captioning.ours(pipeline, paths)


@thorough
def test_start_prints_both_programs_and_their_imports(photos, tiny_checkpoint, capsys):
    flags = ["start", str(photos[0]), "--checkpoint", str(tiny_checkpoint), "--rounds", "1", "--imports", "2"]
    assert captioning.main(flags) == 0
    out = capsys.readouterr().out
    ours, bare, ratio = (re.findall(r"\d+\.\d+", line) for line in out.splitlines()[2:5])
    assert len(ours) == len(bare) == len(ratio) == 2
    assert abs(float(ratio[0]) - float(ours[0]) / float(bare[0])) < 0.05
    assert "| imported by caption.py IMAGE | modules | ms |" in out and "| torch" in out
    assert captioning.main(["start", str(photos[0]), "--checkpoint", "missing.pt"]) == 2
    assert "missing.pt" in capsys.readouterr().err
