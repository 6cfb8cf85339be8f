"""`train.py --task classify`, as its users run it."""

import shutil

import pytest
import torch

from sca_caption import checkpoint
from sca_caption.attention import BLOCKS
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import flags as flags_module
from sca_caption.cli.train import main
from sca_caption.cli.train_classifier import default_output, parser, report
from sca_caption.config import ClassifierConfig, ClassifierTrainConfig
from sca_caption.images import Transform
from sca_caption.models.networks import NETWORKS, build_network
from sca_caption.recipes import load_recipe
from sca_caption.runtime.torchvision_compat import torchvision
from sca_caption.training import loop as training
from sca_caption.training import optim
from sca_caption.vocab import Vocabulary
from tests.helpers.classified_pictures import class_folders
from tests.helpers.made_photos import error_line
from tests.helpers.tiny_captioner import tiny_captioner

COMMON = ["--task", "classify", "--dataset", "folder", "--device", "cpu"]
SMALL = ["--backbone", "lenet", "--image-size", "32", "--backbone-weights", "none"]
QUICK = ["--epochs", "2", "--batch-size", "8", "--workers", "0", "--views", "none", "--lr", "0.01"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with pictures of four classes in data/folder."""
    class_folders(tmp_path / "data" / "folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "summary_writer", lambda output: None)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main([*COMMON, *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def mistake(capsys, *arguments: str) -> str:
    """What the program says on the way out with status 2: one line, and nothing was trained."""
    return error_line(*run(capsys, *arguments))


def test_it_trains_resumes_and_says_where_the_model_is(here, capsys):
    status, out, err = run(capsys, *SMALL, *QUICK, "--attention", "cbam:reduction=4", "--at", "conv2")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith("lenet + cbam:reduction=4 on folder: 32 training and 8 validation images (")
    assert [line[:10] for line in lines if line.startswith("epoch")] == ["epoch  1/2", "epoch  2/2"]
    assert lines[-2].startswith("top-1: ") and "mean of the best five" in lines[-2]
    folder = "runs/folder-lenet-cbam-reduction-4-conv2"
    assert lines[-1] == f"best model: {folder}/best.pt"
    best = checkpoint.load(f"{folder}/best.pt", "classify")
    assert best.config == ClassifierConfig(
        "lenet", "cbam:reduction=4", ("conv2",), "imagenet", 32, ("apple", "leaf", "plum", "sky")
    )
    assert best.transform == Transform(32, "crop")

    again = ["--backbone", "lenet", "--attention", "cbam:reduction=4", "--at", "conv2"]
    text = mistake(capsys, *SMALL, *QUICK, *again)
    assert all(part in text for part in (folder, "--resume", "--output"))
    status, out, _ = run(capsys, *again, "--resume")
    assert status == 0 and out.splitlines()[-1] == lines[-1]
    text = mistake(capsys, *again, "--output", folder, "--resume", "--epochs", "9")
    assert all(part in text for part in ("--resume", "epochs=2", "9"))

    shutil.rmtree("data/folder/sky")
    text = mistake(capsys, *again, "--resume")
    assert all(part in text for part in ("(3)", f"{folder}/last.pt (4)", "data/folder"))


def test_mistakes_are_one_line_and_leave_nothing(here, capsys):
    """Each names the flag or the file, what was found, and the valid values if there are few."""
    for flags, parts in (
        (["--attention", "cbma"], ("'cbma'", *BLOCKS)),
        (["--backbone", "resnet19"], ("'resnet19'", *NETWORKS)),
        (["--attention", "se", "--at", "layer9"], ("lenet", "'layer9'", "conv1", "conv2")),
        (["--attention", "bam:ratio=2"], ("bam:ratio=2", "'ratio'", "bam:OPTION=VALUE")),
        (["--attention", "se:bias=maybe"], ("se:bias", "'maybe'", "false, true")),
        (["--attention", "se:reduction=few"], ("se:reduction=few", "number")),
        (["--at", "conv1"], ("conv1",)),
        (["--stem", "resnet"], ("--stem", "'resnet'")),
        (["--dataset", "cifar11"], ("'cifar11'", "cifar10", "cifar100")),
        (["--root", "nowhere"], ("folder", "nowhere")),
        (["--backbone-weights", "none.pth"], ("none.pth",)),
        (["--epochs", "0"], ("--epochs 0", "at least 1")),
        (["--mixup", "-1"], ("--mixup -1.0", "0 or more")),
        (["--batch-size", "64"], ("--batch-size 64", "32")),
        (["--device", "abacus"], ("'abacus'",)),
        (["--objective", "cider"], ("--objective cider", "train.py --task classify --help")),
        (["--resume"], ("no run in runs/folder-lenet", "leave --resume out")),
        (["--task", "paint"], ("'paint'", "caption, classify")),
        (["--recipe", "cifra"], ("--recipe cifra", "caltech", "cifar", "imagenet", "shapes-classify")),
        (["--recipe", "paper"], ("--recipe paper", "'caption'", "'classify'")),
        (["--output", "data/folder/sky/0.png"], ("data/folder/sky/0.png", "File exists")),
    ):
        found = mistake(capsys, *SMALL, *QUICK, *flags)
        assert not [part for part in parts if part not in found], found
    assert [p.name for p in here.iterdir()] == ["data"]


def test_data_that_cannot_be_learnt_from_is_one_line(here, capsys):
    (here / "data" / "folder" / "void").mkdir()
    text = mistake(capsys, *SMALL, *QUICK)
    assert "'void'" in text and "data/folder/void" in text
    shutil.rmtree(here / "data" / "folder")
    (here / "data" / "folder").mkdir()
    assert "data/folder" in mistake(capsys, *SMALL, *QUICK)
    assert not (here / "runs").exists()


def test_weights_of_another_network_are_one_line(here, capsys):
    torch.save(build_network("resnet18").state_dict(), "resnet18.pth")
    text = mistake(capsys, *SMALL, *QUICK, "--backbone-weights", "resnet18.pth")
    assert "weights" in text and "lenet" in text


def test_a_captioners_run_is_not_resumed(here, capsys):
    words = [f"word{i}" for i in range(16)]
    made = Checkpoint(tiny_captioner(), Vocabulary(words), Transform(32))
    checkpoint.save(here / "runs" / "folder-lenet" / "last.pt", made)
    text = mistake(capsys, "--backbone", "lenet", "--resume")
    assert "runs/folder-lenet/last.pt" in text and "captioner" in text


def test_weights_come_from_a_file_or_a_download(here, capsys, monkeypatch):
    torch.manual_seed(3)
    weights = build_network("resnet18").state_dict()
    torch.save(weights, "resnet18.pth")
    flags = ["--backbone", "resnet18", "--image-size", "32", *QUICK, "--epochs", "1", "--lr", "1e-9"]
    status, out, err = run(capsys, *flags, "--attention", "se", "--backbone-weights", "resnet18.pth")
    assert (status, err) == (0, "")
    assert out.startswith("starting from resnet18.pth; ")
    found = checkpoint.load("runs/folder-resnet18-se/best.pt", "classify").model.network.state_dict()
    for name in ("conv1.weight", "layer4.1.conv2.weight"):
        torch.testing.assert_close(found[name], weights[name], atol=1e-5, rtol=0)

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    text = mistake(capsys, *flags)  # folder's recipe starts from a download
    assert all(part in text for part in ("resnet18", "(no network)", "--backbone-weights"))
    assert "--backbone-weights FILE" in text


# ---- settings --------------------------------------------------------------------------------------------------------

CONFIGS = (ClassifierConfig, ClassifierTrainConfig)


def test_the_cifar_recipe_is_the_published_recipe():
    """160 epochs, SGD 0.1 / 0.9 / 1e-4, a tenth at 80 and 120, batch 128, an epoch of warm-up, crops and flips."""
    nothing = parser().parse_args(["--dataset", "cifar10"])
    model, train = (flags_module.make(each, nothing, load_recipe("cifar", "classify")) for each in CONFIGS)
    assert (model.backbone, model.stem, model.image_size) == ("resnet18", "cifar", 32)
    assert (train.epochs, train.batch_size, train.optimizer) == (160, 128, "sgd")
    assert (train.lr, train.weight_decay, train.schedule, train.views) == (0.1, 1e-4, "step", "pad")
    assert train.warmup * train.epochs == 1 and not train.label_smoothing and not train.mixup
    steps = 390
    rate = [0.1 * optim.rate_factor(e * steps, 160 * steps, train) for e in range(160)]
    assert rate[1:] == pytest.approx([0.1] * 79 + [0.01] * 40 + [0.001] * 40)


def test_the_folder_of_a_run_names_what_was_trained():
    made = ClassifierConfig("resnet50", "bam:combine=add,reduction=8", ("layer1", "layer2"))
    assert (
        str(default_output("cifar10", made))
        == "runs/cifar10-resnet50-bam-combine-add-reduction-8-layer1-layer2"
    )
    assert str(default_output("shapes", ClassifierConfig())) == "runs/shapes-resnet18"


def test_the_report_has_the_last_epoch_and_the_best_five(capsys):
    report([{"top-1": x} for x in (10.0, 80.0, 90.0, 70.0, 60.0, 50.0, 65.0)])
    assert capsys.readouterr().out == "top-1: 65.00 in the last epoch, 73.00 in the mean of the best five\n"


def test_help_fits_on_two_pages(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert len(parser().format_help().splitlines()) < 80
