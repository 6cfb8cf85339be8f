"""caption.py --resume and --txt: killed runs, new photographs, text files beside photographs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sca_caption.inference.journal import journal_of
from tests.helpers.made_photos import error_line

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BATCH = 4
# Captions the first batches at once and waits before the others, so that the test can kill it there.
SLOW = """
import sys, time
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.cli.caption import main
caption_batch, batches = CaptionPipeline.caption_batch, []
def slow(self, batch):
    batches.append(0)
    if len(batches) == 4:
        time.sleep(600)
    return caption_batch(self, batch)
CaptionPipeline.caption_batch = slow
main(sys.argv[1:])
"""


@pytest.fixture
def many(tmp_path) -> Path:
    """A folder of thirty photographs, one of them broken."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(30):
        Image.new("RGB", (20 + index, 30), (index * 8, 255 - index * 8, 99)).save(
            folder / f"photo{index:02}.png"
        )
    (folder / "photo01.png").write_text("no picture")
    return folder


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_killed_run_loses_at_most_one_batch(run, many, tiny_checkpoint, tmp_path, kind, monkeypatch):
    output, whole = tmp_path / f"out.{kind}", tmp_path / f"whole.{kind}"
    flags = [
        str(many),
        "--checkpoint",
        str(tiny_checkpoint),
        "--batch-size",
        str(BATCH),
        "--output",
        str(output),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", SLOW, *flags], env=environment) as process:
        try:
            end = time.monotonic() + 120
            while not (done := lines(journal_of(output))) or done < 1 + 3 * BATCH - 1:
                assert process.poll() is None and time.monotonic() < end, "it never came to its fourth batch"
                time.sleep(0.05)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert not output.exists()
    with open(journal_of(output), "ab") as file:
        file.write(b'{"image_id": 14, "file_na')  # what a kill in the middle of a line leaves

    captioned = []
    monkeypatch.setattr("sca_caption.images.load", counted(captioned))
    status, out, err = run(many, "--batch-size", BATCH, "--output", output, "--resume")
    assert (status, out) == (1, "")
    assert err.endswith(f"29 of 30 images captioned in {output}, 11 of them before\n")
    assert len(captioned) == 30 - 11 and not journal_of(output).exists()
    run(many, "--batch-size", BATCH, "--output", whole)
    assert output.read_text() == whole.read_text()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def counted(calls: list):
    """`images.load` that notes what it loads."""
    from sca_caption.images import load

    def loading(source, transform):
        calls.append(Path(source).name)
        return load(source, transform)

    return loading


def test_a_second_run_captions_new_files_only(run, photos, tmp_path, monkeypatch):
    folder, output = photos[0].parent, tmp_path / "out.json"
    assert run(folder, "--output", output)[0] == 0
    before = json.loads(output.read_text())
    photos[2].unlink()
    new = folder / "a new one.png"
    Image.new("RGB", (30, 30), "orange").save(new)
    loaded = []
    monkeypatch.setattr("sca_caption.images.load", counted(loaded))
    status, _, err = run(folder, "--output", output, "--resume")
    assert (status, err) == (0, f"7 of 7 images captioned in {output}, 7 of them before\n")
    after = json.loads(output.read_text())
    assert after[:7] == before and [(e["image_id"], e["file_name"]) for e in after[7:]] == [(8, str(new))]
    assert loaded == [new.name]
    assert run(folder, "--output", output, "--resume")[0] == 0
    assert json.loads(output.read_text()) == after and loaded == [new.name]


def test_an_image_given_twice_is_done_twice(run, photos, tmp_path):
    output = tmp_path / "out.json"
    assert run(photos[0], photos[1], "--output", output)[0] == 0
    assert run(photos[0], photos[1], photos[0], "--output", output, "--resume")[0] == 0
    assert [e["file_name"] for e in json.loads(output.read_text())] == [str(photos[i]) for i in (0, 1, 0)]


def test_text_files_beside_the_photographs(run, photos):
    texts = [path.with_suffix(".txt") for path in photos]
    status, out, err = run(photos[0].parent, "--txt")
    assert (status, out, err) == (0, "", "7 of 7 images have their captions beside them, as .txt\n")
    printed = run(photos[0].parent)[1].splitlines()
    assert [path.read_bytes().decode() for path in texts] == [line.split("\t")[1] + "\n" for line in printed]

    texts[1].write_text("my own words")
    texts[2].unlink()
    status, out, err = run(photos[0].parent, "--txt")
    assert err == (
        "6 of 7 images have their captions beside them, as .txt\n"
        "1 have other text there, which was kept; --overwrite replaces it\n"
    )
    assert texts[1].read_text() == "my own words" and texts[2].exists()
    assert run(photos[0].parent, "--txt", "--overwrite")[0] == 0
    assert texts[1].read_text() == printed[1].split("\t")[1] + "\n"


def test_a_text_file_that_cannot_be_read_is_kept(run, photos, monkeypatch):
    """The tests' user may read every file, so reading fails in another way."""
    private, read_bytes = photos[1].with_suffix(".txt"), Path.read_bytes
    private.write_text("my own words")

    def reading(path):
        if path == private:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    assert run(photos[0].parent, "--txt")[0] == 0
    assert private.read_text() == "my own words"
    assert run(photos[0].parent, "--txt", "--overwrite")[0] == 0
    assert private.read_text() != "my own words"


def test_what_has_a_text_file_is_done(run, photos, monkeypatch):
    photos[1].with_suffix(".txt").write_text("mine")
    loaded = []
    monkeypatch.setattr("sca_caption.images.load", counted(loaded))
    status, _, err = run(photos[0].parent, "--txt", "--resume", "--num-captions", 2)
    assert (status, err) == (0, "7 of 7 images have their captions beside them, as .txt, 1 of them before\n")
    assert sorted(loaded) == sorted(path.name for path in photos if path != photos[1])
    assert photos[1].with_suffix(".txt").read_text() == "mine"
    assert len(photos[0].with_suffix(".txt").read_text().splitlines()) == 2


def test_text_files_that_are_missing_come_from_the_results(run, photos, tmp_path, monkeypatch):
    output = tmp_path / "x.csv"
    assert run(photos[0].parent, "--output", output, "--txt")[0] == 0
    texts = {path: path.with_suffix(".txt").read_text() for path in photos}
    for path in photos[:3]:
        path.with_suffix(".txt").unlink()
    loaded = []
    monkeypatch.setattr("sca_caption.images.load", counted(loaded))
    status, _, err = run(photos[0].parent, "--output", output, "--txt", "--resume")
    assert status == 0 and not loaded
    assert err.splitlines()[1] == "7 of 7 images have their captions beside them, as .txt, 4 of them before"
    assert {path: path.with_suffix(".txt").read_text() for path in photos} == texts


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--resume"], ["--resume ", "--output"]),
        (["--overwrite"], ["--overwrite "]),
        (["--txt", "--overwrite", "--resume"], ["--overwrite ", "--resume"]),
        (["--txt"], ["{0}", "{1}", "a.txt"]),  # two photographs with one text file
    ],
)
def test_mistakes_are_one_line(run, photos, flags, named):
    twin = photos[0].with_suffix(".png")
    Image.new("RGB", (9, 9)).save(twin)
    found = error_line(*run(photos[0].parent, *flags))
    assert all(part.format(*sorted((twin, photos[0]))) in found for part in named)
    assert not list(photos[0].parent.glob("*.txt"))


def test_a_folder_that_cannot_be_written_to(run, photos, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "more")
    status, out, err = run(photos[0].parent, "--txt")
    assert (status, out) == (2, "")
    folder = photos[0].parent / "more"
    assert err.startswith("error: ") and f"no permission to write in {folder}" in err
    output = folder / "x.json"
    status, out, err = run(photos[0], "--output", output)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: --output {output}: ") and str(folder) in err
