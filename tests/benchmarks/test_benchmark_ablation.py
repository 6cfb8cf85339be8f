"""The benchmark `ablation`: the models that it trains, continuing a stopped run, and its table."""

import json

import pytest

from sca_caption import checkpoint
from sca_caption.benchmarks import ablation
from sca_caption.benchmarks.ablation import main, table
from sca_caption.cli import evaluate
from sca_caption.training import loop
from tests.helpers.made_photos import change, dataset, write

QUICK = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--lstm-size", "16", "--embedding-size", "8"]
QUICK += ["--backbone-weights", "none", "--finetune-backbone-at", "-1", "--device", "cpu"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "summary_writer", lambda output: None)  # its import is slow
    write(dataset(8), tmp_path / "dogs1.h5", encoding="raw")
    flags = ["--data", str(tmp_path / "dogs{layers}.h5"), "--output", str(tmp_path / "runs"), "--layers", "1"]
    return lambda *more: main([*flags, *more, "--", *QUICK])


@pytest.mark.slow
def test_every_form_is_trained_once_with_every_seed(call, tmp_path, capsys, monkeypatch):
    assert call("--attention", "S", "C-S", "--seeds", "0", "3") == 0
    names = {path.parent.name for path in tmp_path.glob("runs/*/scores.json")}
    assert names == {"S-1-0", "C-S-1-0", "S-1-3", "C-S-1-3"}
    models = [checkpoint.load(tmp_path / "runs" / name / "best.pt").model for name in ("C-S-1-0", "C-S-1-3")]
    assert [model.config.attention for model in models] == ["C-S", "C-S"]
    assert not models[0].word.weight.equal(models[1].word.weight)

    printed = capsys.readouterr().out
    monkeypatch.setattr(ablation, "score_captions", None)  # no run is left to score
    assert call("--attention", "S", "C-S", "--seeds", "0", "3") == 0
    assert printed.endswith(capsys.readouterr().out)


@pytest.mark.slow
def test_scores_equal_those_of_evaluate(call, tmp_path):
    assert call("--attention", "S", "--seeds", "0") == 0
    file, out = tmp_path / "runs" / "S-1-0" / "best.pt", tmp_path / "out.json"
    data = ["--data", str(tmp_path / "dogs1.h5"), "--checkpoint", str(file), "--output", str(out)]
    assert evaluate.main(data) == 0
    theirs = json.loads(out.read_text())["metrics"]
    ours = json.loads((file.parent / "scores.json").read_text())["test"]
    assert ours == pytest.approx({name: theirs[name] for name in ("CIDEr", "BLEU-4")}, abs=1e-4)


def test_the_table():
    seeds = [
        {"val": {"CIDEr": c, "BLEU-4": 20.0}, "test": {"CIDEr": c + 4, "BLEU-4": 21.0}} for c in (50.0, 51.0)
    ]
    assert table({(2, "C-S"): seeds}).splitlines()[-1] == (
        "| 2 | C-S | 50.5 (50.0 to 51.0) | 20.0 (20.0 to 20.0) | 54.5 (54.0 to 55.0) | 21.0 (21.0 to 21.0) |"
    )


def test_mistakes_are_one_line_before_any_training(call, tmp_path, capsys):
    assert call("--seeds", "0", "--output", str(tmp_path / "x"), "--data", str(tmp_path / "none.h5")) == 2
    assert main(["--data", str(tmp_path / "dogs1.h5"), "--", "--attention-width", "0"]) == 2
    given = dataset(8)
    change(given, 7, split="train")
    write(given, tmp_path / "untested.h5", encoding="raw")
    assert main(["--data", str(tmp_path / "untested.h5"), "--output", str(tmp_path / "y")]) == 2
    missing, width, untested = capsys.readouterr().err.splitlines()
    assert "none.h5" in missing and width.startswith("error: --attention-width 0: ")
    assert "untested.h5 has no images in split test" in untested
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()
