"""The program that makes data files, as its users run it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sca_caption.checkpoint import load
from sca_caption.cli.preprocess import main, parser
from sca_caption.config import ModelConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.images import Transform, fit
from sca_caption.models.sca_cnn import SCACNN
from tests.helpers.made_photos import encoded, error_line, photo

ROW = "{},A dog runs on the grass .,{}\n{},the dog's ball,{}\n"


@pytest.fixture
def photographs(tmp_path, monkeypatch) -> Path:
    """data/csv with a table of twelve photographs in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "csv"
    (folder / "images").mkdir(parents=True)
    table = "image,caption,split\n"
    for number in range(12):
        name, split = f"{number:02} é.png", ("train", "train", "val", "test")[number % 4]
        (folder / "images" / name).write_bytes(encoded(photo(number)))
        table += ROW.format(name, split, name, split)
    (folder / "captions.csv").write_text(table, encoding="utf-8")
    return folder


def files(folder: Path) -> list[str]:
    """All but the photographs."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.parent.name != "images"
    )


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the program; two workers would only slow these tests down."""
    status = main([*arguments, "--workers", "1"])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_defaults_find_the_data_and_name_the_output(photographs, capsys):
    status, out, err = run(capsys, "--dataset", "csv")
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"""data/csv\.h5: 0\.\d MB in \d+ s
source      csv: captions\.csv with its own splits
images      12: train 6, val 3, test 3; 224x224 resize, jpeg
captions    24: train 12, val 6, test 6; the longest has 6 words
vocabulary  8 words with at least 5 occurrences in train; covered: train 100\.00%, val 100\.00%, test 100\.00%
skipped     0 images
""",
        out,
    )
    data = CaptionDataset("data/csv.h5")
    assert data.vocabulary.words[4:] == ("dog", "the", "'s", "a", "ball", "grass", "on", "runs")
    assert data.references(0) == ["A dog runs on the grass .", "the dog's ball"]
    assert [data.file_name(i) for i in data.indices("val")] == ["02 é.png", "06 é.png", "10 é.png"]


def test_a_vocabulary_that_covers_little_is_said(photographs, capsys):
    """Of the ten words of an image's captions, "dog" and "the" come twice in each image, so twelve times in train."""
    status, out, err = run(capsys, "--dataset", "csv", "--min-count", "7")
    assert status == 0 and "covered: train 40.00%" in out
    assert err.startswith("warning: ") and "2 words covers 40%" in err and err.endswith("lower --min-count\n")


def test_flags_reach_the_file(photographs, capsys):
    flags = (
        "--image-size 32 --resize-mode crop --encoding raw --min-count 6 --output new/x.h5 --root data/csv"
    )
    assert run(capsys, "--dataset", "csv", *flags.split())[0] == 0
    data = CaptionDataset("new/x.h5")
    assert (data.transform, data.encoding, data.min_count) == (Transform(32, "crop"), "raw", 6)
    assert np.array_equal(data.image(7), fit(photo(7), Transform(32, "crop")))


def test_bad_photographs_are_listed_and_counted_up_to_the_limit(photographs, capsys):
    images = photographs / "images"
    (images / "00 é.png").write_bytes(b"")
    (images / "01 é.png").write_bytes(encoded(photo(1), "JPEG")[:300])
    (images / "02 é.png").unlink()
    (images / "03 é.png").unlink()
    (images / "03 é.png").mkdir()
    Image.new("L", (9, 9)).save(images / "04 é.png", "JPEG")  # of another kind than its name says: fine
    with open(photographs / "captions.csv", "a", encoding="utf-8") as table:
        table.write("05 é.png,,train\n")
    status, out, err = run(capsys, "--dataset", "csv", "--min-count", "1")
    assert status == 0
    told = err.splitlines()
    assert told[0] == "skipped: 00 é.png: empty file (0 bytes); get the file again"
    assert told[1].startswith("skipped: 01 é.png: damaged image (")
    assert told[2].startswith("skipped: 02 é.png: ")
    assert told[3].startswith("skipped: 03 é.png: ")
    assert told[4] == "note: 05 é.png: empty caption; skipped"
    assert len(told) == 5
    assert "images      8: train 4, val 2, test 2" in out
    assert "skipped     4 images: 2 damaged; 2 missing" in out
    assert "notes       1 on the captions: 1 empty caption; skipped" in out
    before = Path("data/csv.h5").read_bytes()

    status, out, err = run(capsys, "--dataset", "csv", "--max-skipped", "3")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(
        "error: more than 3 images are missing or damaged, the last is 03 é.png ("
    )
    assert Path("data/csv.h5").read_bytes() == before
    assert files(photographs.parent) == ["csv.h5", "csv/captions.csv"]


def test_a_long_list_is_cut_and_says_where_it_is_whole(photographs, capsys):
    with open(photographs / "captions.csv", "a", encoding="utf-8") as table:
        for number in range(30):
            table.write(f"gone {number}.jpg,a dog,train\n")
    status, out, err = run(capsys, "--dataset", "csv")
    assert status == 0
    assert len(err.splitlines()) == 21
    assert "'skipped' of data/csv.h5" in err.splitlines()[-1]
    assert "skipped     30 images: 30 missing" in out
    assert len(CaptionDataset("data/csv.h5").skipped) == 30


def test_mistakes_exit_2_with_one_line(photographs, capsys):
    """Each names the flag, the value and the valid ones or what to do."""
    for flags, parts in (
        ("--dataset flickr9k", ("'flickr9k'", "coco, csv, flickr30k, flickr8k, shapes")),
        ("--root .", ("--dataset", "preprocess.py --help")),
        ("--dataset csv --resize-mode zoom", ("--resize-mode", "'zoom'")),
        ("--dataset csv --workers two", ("--workers", "'two'")),
        ("--dataset csv --sizes 3", ("--sizes 3",)),
        ("--dataset csv --image-size 0", ("--image-size 0", "at least 1")),
        ("--dataset csv --image-size 9999", ("9999", "1 to 4096")),
        ("--dataset csv --min-count 0", ("--min-count 0", "at least 1")),
        ("--dataset csv --max-skipped -1", ("--max-skipped -1", "0")),
        ("--dataset csv --workers 0", ("--workers 0", "at least 1")),
        ("--dataset csv --quality 0", ("--quality 0", "1 to 95")),
        ("--dataset csv --min-count-texts 9", ("--min-count-texts", "without --texts", "add --texts")),
        ("--dataset csv --held-out x.h5", ("--held-out", "without --texts", "add --texts")),
        ("--dataset csv --texts captions.csv", ("--texts captions.csv does not exist", "column caption")),
        (
            "--dataset csv --texts data/csv/captions.csv",
            ("no caption", "is kept (12 of train", "12 of held-out"),
        ),
        (
            "--dataset csv --texts data/csv/captions.csv --min-count-texts 0",
            ("--min-count-texts 0", "at least 1"),
        ),
        ("--dataset csv --texts data/csv/captions.csv --held-out x.h5", ("no data file x.h5",)),
        ("--dataset csv --ids everyday", ("--ids", "--dataset csv", "--dataset coco")),
        ("--dataset coco --ids everyday --restval omit", ("--restval", "--ids")),
        ("--dataset coco --ids mine.csv", ("--ids mine.csv does not exist", "id and split")),
        ("--dataset coco --ids everyday", ("none of the 4694 ids of everyday", "cocodataset.org")),
        ("--dataset csv --year 2014", ("--year", "--dataset csv", "--dataset coco")),
        (
            "--dataset csv --backbone-weights none",
            ("--backbone-weights", "--encoding jpeg", "--encoding features"),
        ),
        ("--dataset csv --encoding raw --quality 50", ("--quality", "--encoding raw", "--encoding jpeg")),
        ("--dataset csv --min-count 99", ("99", "train", "--min-count")),
        ("--dataset csv --output data", ("--output data", "folder", "data/data.h5")),
        ("--dataset csv --encoding features --device tpu9", ("'tpu9'",)),
        ("--dataset csv --encoding features --layers 9", ("--layers 9", "mobilenet_v2", "1 to 3")),
    ):
        status = main(flags.split())
        found = error_line(status, *capsys.readouterr())
        assert not [part for part in parts if part not in found], found
    assert files(photographs.parent) == ["csv/captions.csv"]


def test_texts_extend_the_vocabulary_without_the_photographs_of_val_and_test(photographs, capsys):
    rows = "".join(f"{name},cats sleep\n" for name in ("02 é.png", "04 É.png", "00000.png", "new.png"))
    Path("a.csv").write_text("file,caption\n" + rows + "new.png,a cat\n", encoding="utf-8")
    Path("b.csv").write_text("caption\ncats jump\n")
    flags = ["--dataset", "csv", "--texts", "a.csv", "b.csv", "--min-count-texts", "3"]
    status, out, err = run(capsys, *flags)
    assert (status, err) == (0, "")
    told = "texts       4 captions in 3 groups kept; 2 left out: 1 of held-out photographs; 1 of train photographs"
    assert told in out.splitlines()
    data = CaptionDataset("data/csv.h5")
    assert data.vocabulary.words[4:] == ("dog", "the", "a", "'s", "ball", "grass", "on", "runs", "cats")
    decoded = [list(map(data.vocabulary.decode, data.text_captions(group))) for group in range(3)]
    assert decoded == [["cats <unk>"], ["cats <unk>", "a <unk>"], ["cats <unk>"]]

    table = (
        "image,caption,split\n" + "".join(f"0{k} é.png,a dog,train\n" for k in (0, 1)) + "new.png,a dog,val\n"
    )
    (photographs / "images" / "new.png").write_bytes(encoded(photo(1)))
    (photographs / "other.csv").write_text(table, encoding="utf-8")
    other = ["--dataset", "csv", "--root", "data/csv/other.csv", "--min-count", "1", "--output", "other.h5"]
    assert run(capsys, *other)[0] == 0
    status, out, err = run(capsys, *flags, "--held-out", "other.h5")
    assert "texts       2 captions in 2 groups kept; 4 left out: 3 of held-out photographs; 1 of train" in out


def test_a_root_without_the_data_says_what_was_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for dataset, wanted in {
        "flickr8k": "Flickr8k.token.txt",
        "coco": "dataset_coco.json",
        "csv": "captions.csv",
    }.items():
        assert main(["--dataset", dataset]) == 2
        assert wanted in capsys.readouterr().err
    assert main(["--dataset", "csv", "--root", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_shapes_need_no_data_and_are_drawn_by_their_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", "shapes", "--count", "20", "--image-size", "48", "--min-count", "1"]
    assert run(capsys, *flags)[0] == 0
    data = CaptionDataset("data/shapes.h5")
    assert [len(data.indices(split)) for split in ("train", "val", "test")] == [16, 2, 2]
    assert run(capsys, *flags, "--seed", "1", "--output", "data/other.h5")[0] == 0
    assert not np.array_equal(data.image(0), CaptionDataset("data/other.h5").image(0))


def test_features_are_those_of_the_captioner_s_trunk(photographs, capsys):
    flags = "--image-size 64 --encoding features --backbone resnet18 --layers layer3.0 layer4 --device cpu"
    assert run(capsys, "--dataset", "csv", *flags.split(), "--backbone-weights", "none")[0] == 0
    data = CaptionDataset("data/csv.h5")
    assert data.features_of == {"backbone": "resnet18", "layers": ["layer3.0", "layer4"], "weights": "none"}
    torch.manual_seed(0)
    model = SCACNN(ModelConfig(backbone="resnet18", layers=("layer3.0", "layer4")), 4).eval()
    images = torch.from_numpy(np.stack([fit(photo(i), Transform(64)) for i in range(12)])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = model.encode(images)
    found = [
        torch.from_numpy(np.stack(column)) for column in zip(*map(data.features, range(12)), strict=True)
    ]
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2e-3, atol=2e-3)


def test_help_fits_on_two_pages_and_has_no_flag_without_words():
    text = parser().format_help()
    assert len(text.splitlines()) < 90
    shared = {"--help", "--version", "--completion", "--quiet"}
    actions = [action for action in parser()._actions if shared.isdisjoint(action.option_strings)]
    assert len(actions) <= 24
    for action in actions:
        assert action.help
        assert action.required or "default:" in action.help, action.dest


@pytest.fixture
def busy(tmp_path):
    """A run in its own process that has begun to write: (process, its folder)."""
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # nohup ignores it
    program += "from sca_caption.cli.preprocess import main; raise SystemExit(main())"
    flags = ["--dataset", "shapes", "--count", "4000", "--output", str(tmp_path / "x.h5"), "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-c", program, *flags], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: list(tmp_path.glob(".x.h5.*.partial")))
        yield process, tmp_path
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_until(holds, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


@pytest.mark.parametrize("delay", [0, 0.02, 0.5])  # in seconds: while its workers start, and while they work
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(busy, number, delay):
    process, folder = busy
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    expected = (130, "interrupted\n") if number == signal.SIGINT else (143, "terminated\n")
    assert (process.returncode, err) == expected
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_killed_run_takes_its_workers_along_and_the_next_one_cleans_up(busy, capsys):
    process, folder = busy
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2)
    workers = children.read_text().split()
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(worker) for worker in workers))
    assert [path.suffix for path in folder.iterdir()] == [".partial"]
    flags = ["--dataset", "shapes", "--count", "10", "--image-size", "32", "--output", str(folder / "x.h5")]
    assert run(capsys, *flags)[0] == 0
    assert [path.name for path in folder.iterdir()] == ["x.h5"]


def alive(process: str) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_the_top_level_script_and_the_module_are_one_program():
    script = Path(__file__).parents[2] / "preprocess.py"
    shown = subprocess.run(
        [sys.executable, script, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    assert "--resize-mode {resize,crop}" in shown.stdout


def test_the_words_of_another_file_keep_their_ids(photographs, tmp_path, tiny_checkpoint, capsys):
    assert run(capsys, "--dataset", "csv", "--min-count", "6")[0] == 0
    other = CaptionDataset("data/csv.h5")
    (tmp_path / "mine.csv").write_text(
        "image,caption,split\n00 é.png,a ball runs,train\n04 é.png,the dog,val\n"
    )
    arguments = ["--dataset", "csv", "--root", str(tmp_path / "mine.csv"), "--output", "mine.h5"]
    for vocabulary, wanted in (
        ("data/csv.h5", other.vocabulary),
        (tiny_checkpoint, load(tiny_checkpoint).vocabulary),
    ):
        status, out, _ = run(capsys, *arguments, "--vocabulary", str(vocabulary))
        assert status == 0
        assert f"vocabulary  {len(wanted) - 4} words of another file; covered: train" in out
        data = CaptionDataset("mine.h5")
        assert data.vocabulary == wanted
        assert [data.vocabulary.decode(data.captions(0)[0])] == [
            wanted.decode(wanted.encode(["a", "ball", "runs"]))
        ]
