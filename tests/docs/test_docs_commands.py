"""Commands of the documents that take seconds run on made photographs and models.

The others are training, preprocessing and benchmarks; test_docs.py has their programs parse them. The tutorial's build
upon each other: test_tutorial.py runs it whole.
"""

import importlib
import io
import itertools
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.evaluation import meteor_spice as java_metrics
from sca_caption.evaluation.meteor_spice import MetricUnavailable
from sca_caption.images import Transform
from sca_caption.vocab import Vocabulary
from tests.helpers.colour_classifier import save_classifier, save_picture
from tests.helpers.documents import ROOT, commands, programs, texts
from tests.helpers.made_photos import dataset, write
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner

RUN = (
    "caption.py",
    "evaluate.py",
    "evaluate.py --task classify",
    "-m sca_caption classify",
    "-m sca_caption curves",
)
STAYS = ("--serve", "--help", "--version")  # these exit, or go on until interrupted; other tests start them
FOUND = sorted(
    {
        (name, shlex.join(arguments))
        for document, text in texts().items()
        if document != "docs/tutorial.md"
        for name, arguments in commands(text)
        if name in RUN and arguments and not set(STAYS) & set(arguments)
    }
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """All that the commands name, small: photographs, data files, runs, results, and a list of paths."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("photo.jpg", "a.jpg", "b.png", "photos/1.jpg", "photos/2.jpg"):
        save_picture(folder / name, "red" if "1" in name else "green")
    for split in ("train", "val", "test"):
        for colour in ("red", "green", "blue"):
            save_picture(folder / "classes" / split / colour / "0.png", colour)
    (folder / "sca_caption/photographs").mkdir(parents=True)
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "sca_caption/photographs/giraffes.jpg", folder / "sca_caption/photographs")
    (folder / "captions").mkdir()
    history = {"history": [{"epoch": 1, "CIDEr": 1.0}, {"epoch": 2, "CIDEr": 2.0}]}
    model = Checkpoint(tiny_captioner(), Vocabulary(TINY_WORDS), Transform(32), {}, history)
    checkpoint.save(folder / "shipped.safetensors", model)
    curves = ("cross-entropy", "cider", "cider-temperature-1", "cross-entropy-on")
    for run in ("flickr8k", "flickr8k-cider", "shapes", "coco", "photos", *curves):
        for name in ("best.pt", "last.pt"):
            checkpoint.save(folder / "runs" / run / name, model)
    (folder / "data").mkdir()
    for name in ("flickr8k", "shapes", "coco", "photos"):
        write(dataset(8), folder / "data" / f"{name}.h5")
    (folder / "data/classes").symlink_to(folder / "classes")
    source = {"dataset": "folder", "root": str(folder / "classes"), "seed": 0}
    for run in ("cifar10-resnet18-cbam", "caltech101-resnet18", "NAME-resnet18", "folder-mobilenet_v2-coord"):
        (folder / "runs" / run).mkdir()
        save_classifier(folder / "runs" / run / "best.pt", source)
    epochs = [{"epoch": 1, "top-1": 10.0}, {"epoch": 2, "top-1": 20.0}]
    for run in ("cifar10-resnet18", "cifar10-resnet18-cbam"):
        (folder / "runs" / run).mkdir(exist_ok=True)
        save_classifier(folder / "runs" / run / "last.pt", source, history=epochs)
    save_classifier(folder / "F", source)
    written = [{"image_id": 1007, "file_name": "photo 7.png", "caption": "a dog"}]
    (folder / "out.json").write_text(json.dumps(written))
    for name in ("captions.json", "captions_val2017.json"):
        (folder / "references").mkdir(exist_ok=True)
        (folder / "references" / name).write_text(json.dumps({"photo 7.png": ["a dog runs", "the dog"]}))
    return folder


@pytest.mark.parametrize(("name", "line"), FOUND, ids=[" ".join(each) for each in FOUND])
def test_a_command_of_the_documents_runs(name, line, files, tmp_path, monkeypatch, capsys):
    if name.startswith("evaluate"):
        pytest.importorskip("pycocoevalcap")
    if "--explain" in line:
        pytest.importorskip("pytorch_grad_cam")
    here = tmp_path / "here"
    shutil.copytree(files, here, symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(checkpoint, "SHIPPED", here / "shipped.safetensors")
    monkeypatch.setattr(java_metrics, "find_java", no_java)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.jpg\nb.png\n")))
    if "--references" in line:  # not there otherwise, as caption.py writes files of that name
        shutil.copytree(here / "references", here, dirs_exist_ok=True)
    arguments = shlex.split(line.replace("--root photos", "--root classes"))
    module = programs()[name]
    main = getattr(module, "main", None) or importlib.import_module("sca_caption.cli.evaluate").main
    assert main(arguments) == 0, capsys.readouterr().err
    written = [
        after
        for flag, after in itertools.pairwise(arguments)
        if flag in ("--output", "--explain", "--confusion")
    ]
    assert all((here / name).stat().st_size for name in written)
    assert written or "--txt" in line or capsys.readouterr().out


def no_java():
    raise MetricUnavailable("no Java here")
