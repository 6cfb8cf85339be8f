"""evaluate.py and caption.py in two processes, one of which is killed: one result, each image once and in order."""

import json
import re
from pathlib import Path

import pytest

from sca_caption.cli import caption, evaluate
from sca_caption.datasets.sources.records import Source
from sca_caption.evaluation import meteor_spice as java_metrics
from sca_caption.evaluation.meteor_spice import MetricUnavailable
from tests.helpers.made_photos import record, write
from tests.helpers.torchrun import needs_distributed, torchrun

pytestmark = needs_distributed


@pytest.fixture
def no_java(monkeypatch):
    def none():
        raise MetricUnavailable("no Java here")

    monkeypatch.setattr(java_metrics, "find_java", none)


@pytest.mark.slow
def test_evaluate_scores_every_image_once(tiny_checkpoint, tmp_path, monkeypatch, capsys, no_java):
    monkeypatch.chdir(tmp_path)
    records = [record(0)] + [record(i, "test", (f"a dog {i}", "the cat runs")) for i in range(1, 6)]
    write(Source("made", "made for a test", records), "made.h5")
    flags = [
        "--data",
        "made.h5",
        "--checkpoint",
        str(tiny_checkpoint),
        "--batch-size",
        "1",
        "--max-length",
        "5",
    ]
    assert evaluate.main([*flags, "--output", "one.json"]) == 0
    done = torchrun("evaluate", *flags, "--output", "two.json", cwd=tmp_path, restarts=1, BLOW="kill")
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("two.json").read_text()) == json.loads(Path("one.json").read_text())
    assert done.stdout == capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.h5", "one.json", "two.json"]


def test_caption_writes_every_image_once(tiny_checkpoint, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "c2.jpg").write_text("no picture")
    flags = ["photos", "--checkpoint", str(tiny_checkpoint), "--batch-size", "1", "--max-length", "5"]
    assert caption.main([*flags, "--output", "one.json"]) == 1
    done = torchrun("caption", *flags, "--output", "two.json", cwd=tmp_path, restarts=1, BLOW="kill")
    assert done.returncode == 0, done.stderr  # or torchrun would caption all again
    assert len(json.loads(Path("one.json").read_text())) == len(photos)
    assert Path("two.json").read_bytes() == Path("one.json").read_bytes()
    said = capsys.readouterr().err
    errors = re.findall("^error: .*", done.stderr, re.MULTILINE)
    assert errors[:1] == re.findall("^error: .*", said, re.MULTILINE)
    assert len(set(errors)) == 1, "told again by the second attempt, which goes on where the first was"
    assert done.stdout == "" and sorted(p.name for p in tmp_path.iterdir()) == [
        "one.json",
        "photos",
        "two.json",
    ]
