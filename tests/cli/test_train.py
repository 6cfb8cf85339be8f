"""The program that trains, as its users run it."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli.train import main, parser
from sca_caption.evaluation.caption_quality import Quality
from sca_caption.images import Transform
from sca_caption.models.backbone import Backbone
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.torchvision_compat import torchvision
from sca_caption.training import loop as training
from sca_caption.training.validation import Validation
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import dataset, error_line, write
from tests.helpers.tiny_captioner import TINY, tiny_captioner

SMALL = ["--backbone", "resnet18", "--layers", "layer1.0", "layer1.1", "--attention-width", "8"]
SMALL += ["--embedding-size", "8", "--lstm-size", "16"]  # conftest's TINY
QUICK = [
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--backbone-weights",
    "none",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "dogs.h5"
    write(dataset(8), path, encoding="raw")
    return path


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A working directory with data/dogs.h5."""
    (tmp_path / "data").mkdir()
    shutil.copy(made, tmp_path / "data" / "dogs.h5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        training, "summary_writer", lambda output: None
    )  # its import takes longer than the tests
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["--dataset", "dogs", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def mistake(capsys, *arguments: str) -> str:
    """What the program says on the way out with status 2: one line, and nothing was trained."""
    return error_line(*run(capsys, *arguments))


def test_it_trains_resumes_and_says_where_the_model_is(here, capsys):
    status, out, err = run(capsys, *SMALL, *QUICK)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith("6 training and 1 validation images, ") and lines[0].endswith("to runs/dogs")
    assert [line[:10] for line in lines if line.startswith("epoch")] == ["epoch  1/2", "epoch  2/2"]
    assert lines[-1] == "best model: runs/dogs/best.pt"
    best = checkpoint.load("runs/dogs/best.pt")
    assert dataclasses.replace(best.config, dropout=TINY.dropout) == dataclasses.replace(
        TINY, dropout=TINY.dropout
    )
    assert best.config.layers == ("layer1.0", "layer1.1")

    text = mistake(capsys, *SMALL, *QUICK)
    assert text.startswith("runs/dogs ") and "--resume" in text and "--output" in text

    status, out, _ = run(capsys, *SMALL, *QUICK, "--resume")  # the same flags are no contradiction
    assert status == 0 and out.splitlines()[-1] == lines[-1]
    for flags, text in (
        (["--lstm-size", "32"], "it has lstm_size=16, found 32"),
        (["--epochs", "9"], "it has epochs=2, found 9"),
        (["--layers", "1"], "it has layers=('layer1.0', 'layer1.1'), found ('layer4.1',)"),
    ):
        found = mistake(capsys, "--resume", *flags)
        assert found.startswith("--resume ") and f"{text}: " in found

    write(dataset(8, captions=("a zebra", "stripes")), here / "data" / "dogs.h5", encoding="raw")
    text = mistake(capsys, "--resume")
    assert all(part in text for part in ("data/dogs.h5", "7 words", "runs/dogs/last.pt"))

    shutil.copy("runs/dogs/best.pt", "runs/dogs/last.pt")
    text = mistake(capsys, "--resume")
    assert text.startswith("runs/dogs/last.pt ") and "best.pt" in text


def test_an_interrupted_run_goes_on_to_the_same_model(here, capsys, monkeypatch):
    assert run(capsys, *SMALL, *QUICK, "--output", "whole", "--finetune-backbone-at", "1")[0] == 0
    save = checkpoint.save

    def interrupted(path, made, **options):
        save(path, made, **options)
        if path.name == "last.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", interrupted)
    assert run(capsys, *SMALL, *QUICK, "--output", "parts", "--finetune-backbone-at", "1")[0] == 130
    monkeypatch.setattr(checkpoint, "save", save)
    assert run(capsys, "--output", "parts", "--resume", "--device", "cpu")[0] == 0
    whole, parts = (checkpoint.load(f"{name}/last.pt").model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, whole[name]) for name, value in parts.items())


def test_a_missing_data_file_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = main(["--dataset", "flickr30k"])
    found = error_line(status, *capsys.readouterr())
    assert "data/flickr30k.h5" in found and "python preprocess.py --dataset flickr30k" in found
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line_and_leave_nothing(here, capsys):
    """Each names the flag or the file, what was found, and the valid values if there are few."""
    for flags, parts in (
        (["--backbone", "resnet19"], ("'resnet19'", "alexnet")),
        (["--layers", "features.99"], ("mobilenet_v2", "'features.99'", "features.18")),
        (["--layers", "4"], ("--layers 4", "mobilenet_v2", "1 to 3")),
        (["--backbone-weights", "none.pth"], ("none.pth",)),
        (["--backbone-weights", "data/dogs.h5"], ("weights", "data/dogs.h5")),
        (["--init", "none.pt"], ("none.pt", "no such file")),
        (["--init", "data/dogs.h5"], ("data/dogs.h5", "not a checkpoint")),
        (["--epochs", "0"], ("--epochs 0", "at least 1")),
        (["--attention", "cbam"], ("--attention", "'cbam'")),
        (["--recipe", "papre"], ("--recipe papre", "default", "paper", "self-critical", "shapes")),
        (["--recipe", "cifar"], ("--recipe cifar", "'classify'", "'caption'")),
        (["--device", "abacus"], ("'abacus'",)),
        (["--finetune-from", "features.99"], ("--finetune-from", "'features.99'", "mobilenet_v2")),
        (["--resume"], ("no run in runs/dogs", "leave --resume out")),
        (["--output", "data/dogs.h5"], ("data/dogs.h5", "File exists", "--output")),
    ):
        weights = [] if "--backbone-weights" in flags or "--init" in flags else ["--backbone-weights", "none"]
        found = mistake(capsys, *weights, *flags)
        assert not [part for part in parts if part not in found], found
    assert [p.name for p in here.iterdir() if p.name != "runs"] == ["data"]
    assert not list(here.rglob("*.pt"))


def test_without_the_network_it_names_the_flag(here, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    text = mistake(capsys)
    assert all(part in text for part in ("mobilenet_v2", "(no network)", "--backbone-weights FILE"))


def test_help_fits_on_two_pages(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert len(parser().format_help().splitlines()) <= 100


# ---- --init ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def first_model(monkeypatch) -> list:
    """The model that training would begin with; it then stops."""
    seen = []

    def look(task, *_, **__):
        seen.append(task.model)
        raise UserError("seen")

    monkeypatch.setattr(training, "train", look)
    return seen


def save_initial(path: Path, words: list[str], **changes) -> dict[str, torch.Tensor]:
    model = tiny_captioner(len(words) + 4, dataclasses.replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # what no initialisation gives
    checkpoint.save(path, Checkpoint(model, Vocabulary(words), Transform(32), {"CIDEr": 1.0}))
    return model.state_dict()


WORDS = ["dog", "a", "runs", "the"]  # the vocabulary of data/dogs.h5


def start(capsys, *flags: str) -> str:
    status, out, err = run(capsys, *SMALL, "--device", "cpu", *flags)
    assert (status, err) == (2, "error: seen\n")
    return out


def test_init_copies_everything_that_fits(here, capsys, first_model):
    initial = save_initial(here / "initial.pt", WORDS)
    assert start(capsys, "--init", "initial.pt") == "starting from initial.pt; new weights in: nothing\n"
    found = first_model[0].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in initial.items())


def test_init_brings_its_architecture_where_no_flag_says_otherwise(here, capsys, first_model):
    sizes = {"attention": "S", "layers": ("layer1.1",), "lstm_size": 24, "embedding_size": 12}
    saved = save_initial(here / "initial.pt", WORDS, **sizes)
    status, _, err = run(capsys, "--dataset", "dogs", "--init", "initial.pt", "--attention", "S-C")
    assert (status, err) == (2, "error: seen\n")
    found = first_model[0]
    assert vars(found.config) == vars(dataclasses.replace(TINY, **sizes | {"attention": "S-C"}))
    assert all(torch.equal(found.state_dict()[name], value) for name, value in saved.items())


def test_init_of_another_image_size_is_said(here, capsys, first_model):
    save_initial(here / "initial.pt", WORDS)
    found = checkpoint.load("initial.pt")
    found.transform = Transform(48, "crop")
    checkpoint.save("initial.pt", found)
    status, _, err = run(capsys, *SMALL, "--device", "cpu", "--init", "initial.pt")
    warning, error = err.splitlines()
    assert (status, error) == (2, "error: seen") and warning.startswith(
        "warning: data/dogs.h5 has images of 32"
    )
    assert "--image-size 48 --resize-mode crop" in warning


def test_init_with_words_in_another_order_keeps_their_vectors(here, capsys, first_model):
    initial = save_initial(here / "initial.pt", WORDS[::-1], attention_width=5)
    assert start(capsys, "--init", "initial.pt") == "starting from initial.pt; new weights in: attention\n"
    for name, value in first_model[0].state_dict().items():
        if name.startswith(("embedding.", "word.")):
            assert torch.equal(
                value, initial[name][[0, 1, 2, 3, 7, 6, 5, 4]]
            )  # four special words, then these
        elif not name.startswith("attention."):
            assert torch.equal(value, initial[name]), name


def test_init_from_other_layers_keeps_the_network(here, capsys, first_model):
    """MobileNetV2's stages end in a batch norm, which is folded whether or not the stage is attended."""
    config = dict(backbone="mobilenet_v2", layers=("features.4",))
    initial = save_initial(here / "initial.pt", WORDS, **config)
    flags = ["--backbone", "mobilenet_v2", "--layers", "features.2", "features.4", "--init", "initial.pt"]
    assert start(capsys, *flags).endswith("in: attention\n")
    model = first_model[0].eval()
    one = Backbone("mobilenet_v2", config["layers"])
    prefix = "backbone."
    one.load_state_dict({n.removeprefix(prefix): v for n, v in initial.items() if n.startswith(prefix)})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.backbone.trunk(images)
        torch.testing.assert_close(model.backbone.segment(0, maps[0], maps[1:])[0], one.trunk(images)[0])


def test_init_from_another_backbone_is_refused(here, capsys):
    save_initial(here / "initial.pt", WORDS)
    text = mistake(capsys, "--init", "initial.pt", "--backbone", "mobilenet_v2")
    assert all(part in text for part in ("--init initial.pt", "resnet18", "mobilenet_v2", "--backbone"))


@pytest.mark.parametrize(
    ("backbone", "styles"), [("mobilenet_v2", ()), ("efficientnet_lite0", ("everyday", "flickr8k"))]
)
def test_shapes_start_from_the_model_that_ships_where_it_fits(
    backbone, styles, here, capsys, first_model, monkeypatch, made
):
    """They have its CNN, so that nothing is downloaded."""
    layers = ("features.2", "features.4")
    saved = save_initial(here / "shipped.safetensors", WORDS, backbone=backbone, layers=layers, styles=styles)
    monkeypatch.setattr(checkpoint, "SHIPPED", here / "shipped.safetensors")
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: {})
    common = ["--dataset", "shapes", "--data", str(made), "--device", "cpu"]
    assert main([*common, "--layers", *layers]) == 2
    out, err = capsys.readouterr()
    assert (out.split(";")[0], err) == ("starting from shipped", "error: seen\n")
    assert (first_model[0].config.backbone, first_model[0].config.styles) == (backbone, ())
    assert first_model[0].config.lstm_size == 128  # the preset's
    found = first_model[0].state_dict()
    assert all(torch.equal(found[name], saved[name]) for name in found if name.startswith("backbone."))
    assert main([*common, *SMALL]) == 2  # another network downloads its own weights
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "weights" in err and "resnet18" in err


# ---- self-critical training -------------------------------------------------------------------------------------------

CIDER = ["--objective", "cider", "--epochs", "2", "--batch-size", "3", "--workers", "0", "--device", "cpu"]


def test_self_critical_training_takes_a_captioner_further(here, capsys):
    save_initial(here / "initial.pt", WORDS, attention_width=5)
    status, out, err = run(capsys, *CIDER, "--init", "initial.pt", "--lr", "0.003", "--train-sample-n", "2")
    assert (status, err) == (0, "")
    assert "; new weights in: nothing\n" in out  # though no flag gave the architecture
    assert re.search(r"^before training  val CIDEr +\d", out, re.MULTILINE)
    assert out.endswith("best model: runs/dogs-cider/best.pt\n")
    found = checkpoint.load("runs/dogs-cider/last.pt")
    assert found.config == checkpoint.load("initial.pt").config
    assert [record["epoch"] for record in found.training["history"]] == [0, 1, 2]
    settings = found.training["config"]
    assert (settings["validation_beam"], settings["finetune_backbone_at"], settings["lr"]) == (5, -1, 0.003)
    initial = checkpoint.load("initial.pt").model.state_dict()
    learnt = {n for n, value in found.model.state_dict().items() if not torch.equal(value, initial[n])}
    assert learnt and not any(name.startswith("backbone.") for name in learnt)


@pytest.mark.slow
def test_the_guard_ends_a_run_and_keeps_the_best(here, capsys, monkeypatch):
    qualities = iter([Quality(0.0, 0.0, 9.0), Quality(0.0, 1.0, 9.0), Quality(0.0, 8.0, 9.0)])
    scores = iter([20.0, 25.0, 30.0])
    monkeypatch.setattr(Validation, "__call__", lambda *_: (next(scores), next(qualities), []))
    save_initial(here / "initial.pt", WORDS)
    status, out, _ = run(capsys, *CIDER, "--epochs", "9", "--init", "initial.pt")
    assert status == 0
    assert "stopping: 8.0% of the captions end in a dangling word, 0.0% at the start" in out.splitlines()
    assert (
        checkpoint.load("runs/dogs-cider/best.pt").metrics["val"]["epoch"] == 1
    )  # not 2, of the higher CIDEr
    assert checkpoint.load("runs/dogs-cider/last.pt").metrics["val"]["epoch"] == 2


def test_self_critical_training_needs_a_captioner_with_the_same_words(here, capsys):
    text = mistake(capsys, *CIDER)
    assert text.startswith("--objective cider ") and "--init" in text
    save_initial(here / "initial.pt", WORDS[1:])
    text = mistake(capsys, *CIDER, "--init", "initial.pt")
    assert text.startswith("--objective cider ") and "vocabulary" in text and "--init initial.pt" in text


# ---- attention blocks inside the CNN ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["se", "cbam"])
def test_a_captioner_with_blocks_in_its_cnn_trains(block, here, capsys):
    flags = [*SMALL, *QUICK, "--backbone-attention", block, "--backbone-at", "layer1", "--lr", "0.01"]
    assert run(capsys, *flags, "--finetune-backbone-at", "-1")[0] == 0
    found = checkpoint.load("runs/dogs/best.pt")
    assert (found.config.backbone_attention, found.config.backbone_at) == (block, ("layer1",))
    torch.manual_seed(0)
    fresh = SCACNN(found.config, len(found.vocabulary)).backbone
    trained = found.model.backbone
    assert set(trained.blocks()) == {"layer1.0.attention", "layer1.1.attention"}
    for path, wanted in fresh.blocks().items():
        for name, value in trained.blocks()[path].named_parameters():
            assert not torch.equal(value, wanted.get_parameter(name)), f"{path}.{name} did not learn"
    inside = tuple(trained.blocks())
    for name, value in trained.network.named_parameters():  # the rest is frozen
        assert name.startswith(inside) or torch.equal(value, fresh.network.get_parameter(name)), name

    text = mistake(capsys, *SMALL, *QUICK, "--backbone-attention", "cbma", "--output", "other")
    assert "'cbma'" in text and "bam, " in text
    text = mistake(
        capsys, *SMALL, *QUICK, "--backbone-attention", "se", "--backbone-at", "x", "--output", "other"
    )
    assert "'x'" in text and "layer1, layer2, layer3, layer4" in text
