"""progress.svg and TensorBoard show the numbers of the run, and drawing does not change the run."""

import dataclasses

import numpy as np
import pytest
import torch

from sca_caption import checkpoint
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.runtime.atomic_files import MACHINE
from sca_caption.runtime.errors import UserError
from sca_caption.training import caption_task, loop, plots
from sca_caption.training.caption_task import CaptionTask
from sca_caption.training.plots import draw_run
from tests.helpers.made_photos import write
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import QUICK, captioner, run, source

pytestmark = pytest.mark.usefixtures("toy")
RATES = [(0.0, 0.0), (1.0, 0.2), (2.0, 0.1), (3.0, 0.05), (4.0, 0.0)]
HISTORY = [
    {"epoch": 0, "CIDEr": 30.0},
    {"epoch": 1, "reward": 0.3, "CIDEr": 40.0},
    {"epoch": 2, "reward": 0.5, "CIDEr": 55.25},
    {"epoch": 3, "reward": 0.4, "CIDEr": 50.0},
]


@pytest.fixture
def data(tmp_path) -> CaptionDataset:
    write(source(), tmp_path / "squares.h5", encoding="raw")
    return CaptionDataset(tmp_path / "squares.h5")


class Writer:
    """Replaces TensorBoard's writer, whose import is slow."""

    def __init__(self):
        self.images = []

    def add_image(self, name, picture, step, dataformats):
        self.images.append((name, picture, step, dataformats))

    def add_scalar(self, *_):
        pass

    add_text = add_scalar

    def flush(self):
        pass


@pytest.fixture
def writer(monkeypatch) -> Writer:
    writer = Writer()
    monkeypatch.setattr(loop, "summary_writer", lambda output: writer)
    return writer


def points(line) -> list[list[float]]:
    return line.get_xydata().tolist()


def test_the_lines_show_the_history():
    figure = draw_run(HISTORY, "reward", "CIDEr", RATES, "runs/a$b$: epoch 3 of 4")
    measured, scored, rate = figure.axes
    assert measured.get_title(loc="left") == "runs/a$b$: epoch 3 of 4"
    assert (measured.get_ylabel(), scored.get_ylabel()) == ("training reward", "validation CIDEr")
    assert points(measured.lines[0]) == [[1, 0.3], [2, 0.5], [3, 0.4]]
    line, best = scored.lines
    assert points(line) == [[0, 30.0], [1, 40.0], [2, 55.25], [3, 50.0]]
    assert points(best) == [[2, 55.25]] and [text.get_text() for text in scored.texts] == ["best 55.2"]
    ahead, passed = rate.lines
    assert points(ahead) == [list(point) for point in RATES]
    assert points(passed) == [list(point) for point in RATES if point[0] <= 3]


def test_without_validation_there_is_no_panel_of_scores():
    figure = draw_run([{"epoch": 1, "loss": 2.0}], "loss", "top-1", RATES, "")
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "learning rate"]


def test_progress_is_drawn_after_every_epoch(data, tmp_path, monkeypatch, ended):
    monkeypatch.setattr(loop, "summary_writer", lambda output: None)
    drawn, seen = tmp_path / "run" / "progress.svg", []

    def say(line: str) -> None:
        if line.startswith("epoch"):
            seen.append(drawn.read_text())

    task = CaptionTask(captioner(data), data, QUICK)
    loop.train(task, QUICK, drawn.parent, None, say)
    for epoch, text in enumerate(seen, 1):
        assert f"{drawn.parent}: epoch {epoch} of {QUICK.epochs}" in text and "validation CIDEr" in text
    assert len(seen) == QUICK.epochs
    drawn.rename(drawn.with_name(f".progress.svg.{MACHINE}-{ended}.tmp"))  # killed while it drew
    run(data, drawn.parent, QUICK, resume=True)
    assert drawn.read_text() == seen[-1]
    assert sorted(path.name for path in drawn.parent.iterdir()) == ["best.pt", "last.pt", "progress.svg"]


def test_the_learning_rates_drawn_are_those_of_the_steps(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "summary_writer", lambda output: None)
    used, drawn, make = [], [], loop.make_optimizer

    def watched(groups, config):
        optimizer = make(groups, config)
        optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", watched)
    monkeypatch.setattr(plots, "save_progress", lambda *arguments: drawn.append(arguments))
    run(data, tmp_path / "run", QUICK)
    epochs, rates = zip(*drawn[-1][4], strict=True)
    steps = len(used) // QUICK.epochs
    assert list(rates[:-1]) == pytest.approx(used)
    assert list(epochs) == pytest.approx([i / steps for i in range(len(used) + 1)])


def test_a_run_continues_if_progress_cannot_be_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "summary_writer", lambda output: None)

    def full(*_):
        raise UserError("cannot write progress.svg (No space left on device)")

    monkeypatch.setattr(plots, "save_progress", full)
    history, _ = run(data, tmp_path / "run", QUICK)
    assert len(history) == QUICK.epochs
    assert (
        capsys.readouterr().err
        == "warning: cannot write progress.svg (No space left on device)\n" * QUICK.epochs
    )


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema": 0.5, "finetune_backbone_at": 0}], ids=["plain", "average"])
def test_drawing_does_not_change_the_run(changes, data, tmp_path, monkeypatch, writer):
    config = dataclasses.replace(QUICK, **changes)
    run(data, tmp_path / "drawn", config)
    assert writer.images
    monkeypatch.setattr(loop, "summary_writer", lambda output: None)
    monkeypatch.setattr(loop, "draw_progress", lambda *_: None)
    run(data, tmp_path / "plain", config)
    for name in ("best.pt", "last.pt"):
        drawn, plain = (checkpoint.load(tmp_path / folder / name) for folder in ("drawn", "plain"))
        for tensors, others in (
            (drawn.model.state_dict(), plain.model.state_dict()),
            (drawn.extra, plain.extra),
        ):
            assert tensors.keys() == others.keys()
            assert all(torch.equal(value, others[key]) for key, value in tensors.items())


@pytest.mark.slow
def test_tensorboard_gets_the_attention_of_the_printed_captions(data, tmp_path, monkeypatch, writer):
    drawn = []

    def note(image, words, trace, title):
        drawn.append((image, words, trace, title))
        return np.zeros((4, 5, 3), np.uint8)

    monkeypatch.setattr(caption_task, "strip", note)
    config = dataclasses.replace(QUICK, epochs=6, lr=0.02, ema=0.5)
    _, lines = run(data, tmp_path / "run", config)
    rows = data.indices("val").tolist()
    names = [f"attention/{data.file_name(row)}" for row in rows]
    last = [image for image in writer.images if image[2] == config.epochs]
    assert [name for name, *_ in last] == names and all(kind == "HWC" for *_, kind in writer.images)
    for row, (image, words, trace, title), line in zip(rows, drawn[-3:], lines[-3:], strict=True):
        np.testing.assert_array_equal(image, data.image(row))
        assert f"    {title}" == line  # the file's name and the caption of the averaged model
        assert " ".join(words) == line.split(": ")[1]
        for layer in trace.layers:
            np.testing.assert_allclose(layer.spatial.sum((1, 2)), np.ones(len(words)), rtol=1e-5)
            np.testing.assert_allclose(layer.channel.sum(1), np.ones(len(words)), rtol=1e-5)


def test_stored_features_give_no_images(data):
    task = CaptionTask(captioner(data), data, QUICK)
    task.data.encoding = "features"
    assert task.images() == {}
