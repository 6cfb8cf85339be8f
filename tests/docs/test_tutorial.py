"""docs/tutorial.md runs from top to bottom as written, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sca_caption import checkpoint
from tests.helpers.documents import PROGRAMS, ROOT, blocks
from tests.helpers.thorough import thorough

TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with the programs and the package, as in a clone, for what the tutorial makes."""
    for name in (*(f"{program}.py" for program in PROGRAMS), "sca_caption"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    return tmp_path


def test_photographs_are_prepared_at_the_size_of_the_pretrained_model():
    sizes = re.findall(r"--image-size (\d+)", TUTORIAL.read_text(encoding="utf-8"))
    assert sizes == [str(checkpoint.load().transform.size)]


@thorough
@pytest.mark.slow
def test_the_tutorial_runs_as_written(clone):
    pytest.importorskip("skimage")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(clone)}
    said = []
    for language, content in blocks(TUTORIAL.read_text(encoding="utf-8")):
        if language == "csv":
            (clone / "data/photos/captions.csv").write_text(content, encoding="utf-8")
            continue
        if language == "text" or content.startswith("pip "):
            continue
        command = ["python", "-"] if language == "python" else ["bash", "-e"]
        ran = subprocess.run(
            command, input=content, cwd=clone, env=environment, text=True, capture_output=True
        )
        assert ran.returncode == 0, f"{content}\n{ran.stdout}\n{ran.stderr}"
        said.append(ran.stdout)
    made = {path.name for path in [*(clone / "data").iterdir(), *(clone / "runs/photos").iterdir()]}
    assert made >= {"photos", "photos.h5", "chelsea.png", "rocket.png", "best.pt", "last.pt", "progress.svg"}
    # What it claims: the captioner has learnt the captions that it was given.
    before, after = (dict(re.findall(r"^(.*?)\t.*?([^\t]+)$", said[i], re.MULTILINE)) for i in (2, -3))
    assert "suit" in after["data/photos/astronaut.jpg"] and "coffee" in after["data/photos/coffee.jpg"]
    assert before.keys() == after.keys() and before != after
