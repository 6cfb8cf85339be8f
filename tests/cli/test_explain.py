"""`caption.py --explain` and `--save-attention`: the caption as always, and a figure or numbers beside it."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from sca_caption.explain.explanation import explain
from sca_caption.inference.captioning import CaptionPipeline
from tests.helpers.made_photos import dataset, write


@pytest.mark.slow
def test_the_caption_is_printed_and_the_figure_is_that_of_python(run, tiny_checkpoint, photos, tmp_path):
    plain, path = run(photos[0]), tmp_path / "why.svg"
    assert run(photos[0], "--explain", path) == plain
    explain(CaptionPipeline.load(tiny_checkpoint), photos[0]).save(tmp_path / "again.svg")
    assert path.read_bytes() == (tmp_path / "again.svg").read_bytes()


def test_the_words_as_an_animation(run, photos, tmp_path):
    _, text, _ = run(photos[1], "--explain", tmp_path / "why.gif")
    with Image.open(tmp_path / "why.gif") as gif:
        assert gif.n_frames == len(text.split())


@pytest.mark.slow
def test_patches_of_a_data_file(run, photos, tmp_path):
    write(dataset(6), tmp_path / "made.h5")
    plain = run(photos[0], "--explain", tmp_path / "own.svg")
    assert run(photos[0], "--explain", tmp_path / "why.svg", "--explain-data", tmp_path / "made.h5") == plain
    for name, where in (("why", "in 4 training images"), ("own", "in this photograph")):
        lines = ElementTree.parse(tmp_path / f"{name}.svg").findall(".//{*}text")
        assert f"maximum of a channel {where}" in " ".join(line.text for line in lines)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_numbers_in_results(run, tiny_checkpoint, photos, tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    status, _, _ = run(*photos[:3], "--output", path, "--save-attention", "--num-captions", 2)
    assert status == 0
    text = path.read_text(encoding="utf-8")
    entries = json.loads(text) if kind == "json" else [json.loads(line) for line in text.splitlines()]
    assert len(entries) == 3
    for entry, photo in zip(entries, photos, strict=False):
        wanted = explain(CaptionPipeline.load(tiny_checkpoint), photo).numbers()
        assert entry["attention"]["words"] == wanted["words"] == entry["caption"].split()
        for mine, layer in zip(entry["attention"]["layers"], wanted["layers"], strict=True):
            np.testing.assert_allclose(mine["spatial"], layer["spatial"], rtol=2e-3)
            np.testing.assert_allclose(mine["channel"], layer["channel"], rtol=2e-3)
    run(photos[0], "--output", tmp_path / "plain.json")
    assert "attention" not in json.loads((tmp_path / "plain.json").read_text())[0]


def test_mistakes_are_one_line_and_nothing_is_written(run, photos, tmp_path):
    figure, table = tmp_path / "why.png", tmp_path / "out.csv"
    cases = [
        ("--explain draws a single image, found 2; give one", *photos[:2], "--explain", figure),
        ("unknown figure format '.webp'; one of: .gif, .pdf, .png, .svg", photos[0], "--explain", "why.webp"),
        ("no folder", photos[0], "--explain", tmp_path / "no" / "why.png"),
        ("--explain-data is for the patches of --explain", photos[0], "--explain-data", tmp_path / "x.h5"),
        ("no data file", photos[0], "--explain", figure, "--explain-data", tmp_path / "x.h5"),
        ("which .gif does not show", photos[0], "--explain", tmp_path / "a.gif", "--explain-data", "x.h5"),
        ("--save-attention adds weights to --output FILE.json or .jsonl; found no --output", photos[0],
         "--save-attention"),
        (f"found {table}", photos[0], "--save-attention", "--output", table),
    ]  # fmt: skip
    before = sorted(tmp_path.iterdir())
    for wanted, *arguments in cases:
        status, out, err = run(*arguments)
        assert status == 2 and not out and err.count("\n") == 1 and wanted in err, wanted
    status, out, err = run(photos[0], "--explain", figure, checkpoints=2)
    assert status == 2 and err.count("\n") == 1 and "the attention of 2 models cannot be shown at once" in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_image_that_cannot_be_read_has_no_figure(run, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    status, out, err = run(tmp_path / "bad.jpg", "--explain", tmp_path / "why.png")
    assert status == 2 and not out and "bad.jpg" in err and err.count("\n") == 1
    assert not (tmp_path / "why.png").exists()
