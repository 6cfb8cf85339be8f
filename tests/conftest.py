"""Fixtures of several test modules: a tiny captioner's checkpoint, made photographs, and caption.py run with both."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from sca_caption import checkpoint
from sca_caption.cli import caption
from sca_caption.images import Transform
from sca_caption.vocab import Vocabulary
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner

# Models this small only lose time to threads, most of all where others share the cores; so do programs that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, without files between runs and without timing.
settings.register_profile(
    "reproducible",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """The file of a captioner that loads and captions in milliseconds and says nonsense."""
    path = tmp_path_factory.mktemp("tiny") / "best.pt"
    made = checkpoint.Checkpoint(tiny_captioner(), Vocabulary(TINY_WORDS), Transform(size=32), {"CIDEr": 1.0})
    checkpoint.save(path, made)
    return path


@pytest.fixture(scope="session")
def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Seven image files of several formats, sizes and colours, in a folder that holds another; sorted."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    colours = {
        "a.jpg": "black",
        "b.png": "blue",
        "c.webp": "lime",
        "d.bmp": "cyan",
        "e.gif": "red",
        "more/f.jpg": "magenta",
        "more/g.PNG": "yellow",
    }
    for index, (name, colour) in enumerate(colours.items()):
        Image.new("RGB", (40 + 13 * index, 70 - 5 * index), colour).save(folder / name)
    return [folder / name for name in colours]


@pytest.fixture
def run(tiny_checkpoint, capsys):
    """run(*arguments) -> (status, stdout, stderr) of caption.py with the tiny captioner, or with it several times."""

    def run(*arguments, checkpoints=1):
        models = [str(tiny_checkpoint)] * checkpoints
        status = caption.main([*map(str, arguments), "--checkpoint", *models])
        return status, *capsys.readouterr()

    return run
