"""The program that names what is in photographs, with a classifier of colours whose answers are known."""

import csv
import json
import math
import os

import pytest
from PIL import Image

from sca_caption.cli.classify import main
from tests.helpers.colour_classifier import CLASSES, save_classifier, save_picture

NORMAL = (255 / 255 - 0.485) / 0.229  # a fully red pixel, as networks see it: the logit of "red"
SHARE = math.exp(NORMAL) / (math.exp(NORMAL) + 2)  # its probability, where the two others have logit 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_classifier(tmp_path_factory.mktemp("model") / "best.pt"))


@pytest.fixture
def pictures(tmp_path):
    """Five pictures in a folder, one of them deeper, each named after its colour."""
    folder = tmp_path / "pictures"
    for name in ("a_red.png", "b_blue.jpg", "c_green.webp", "more/d_red.bmp", "more/e_blue.gif"):
        save_picture(folder / name, name.split("_")[1].split(".")[0])
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_one_image_prints_its_classes_best_first(model, pictures, capsys):
    status, out, err = run(capsys, pictures / "a_red.png", "--checkpoint", model)
    rest = (1 - SHARE) / 2
    assert (
        out == f"red\t{SHARE:.4f}\nblue\t{rest:.4f}\ngreen\t{rest:.4f}\n"
    )  # equal ones in the classes' order
    assert (status, err) == (0, "")
    status, out, _ = run(capsys, pictures / "a_red.png", "--checkpoint", model, "--top", "1")
    assert out == f"red\t{SHARE:.4f}\n"


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_several_images_print_a_line_each(model, pictures, capsys, batch_size):
    status, out, err = run(capsys, pictures, "--checkpoint", model, "--batch-size", batch_size)
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == sorted(str(path) for path in pictures.rglob("*.*"))
    for path, name, probability in rows:
        assert os.path.basename(path).split("_")[1].startswith(name)
        assert 0.5 < float(probability) < 1
    assert len(rows) == 5 and (status, err) == (0, "")


def test_a_picture_is_the_same_alone_and_among_others(model, pictures, capsys):
    _, out, _ = run(capsys, pictures, "--checkpoint", model)
    for line in out.splitlines():
        path, name, probability = line.split("\t")
        assert run(capsys, path, "--checkpoint", model)[1].startswith(f"{name}\t{probability}\n")


def test_a_bad_file_among_others_is_reported_and_the_rest_goes_on(model, pictures, capsys):
    bad = pictures / "bad.png"
    bad.write_bytes(b"nonsense")
    missing = pictures / "missing.png"
    status, out, err = run(capsys, missing, pictures, "--checkpoint", model)
    assert status == 1 and len(out.splitlines()) == 5
    assert err.splitlines() == [
        f"error: {missing}: no such file; check the path",
        f"error: {bad}: not an image, or damaged at its start; get it again or convert it",
    ]
    status, out, err = run(capsys, bad, "--checkpoint", model)
    assert (status, out) == (2, "") and err.startswith(f"error: {bad}: not an image")
    status, out, err = run(capsys, missing, "--checkpoint", "not/looked/at.pt")
    assert (status, out, err) == (2, "", f"error: {missing}: no such file; check the path\n")


def test_results_files(model, pictures, tmp_path, capsys):
    (pictures / "bad.png").write_bytes(b"")
    paths = sorted(str(path) for path in pictures.rglob("*.*") if "bad" not in path.name)

    def written(name: str, top: int) -> str:
        status, out, err = run(
            capsys, pictures, "--checkpoint", model, "--output", tmp_path / name, "--top", top
        )
        assert (status, out) == (1, "") and err.endswith(f"5 of 6 images classified in {tmp_path / name}\n")
        return (tmp_path / name).read_text(encoding="utf-8")

    entries = json.loads(written("out.json", 2))
    assert [entry["file_name"] for entry in entries] == paths
    assert [entry["class"] for entry in entries] == ["red", "blue", "green", "red", "blue"]
    assert entries[0]["probability"] == pytest.approx(SHARE, abs=1e-6)
    assert [each["class"] for each in entries[0]["classes"]] == ["red", "blue"]
    lines = written("out.jsonl", 2).splitlines()
    assert [json.loads(line) for line in lines] == entries
    rows = list(csv.DictReader(written("out.csv", 9).splitlines()))
    assert len(rows) == 5 * len(CLASSES)
    assert rows[0]["file_name"] == paths[0] and rows[0]["class"] == "red" and rows[0]["rank"] == "1"
    assert float(rows[0]["probability"]) == pytest.approx(SHARE, abs=1e-6)
    for path in paths:
        assert sum(float(r["probability"]) for r in rows if r["file_name"] == path) == pytest.approx(
            1, abs=1e-5
        )


def test_no_results_no_file(model, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nonsense")
    status, _, err = run(capsys, bad, bad, "--checkpoint", model, "--output", tmp_path / "out.json")
    assert status == 2 and "classified" not in err and os.listdir(tmp_path) == ["bad.png"]


def test_paths_from_standard_input(model, pictures, capsys, monkeypatch):
    class Lines:
        buffer = open(os.devnull, "rb")  # noqa: SIM115

    monkeypatch.setattr("sys.stdin", Lines())
    status, out, err = run(capsys, "-", "--checkpoint", model)
    assert (status, out, err) == (2, "", "error: no paths on standard input; give one per line\n")
    (pictures / "list").write_text(f"{pictures / 'a_red.png'}\n")
    Lines.buffer = open(pictures / "list", "rb")  # noqa: SIM115
    _, out, _ = run(capsys, "-", "--checkpoint", model)
    assert out == f"{pictures / 'a_red.png'}\tred\t{SHARE:.4f}\n"


def test_explain(model, pictures, tmp_path, capsys):
    why = tmp_path / "why.png"
    status, out, err = run(capsys, pictures / "a_red.png", "--checkpoint", model, "--explain", why)
    assert (status, err) == (0, "") and out.startswith("red\t")
    with Image.open(why) as picture:
        assert picture.width > 1000
    (pictures / "bad.png").write_bytes(b"nonsense")
    status, _, _ = run(capsys, pictures / "bad.png", "--checkpoint", model, "--explain", tmp_path / "no.png")
    assert status == 2 and not (tmp_path / "no.png").exists()


def test_what_is_refused(model, pictures, tmp_path, capsys, tiny_checkpoint):
    def refused(message: str, *arguments: object, checkpoint: object = model) -> None:
        status, out, err = run(capsys, *arguments, "--checkpoint", checkpoint)
        assert (status, out) == (2, "") and err.count("\n") == 1 and message in err, err

    red = pictures / "a_red.png"
    refused("--explain draws a single image, found 5; give one", pictures, "--explain", tmp_path / "why.png")
    refused("unknown figure format '.gif'; one of: .pdf, .png, .svg", red, "--explain", tmp_path / "why.gif")
    refused(
        "unknown kind of --output '.txt'; one of: .csv, .json, .jsonl", red, "--output", tmp_path / "x.txt"
    )
    refused("no/x.csv: no folder", red, "--output", tmp_path / "no" / "x.csv")
    refused("--top 0: must be at least 1", red, "--top", "0")
    refused("--batch-size 0: must be at least 1", red, "--batch-size", "0")
    refused("is a captioner, not a classifier", red, checkpoint=tiny_checkpoint)
    refused("no such file; train.py writes best.pt", red, checkpoint=tmp_path / "no.pt")
    assert main([str(red)]) == 2 and "required: --checkpoint" in capsys.readouterr().err
