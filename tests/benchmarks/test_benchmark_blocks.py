"""The benchmark `blocks`: its table against the runs' files, continuing a killed run, and blocks that do not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sca_caption import checkpoint
from sca_caption.benchmarks import blocks
from sca_caption.benchmarks.attention import Cost
from sca_caption.benchmarks.blocks import main
from sca_caption.benchmarks.blocks_table import Row, draw, table
from sca_caption.evaluation.significance import compare_with_control
from sca_caption.training import loop
from tests.helpers.classified_pictures import class_folders
from tests.helpers.made_photos import error_line
from tests.helpers.tables import rows
from tests.helpers.thorough import thorough

QUICK = [
    "--image-size",
    "32",
    "--epochs",
    "2",
    "--batch-size",
    "8",
    "--workers",
    "0",
    "--views",
    "none",
    "--lr",
    "0.1",
]
QUICK += ["--train-per-class", "6"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(*flags, more=flags of train.py) -> status of a comparison of lenet with two seeds."""
    monkeypatch.setattr(loop, "summary_writer", lambda output: None)
    monkeypatch.setattr(loop, "draw_progress", lambda *_: None)
    monkeypatch.setattr(blocks, "TIMED_BATCH", 2)
    monkeypatch.setattr(blocks, "TIMED_ROUNDS", 1)
    class_folders(tmp_path / "fruit")
    return lambda *flags, more=(): main([*flags_of(tmp_path), *flags, "--", *QUICK, *more])


def flags_of(folder: Path) -> list[str]:
    flags = ["--dataset", "folder", "--root", str(folder / "fruit"), "--backbone", "lenet", "--device", "cpu"]
    return [
        *flags,
        "--backbone-weights",
        "none",
        "--seeds",
        "2",
        "--blocks",
        "se",
        "cbam",
        "--output",
        str(folder / "out"),
    ]


def top1(folder: Path, name: str) -> list[float]:
    return [
        record["top-1"]
        for record in json.loads((folder / "out" / name / "epochs.json").read_text())["epochs"]
    ]


def accuracies(out: str) -> list[list[str]]:
    """The table without its times, which differ between runs."""
    return [row[:7] for row in rows(out)]


def test_every_block_is_trained_with_every_seed_from_the_same_start(call, tmp_path, capsys):
    assert call() == 0
    out = capsys.readouterr().out
    names = {path.parent.name for path in tmp_path.glob("out/*/epochs.json")}
    assert names == {f"{block}-{seed}" for block in ("none", "se", "cbam") for seed in (0, 1)}
    assert out.startswith("lenet on folder: 24 training and 16 test images, 32 px, 2 epochs\n")
    plain, se, cbam = rows(out)
    assert (plain[0], se[0], cbam[0]) == ("none", "`se`", "`cbam`")
    for row, block in zip((plain, se, cbam), ("none", "se", "cbam"), strict=True):
        scores = [top1(tmp_path, f"{block}-{seed}") for seed in (0, 1)]
        last = [epochs[-1] for epochs in scores]
        assert float(row[1].split(" ± ")[0]) == pytest.approx(sum(last) / 2, abs=0.006)
        assert float(row[2]) == pytest.approx(
            sum(map(sum, scores)) / 4, abs=0.006
        )  # of two epochs, the best five
    assert float(se[3]) == pytest.approx(float(se[1].split()[0]) - float(plain[1].split()[0]), abs=0.011)
    assert "<svg" in (tmp_path / "out/blocks.svg").read_text()

    found = [
        checkpoint.load(tmp_path / "out" / name / "last.pt", "classify")
        for name in ("none-0", "se-0", "se-1")
    ]
    assert [each.config.attention for each in found] == ["", "se", "se"]
    assert [each.training["data"]["per_class_split"]["seed"] for each in found] == [0, 0, 1]
    assert call() == 0  # nothing is left to train
    assert capsys.readouterr() == (out, "")


def test_a_killed_comparison_continues_to_the_same_table(call, tmp_path, capsys, monkeypatch):
    assert call() == 0
    whole = accuracies(capsys.readouterr().out)
    names = [path.parent.name for path in tmp_path.glob("out/*/last.pt")]
    (tmp_path / "out").rename(tmp_path / "whole")

    save, calls = checkpoint.save, []

    def die(path, *arguments):
        save(path, *arguments)
        if Path(path).name == "last.pt":
            calls.append(path)
            if len(calls) in (3, 6):  # once a run is half-trained, before its epochs.json is written
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", die)
    assert call() == 130
    assert not (tmp_path / "out/blocks.svg").exists()
    assert call() == 130
    assert call() == 0
    assert len(calls) == 12  # no epoch was trained twice
    assert accuracies(capsys.readouterr().out) == whole
    for name in names:
        records = json.loads((tmp_path / "whole" / name / "epochs.json").read_text())["epochs"]
        assert top1(tmp_path, name) == [record["top-1"] for record in records]


@thorough
@pytest.mark.slow
def test_several_at_a_time_end_with_a_killed_parent_and_give_the_same_table(call, tmp_path, capsys):
    assert call("--blocks", "se") == 0
    whole = accuracies(capsys.readouterr().out)
    (tmp_path / "out").rename(tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "sca_caption.benchmarks.blocks",
        *flags_of(tmp_path),
        *("--blocks", "se", "--jobs", "2", "--", *QUICK),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        while not list(tmp_path.glob("out/*/epochs.json")):
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert accuracies(done.stdout) == whole


def test_a_block_that_does_not_fit_is_reported(call, capsys):
    assert call("--blocks", "se", "sk:groups=4") == 0
    out, err = capsys.readouterr()
    assert rows(out)[2][:2] == ["`sk:groups=4`", "does not fit"]
    assert err.startswith("warning: sk:groups=4 does not fit lenet: ") and "groups=4 does not divide 6" in err


def test_a_failed_run_is_reported_and_the_others_are_trained(call, tmp_path, capsys, monkeypatch):
    train = blocks.train_classifier.run

    def diverge(argv, *arguments):
        if "cbam" in argv and argv[argv.index("--seed") + 1] == "1":
            raise blocks.UserError("the loss became nan in epoch 1; lower --lr (now 0.1)")
        return train(argv, *arguments)

    monkeypatch.setattr(blocks.train_classifier, "run", diverge)
    assert call() == 1
    out, err = capsys.readouterr()
    assert rows(out)[2][1].endswith("(n = 1)") and rows(out)[2][3:5] == ["", ""] and rows(out)[1][4]
    assert "cbam-1: the loss became nan" in err.splitlines()[-1]


def test_mistakes_are_one_line_before_any_training(call, tmp_path, capsys):
    for flags, more, parts in (
        (["--blocks", "cbma"], (), ("'cbma'", "cbam")),
        (["--seeds", "0"], (), ("--seeds 0",)),
        (["--jobs", "0"], (), ("--jobs 0",)),
        (["--backbone", "lenet5"], (), ("'lenet5'", "lenet")),
        ([], ("--attention", "se"), ("--attention",)),
        ([], ("--patience", "2"), ("--patience",)),
        ([], ("--train-per-class", "10"), ("--train-per-class", "10 images")),
        ([], ("--epochs", "0"), ("--epochs 0",)),
        (["--dataset", "fruit"], (), ("'fruit'", "caltech101")),
        (["--backbone-weights", "none.pth"], (), ("none.pth",)),
    ):
        status = call(*flags, more=more)
        text = error_line(status, *capsys.readouterr())
        assert not [part for part in parts if part not in text], text
    assert not (tmp_path / "out").exists()


def test_other_settings_need_another_folder(call, tmp_path, capsys):
    assert call("--blocks", "se", "--seeds", "1") == 0
    capsys.readouterr()
    text = error_line(call(more=("--epochs", "3")), *capsys.readouterr())
    assert all(part in text for part in (str(tmp_path / "out"), "epochs=2", "3", "--output"))


# ---- the table -------------------------------------------------------------------------------------------------------

COSTS = (Cost(100, 2_000_000, 1.0, 1.0), Cost(120, 2_500_000, 1.25, 1.5))


def test_the_table_and_figure():
    made = [
        Row("none", [[70.0, 80.0], [72.0, 81.0], [71.0, 82.0]], COSTS[0]),
        Row("se", [[60.0, 75.0], [62.0, 76.5], [61.0, 76.5]], COSTS[1]),
        Row("bam", [[60.0, 75.0]], COSTS[1]),
        Row("sk", [], COSTS[1]),
    ]
    text = table(made, 0.5, {"danet": "why"})
    plain, se, bam, sk, danet = rows(text)
    assert plain == ["none", "81.00 ± 1.00", "76.00", "", "", "100", "2.0 M", "1.00", "1.00"]
    (found,), limit = compare_with_control(np.array([[80.0, 81, 82], [75, 76.5, 76.5]]), 0.5)
    assert se == [
        "`se`",
        "76.00 ± 0.87",
        "68.50",
        "-5.00",
        f"{found.adjusted:.3f}",
        "120",
        "2.5 M",
        "1.25",
        "1.50",
    ]
    assert f"{limit:.2f} points" in text
    assert (
        bam[1:5] == ["75.00 (n = 1)", "67.50", "", ""]
        and sk[1] == "unfinished"
        and danet[1] == "does not fit"
    )

    left, right = draw(made, "a title").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["none", "se", "bam"]
    assert left.lines[0].get_xdata().tolist() == [80, 81, 82]
    assert [bar.get_width() for bar in right.patches] == [1.0, 1.5, 1.5]


def test_a_block_that_fails_with_some_seeds_is_marked():
    last = {"none": (80, 81, 82), "se": (75, 76.5, 76.5), "bam": (80.5, 81, 83), "csham": (20, 80, 81)}
    text = table([Row(name, [[x] for x in scores], COSTS[0]) for name, scores in last.items()], 0.5, {})
    assert [row[4].endswith("*") for row in rows(text)] == [False, False, False, True]
    assert text.splitlines()[-1].startswith("*:")
