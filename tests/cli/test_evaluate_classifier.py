"""evaluate.py --task classify, with a classifier of colours and pictures of which some are mislabelled on purpose."""

import json
from pathlib import Path

import pytest

from sca_caption import checkpoint
from sca_caption.cli.evaluate import main, parser
from sca_caption.cli.evaluate_classifier import parser as classifier_parser
from sca_caption.cli.train import main as train
from sca_caption.datasets.classification import open_dataset
from tests.helpers.classified_pictures import class_folders
from tests.helpers.colour_classifier import save_classifier, save_picture


@pytest.fixture
def trained(tmp_path):
    """A checkpoint and the data it names: of four red test pictures one is blue, of two blue ones one is green."""
    root = tmp_path / "colours"
    for split, shown in (
        ("train", {"blue": 1, "green": 1, "red": 1}),
        ("val", {"blue": 2, "green": 2, "red": 2}),
    ):
        for name, count in shown.items():
            for index in range(count):
                save_picture(root / split / name / f"{index}.png", name)
    wrong = {"red": ["red", "red", "blue", "red"], "blue": ["blue", "green"], "green": ["green"]}
    for name, colours in wrong.items():
        for index, colour in enumerate(colours):
            save_picture(root / "test" / name / f"{index}.png", colour)
    data = {"dataset": "folder", "root": str(root)}
    return save_classifier(tmp_path / "best.pt", data), root


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main(["--task", "classify", *(str(each) for each in arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_report(trained, capsys):
    path, _ = trained
    status, out, err = run(capsys, "--checkpoint", path)
    assert status == 0 and "error" not in err
    assert out.splitlines() == [
        f"{path} on folder test: 7 images, 3 classes",
        "",
        "top-1            71.43   95% interval 35.89 to 91.78",
        "top-5           100.00",
        "mean per class   75.00",
        "",
        "hardest classes",
        "   50.00   blue",
        "   75.00   red",
        "",
        "most frequent mistakes",
        "       1   blue taken for green",
        "       1   red taken for blue",
    ]


def test_other_splits_and_other_data(trained, tmp_path, capsys):
    path, root = trained
    status, out, _ = run(capsys, "--checkpoint", path, "--split", "val", "--batch-size", "4")
    assert status == 0 and out.splitlines()[0].endswith("folder val: 6 images, 3 classes")
    assert "top-1           100.00" in out and "hardest" not in out and "mistakes" not in out
    status, out, _ = run(capsys, "--checkpoint", path, "--dataset", "folder", "--root", root / "train" / "..")
    assert status == 0 and "folder test: 7 images" in out
    unknown = save_classifier(tmp_path / "unknown.pt")
    status, out, _ = run(capsys, "--checkpoint", unknown, "--dataset", "folder", "--root", root)
    assert status == 0 and "71.43" in out
    status, _, err = run(capsys, "--checkpoint", unknown)
    assert status == 2 and str(unknown) in err and "--dataset" in err


def test_the_test_images_are_those_that_training_left_out(tmp_path, capsys, monkeypatch):
    """Folders without train and test are split in the same way whatever the seed of the run."""
    monkeypatch.chdir(tmp_path)
    for name in ("blue", "green", "red"):
        for index in range(10):
            save_picture(Path("data/folder") / name / f"{index}.png", name)
    flags = [
        "--task",
        "classify",
        "--dataset",
        "folder",
        "--backbone",
        "lenet",
        "--image-size",
        "32",
        "--seed",
        "3",
    ]
    flags += ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--backbone-weights", "none"]
    assert train([*flags, "--device", "cpu", "--quiet"]) == 0
    best = Path("runs/folder-lenet/best.pt")
    assert run(capsys, "--checkpoint", best, "--output", "scores.json")[0] == 0
    content = json.loads(Path("scores.json").read_text())
    data = open_dataset("folder", "data/folder")
    names = {rows: {data.file_name(row) for row in data.indices(rows)} for rows in ("train", "test")}
    assert {image["file_name"] for image in content["images"]} == names["test"]
    assert len(names["test"]) == 6 and not names["test"] & names["train"]
    assert set(checkpoint.load(best, task="classify").metrics["data"]) <= set(content["provenance"])


def test_the_test_images_are_those_of_the_models_own_split(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "data" / "folder")
    flags = "--task classify --dataset folder --backbone lenet --image-size 32 --epochs 1 --batch-size 8 --workers 0"
    more = "--backbone-weights none --device cpu --quiet --seed 3 --train-per-class 4"
    assert train([*flags.split(), *more.split()]) == 0
    assert run(capsys, "--checkpoint", "runs/folder-lenet/best.pt", "--output", "scores.json")[0] == 0
    content = json.loads(Path("scores.json").read_text())
    data = open_dataset("folder", "data/folder", 3, 4)
    assert {image["file_name"] for image in content["images"]} == {
        data.file_name(i) for i in data.indices("val")
    }
    assert len(content["images"]) == 24 and content["provenance"]["per_class_split"] == {
        "seed": 3,
        "per_class": 4,
    }


def test_the_results_file_and_the_picture(trained, tmp_path, capsys):
    path, root = trained
    output, picture = tmp_path / "scores.json", tmp_path / "confusion.svg"
    assert run(capsys, "--checkpoint", path, "--output", output, "--confusion", picture)[0] == 0
    content = json.loads(output.read_text())
    assert content["metrics"] == {"top-1": 71.4286, "top-5": 100.0, "mean per-class": 75.0}
    assert content["confidence"]["top-1"] == pytest.approx([35.89, 91.78], abs=0.01)
    assert content["per_class"] == {"blue": 50.0, "green": 100.0, "red": 75.0}
    assert content["classes"] == ["blue", "green", "red"]
    assert content["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 3]]
    assert len(content["images"]) == 7
    mistakes = {
        (i["file_name"], i["class"], i["predicted"])
        for i in content["images"]
        if i["class"] != i["predicted"]
    }
    assert mistakes == {("test/blue/1.png", "blue", "green"), ("test/red/2.png", "red", "blue")}
    assert all(0.5 < image["probability"] < 1 for image in content["images"])
    provenance = content["provenance"]
    assert provenance["dataset"] == "folder" and provenance["root"] == str(root) and provenance["images"] == 7
    assert provenance["splits"] == "folders train, val, test" and len(provenance["checkpoint_sha256"]) == 64
    drawn = picture.read_text(encoding="utf-8")
    assert f"<!-- {path} on folder test -->" in drawn and "7 images -->" in drawn


def test_a_row_for_a_readme(trained, capsys):
    path, _ = trained
    _, out, _ = run(capsys, "--checkpoint", path, "--markdown")
    head, rule, row = out.splitlines()
    assert head == "| model | images | top-1 | 95% interval | top-5 | mean per class |"
    assert rule.count("---") == 6
    assert row == f"| {path} | folder test, 7 | 71.43 | 35.89 to 91.78 | 100.00 | 75.00 |"


def test_what_is_refused(trained, tmp_path, capsys, tiny_checkpoint):
    path, root = trained

    def refused(message: str, *arguments: object) -> None:
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "") and err.count("\n") == 1 and message in err, err

    wrong = "shapes has other classes (15: blue circle, blue square, blue triangle and 12 more) than "
    refused(wrong + f"{path} (3: blue, green, red); give the", "--checkpoint", path, "--dataset", "shapes")
    refused("unknown dataset for classification 'cfar'", "--checkpoint", path, "--dataset", "cfar")
    refused("is a captioner, not a classifier", "--checkpoint", tiny_checkpoint)
    refused("required: --checkpoint; see evaluate.py --task classify --help")
    refused("it is a folder; give a file", "--checkpoint", path, "--output", tmp_path)
    refused("unknown figure format '.jpg'", "--checkpoint", path, "--confusion", tmp_path / "c.jpg")
    refused("unrecognized arguments: --beam-size 3", "--checkpoint", path, "--beam-size", "3")
    refused("--batch-size 0: must be at least 1", "--checkpoint", path, "--batch-size", "0")
    (root / "test" / "red" / "1.png").write_bytes(b"nonsense")
    refused("1.png: not an image, or damaged at its start", "--checkpoint", path)
    (root / "val" / "red").rename(root / "val" / "rouge")
    refused(
        "train and val have different classes (red only in train; rouge only in val)", "--checkpoint", path
    )
    root.rename(tmp_path / "elsewhere")
    refused("colours is no such folder; give it", "--checkpoint", path)


def test_the_task_chooses_the_flags(capsys):
    assert main(["--task", "clasify"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'clasify'" in error and "caption, classify" in error
    assert "--task" in parser().format_help() and "--confusion" not in parser().format_help()
    shown = classifier_parser().format_help()
    assert "--confusion" in shown and "--beam-size" not in shown


def test_a_captioner_is_still_scored_without_a_task(capsys, trained):
    path, _ = trained
    assert main(["--checkpoint", str(path)]) == 2
    assert "nothing to score; give --dataset NAME" in capsys.readouterr().err
    with pytest.raises(Exception, match="is a classifier, not a captioner"):
        checkpoint.load(path)
