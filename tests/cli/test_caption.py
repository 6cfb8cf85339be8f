"""The program `caption.py`: what it prints, writes and returns, on a tiny captioner and made images."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sca_caption import __version__
from sca_caption.cli import caption, inputs
from sca_caption.config import SearchConfig
from sca_caption.inference.captioning import CaptionPipeline
from tests.helpers.made_photos import error_line
from tests.helpers.odd_folders import lock, odd_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def expected(tiny_checkpoint):
    """expected(paths, **search) -> the captions of each, by `inference`."""

    def expected(paths, **search):
        pipeline = CaptionPipeline.load(tiny_checkpoint, search=SearchConfig(**search))
        return [result.captions for result in pipeline.stream(paths)]

    return expected


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_one_image_prints_its_caption_and_nothing_else(run, expected, photos):
    assert run(photos[1]) == (0, f"{expected(photos[1:2])[0][0].text}\n", "")


def test_several_captions_of_one_image_are_lines_best_first(run, expected, photos):
    """With --no-distinct, the best of the search."""
    lines = [c.text for c in expected(photos[:1], num_captions=3, beam_size=4, distinct=False)[0]]
    assert len(set(lines)) == 3
    assert run(photos[0], "--num-captions", 3, "--beam-size", 4, "--no-distinct") == (
        0,
        "\n".join(lines) + "\n",
        "",
    )


def test_neutral_captions_name_no_gender(run, photos):
    """The tiny captioner mentions men and women in some of its samples."""
    sampled = [*photos, "--sample", "--num-captions", 5, "--top-p", 1]
    plain, neutral = (run(*sampled, *flags)[1].split() for flags in ((), ("--neutral",)))
    assert {"man", "woman"} & {*plain} and not {"man", "woman"} & {*neutral}
    error = error_line(*run(photos[0], "--neutral", "--force-words", "man"))
    assert "--neutral" in error and "man" in error


def test_a_folder_with_links_a_pipe_and_a_closed_folder(run, tmp_path, photos, monkeypatch):
    folder = odd_folder(tmp_path / "odd", photos[0])
    (folder / "broken.jpg").unlink()
    lock(monkeypatch, folder / "shut")
    status, out, err = run(folder)
    found = [str(folder / name) for name in ("a.jpg", "again.jpg", "b/c.jpg", "linked/e.jpg")]
    assert status == 1 and [line.split("\t")[0] for line in out.splitlines()] == found
    assert err.count("\n") == 1 and str(folder / "shut") in err and "Permission denied" in err


def test_an_empty_path_captions_nothing(run, photos, monkeypatch):
    monkeypatch.chdir(photos[0].parent)
    before = sorted(photos[0].parent.iterdir())
    assert "an empty path" in error_line(*run("", "--txt"))
    assert sorted(photos[0].parent.iterdir()) == before


def test_a_photograph_from_a_pipe(run, photos, tmp_path):
    def path():
        reading, writing = os.pipe()
        os.write(writing, photos[1].read_bytes())
        os.close(writing)
        return f"/dev/fd/{reading}"

    expected = run(photos[1])
    assert run(path()) == expected and expected[0] == 0
    assert "save it to a file first" in error_line(*run(path(), "--explain", tmp_path / "why.png"))


def test_a_photograph_in_the_place_of_paths(run, photos, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photos[0].read_bytes())))
    assert "give /dev/stdin" in error_line(*run("-"))


def test_search_flags_reach_the_search(run, expected, photos):
    flags = {"beam_size": 2, "min_length": 3, "max_length": 3, "length_penalty": -1.0, "block_ngrams": 1}
    arguments = [x for name, value in flags.items() for x in ("--" + name.replace("_", "-"), value)]
    assert run(photos[5], *arguments)[1].strip() == expected(photos[5:6], **flags)[0][0].text


def test_several_models_speak_as_one_and_images_may_follow_them(
    run, expected, photos, tiny_checkpoint, capsys
):
    text = expected(photos[1:2])[0][0].text
    assert caption.main(["--checkpoint", str(tiny_checkpoint), str(tiny_checkpoint), str(photos[1])]) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_words_to_mention(run, photos):
    status, out, err = run(*photos[:3], "--no-grammar", "--force-words", "cat/dog", "Water")
    assert (status, err) == (0, "")
    for line in out.splitlines():
        words = line.split("\t")[1].split()
        assert {"cat", "dog"} & set(words) and "water" in words


def test_words_to_mention_that_the_model_does_not_know(run, photos):
    """Alternatives are dropped with a note; a group needs one that is known."""
    known = run(photos[0], "--force-words", "dog")
    status, out, err = run(photos[0], "--force-words", "gruffalo/dog/jabberwock")
    assert (status, out) == (0, known[1])
    assert (
        err.count("\n") == known[2].count("\n") + 1
        and "'gruffalo', 'jabberwock'" in err
        and "dog" not in err.split("\n")[0]
    )
    assert run(photos[0], "--force-words", "gruffalo/dog", "--quiet") == (0, known[1], "")
    error = error_line(*run(photos[0], "--force-words", "dog", "gruffalo/dogg"))
    assert "'gruffalo/dogg'" in error and "nearest: dog" in error


def test_words_that_no_grammatical_caption_has(run, photos, tmp_path):
    """The caption without them, a note, and their names in results files."""
    flags = ("--force-words", "cat", "on", "--max-length", 1)  # a caption of one word has no determiner
    status, out, err = run(*photos[:2], *flags)
    lines = err.splitlines()
    assert status == 0 and len(lines) == 2
    for photo, line, printed in zip(photos, lines, out.splitlines(), strict=False):
        assert line.startswith(f"note: {photo}: ") and "cat, on" in line
        assert not {"cat", "on"} & set(printed.split("\t")[1].split())
    assert run(*photos[:2], *flags, "--quiet") == (0, out, "")
    assert run(*photos[:2], *flags, "--output", tmp_path / "x.json")[0] == 0
    entries = json.loads((tmp_path / "x.json").read_text())
    assert [entry["missing_words"] for entry in entries] == [["cat", "on"]] * 2
    assert run(*photos[:2], *flags, "--output", tmp_path / "x.csv")[0] == 0
    with open(tmp_path / "x.csv", newline="") as file:
        assert [row["missing_words"] for row in csv.DictReader(file)] == ["cat on"] * 2
    before = (tmp_path / "x.csv").read_bytes()
    assert run(*photos[:3], *flags, "--output", tmp_path / "x.csv", "--resume")[0] == 0
    assert (tmp_path / "x.csv").read_bytes().startswith(before) and before.count(b"cat on") == 2
    assert run(*photos[:2], "--output", tmp_path / "y.json")[0] == 0
    assert not any("missing_words" in entry for entry in json.loads((tmp_path / "y.json").read_text()))


def test_images_may_follow_words_to_mention(run, photos, monkeypatch):
    photo = photos[0]
    assert run("--force-words", "cat/dog", "water", photo) == run(photo, "--force-words", "cat/dog", "water")
    monkeypatch.chdir(photo.parent)
    photo.rename("runs")  # a file without an ending; and a folder that is named like a word
    Path("red").mkdir()
    status, out, err = run("--no-grammar", "--force-words", "dog", "red", "runs", "more/")
    assert (status, err) == (0, "")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["runs", "more/f.jpg", "more/g.PNG"]
    assert all({"dog", "red"} <= set(line.split("\t")[1].split()) for line in out.splitlines())


def test_the_doubtful_come_first(run, expected, photos):
    folder = photos[0].parent
    in_order = run(folder, "--scores")[1].splitlines(keepends=True)
    trust = [
        captions[0].mean_log_prob for captions in expected(photos)
    ]  # not as printed: there some are equal
    by_trust = [line for _, line in sorted(zip(trust, in_order, strict=True))]
    assert by_trust != in_order
    assert run(folder, "--scores", "--sort", "confidence") == (0, "".join(by_trust), "")


def test_quiet_tells_errors_only(run, photos, tmp_path):
    missing, output = tmp_path / "no.jpg", tmp_path / "x.csv"
    status, out, err = run(photos[0], missing, "--quiet", "--output", output)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {missing}: no such file") and err.count("\n") == 1
    assert run(photos[0], "--quiet", "--output", output) == (0, "", "")


def test_files_and_folders_print_path_tab_caption_in_order(run, expected, photos):
    paths = [photos[2], *photos]
    lines = [f"{path}\t{captions[0].text}\n" for path, captions in zip(paths, expected(paths), strict=True)]
    assert run(photos[2], photos[0].parent) == (0, "".join(lines), "")
    assert run(photos[0].parent, "--batch-size", 2) == (0, "".join(lines[1:]), "")


def test_a_folder_with_one_image_names_it(run, photos):
    folder = photos[5].parent
    photos[6].unlink()
    assert run(folder)[1].startswith(f"{photos[5]}\t")


@pytest.mark.parametrize("form", ["{0}\n{1}\n", "{0}\r\n\r\n{1}", "{0}\0{1}\0"])
def test_paths_from_standard_input(form, run, photos, monkeypatch):
    text = form.format(photos[3], photos[5].parent)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(text))))
    status, out, err = run("-")
    assert (status, err) == (0, "")
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(photos[i]) for i in (3, 5, 6)]


def test_a_results_file_is_what_coco_reads(run, expected, photos, tmp_path):
    output = tmp_path / "out.json"
    status, out, err = run(photos[0].parent, "--output", output)
    assert (status, out, err) == (0, "", f"7 of 7 images captioned in {output}\n")
    best = [captions[0] for captions in expected(photos)]
    entries = json.loads(output.read_text())
    assert [list(entry) for entry in entries] == [["image_id", "file_name", "caption", "score"]] * 7
    assert [entry["image_id"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7]
    assert [entry["file_name"] for entry in entries] == list(map(str, photos))
    assert [entry["caption"] for entry in entries] == [caption.text for caption in best]
    assert [entry["score"] for entry in entries] == pytest.approx([c.score for c in best], abs=1e-3)
    assert not left_over(tmp_path)


def test_the_same_in_json_lines_and_csv(run, photos, tmp_path):
    for name in ("out.json", "out.jsonl", "out.CSV"):
        assert run(photos[0].parent, "--output", tmp_path / name)[0] == 0
    entries = json.loads((tmp_path / "out.json").read_text())
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == entries
    with open(tmp_path / "out.CSV", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{key: str(value) for key, value in entry.items()} for entry in entries]


def test_several_captions_with_their_probabilities_in_results(run, expected, photos, tmp_path):
    for name in ("out.json", "out.csv"):
        run(*photos[:2], "--num-captions", 2, "--output", tmp_path / name)
    found = expected(photos[:2], num_captions=2)
    for entry, captions in zip(json.loads((tmp_path / "out.json").read_text()), found, strict=True):
        assert entry["caption"] == captions[0].text
        assert [each["caption"] for each in entry["captions"]] == [caption.text for caption in captions]
        log_probs = [each["log_prob"] for each in entry["captions"]]
        assert log_probs == pytest.approx([caption.log_prob for caption in captions], abs=1e-3)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_id"], row["caption"]) for row in rows] == [
        (str(image + 1), caption.text) for image, captions in enumerate(found) for caption in captions
    ]


def test_bad_files_among_good_ones(run, photos, tmp_path):
    torn, text = tmp_path / "torn.png", tmp_path / "text.jpg"
    torn.write_bytes(photos[1].read_bytes()[:60])
    text.write_text("not an image")
    status, out, err = run(photos[0], torn, tmp_path / "missing.jpg", photos[1], text)
    assert status == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(photos[0]), str(photos[1])]
    lines = err.splitlines()
    for line, path in zip(lines, (torn, tmp_path / "missing.jpg", text), strict=True):
        assert line.startswith(f"error: {path}: ")
    assert "no such file" in lines[1]

    output = tmp_path / "out.json"
    status, out, err = run(torn, *photos[:2], "--output", output)
    assert (status, out) == (1, "")
    assert err.endswith(f"\n2 of 3 images captioned in {output}\n")
    assert [entry["image_id"] for entry in json.loads(output.read_text())] == [2, 3], (
        "ids stay those of the input"
    )


def test_only_bad_files(run, tmp_path):
    torn, output = tmp_path / "torn.png", tmp_path / "out.json"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n")
    output.write_text("of an earlier run")
    for arguments in ([torn], [tmp_path / "none.jpg"], [torn, torn], [torn, "--output", output]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == len([a for a in arguments if str(a).endswith(("png", "jpg"))])
        assert err.startswith(f"error: {arguments[0]}: ")
    assert output.read_text() == "of an earlier run"
    assert not left_over(tmp_path)


def test_mistakes_are_one_line(photos, tmp_path, tiny_checkpoint, capsys, monkeypatch):
    """Each names the flag, the value and the valid ones or what to do."""
    photo, empty = str(photos[0]), tmp_path / "empty"
    empty.mkdir()
    for arguments, parts in (
        ([], ("no image",)),
        ([str(empty)], (f"{empty}: ", "without images")),
        ([photo, "--num-captions", "8"], ("--num-captions 8", "--beam-size 7")),
        ([photo, "--beam-size", "two"], ("--beam-size", "'two'")),
        ([photo, "--beams", "2"], ("--beams 2", "--help")),
        ([photo, "--batch-size", "0"], ("--batch-size 0", "at least 1")),
        ([photo, "--device", "abacus"], ("'abacus'",)),
        ([photo, "--output", f"{empty}/x.txt"], (f"--output {empty}/x.txt", "'.txt'", ".jsonl")),
        ([photo, "--output", f"{empty}/no/x.csv"], (f"--output {empty}/no/x.csv", f"no folder {empty}/no")),
        ([photo, "--demo"], ("--demo", f"'{photo}'")),
        (["-"], ("standard input",)),
        ([photo, "--force-words", "dogs"], ("--force-words 'dogs'", "nearest: dog")),
        ([photo, "--force-words", *"abcd"], ("--force-words", "3", "4", "dog/puppy")),
        ([photo, "--min-length", "21"], ("--min-length 21", "--max-length 20")),
        ([photo, "--checkpoint", photo], (photo, "not a checkpoint")),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        status = caption.main([f"--checkpoint={tiny_checkpoint}", *arguments])
        found = error_line(status, *capsys.readouterr())
        assert not [part for part in parts if part not in found], found
    assert list(empty.iterdir()) == []


def test_flags_without_effect_on_sampling_are_one_line(run, photos):
    for flags in (
        ("--beam-size", 3),
        ("--rerank-weight", 1),
        ("--consensus", 1),
        ("--diverse-groups", 2),
        ("--diversity", 1),
    ):
        status, out, err = run(photos[0], "--sample", *flags)
        assert (status, out, err.count("\n")) == (2, "", 1), flags
        flag = "--rerank-weight" if "--consensus" in flags else flags[0]
        assert flag in err and "--sample" in err, err
    status, _, err = run(photos[0], "--temperature", 0.5)
    assert status == 2 and "--temperature" in err and "--sample" in err
    assert (
        run(photos[0], "--sample", "--num-captions", 9)[1].count("\n") == 9
    )  # more than the default beam size


def test_spellings_of_earlier_versions(run, photos):
    folder = photos[0].parent
    for earlier, current in (
        (("--mention", "dog"), ("--force-words", "dog")),
        (("--scores", "--doubtful-first"), ("--scores", "--sort", "confidence")),
        (("--no-objects",), ("--no-guidance",)),
        (("--consensus", 0, "--no-sound-endings"), ("--rerank-weight", 0, "--no-remove-bad-endings")),
    ):
        assert run(folder, *earlier) == run(folder, *current)
        assert earlier[0] not in caption.parser().format_all_help() or earlier[0] == "--scores"
    assert run(photos[0], "--sidecar")[0] == 0 and photos[0].with_suffix(".txt").is_file()
    output = folder / "out.json"
    assert run(photos[1], "--with-attention", "--output", output)[0] == 0
    assert "attention" in json.loads(output.read_text())[0]


def test_odd_file_names_stay_on_one_line(run, photos, tmp_path):
    names = [
        b"tab\there.png",
        b"new\nline\r.png",
        b"esc\x1b[31m.png",
        b"latin-\xe9.png",
        "caf\u00e9 \u732b.png".encode(),
    ]
    paths = [Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) for name in names]
    for path in paths:
        Image.new("RGB", (9, 9)).save(path)
    status, out, err = run(*paths, tmp_path / "no\nsuch.jpg")
    assert status == 1
    assert [line.split("\t")[0].rpartition("/")[2] for line in out.split("\n")[:-1]] == [
        "tab\\there.png",
        "new\\nline\\r.png",
        "esc\\x1b[31m.png",
        "latin-\\udce9.png",
        "caf\u00e9 \u732b.png",
    ]
    assert err.startswith(f"error: {tmp_path}/no\\nsuch.jpg: ")
    assert err.count("\n") == 1
    assert run(*paths, "--output", tmp_path / "out.json")[0] == 0
    entries = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [entry["file_name"] for entry in entries] == list(map(str, paths)), (
        "bytes that are no UTF-8 survive"
    )


def test_the_demo_captions_its_photographs_in_order_and_says_how_to_go_on(run):
    status, out, err = run("--demo")
    assert (status, err) == (0, "")
    *captions, blank, last = out.splitlines()
    assert blank == ""
    assert last.startswith("To caption your own: ")
    names, texts = zip(*(line.split("\t") for line in captions), strict=True)
    assert list(names) == sorted(path.name for path in inputs.DEMO.glob("*.jpg"))
    assert all(texts)


def test_the_demo_has_small_jpegs_with_their_licences():
    files = sorted(path.name for path in inputs.DEMO.iterdir())
    assert files[0] == "README.md"
    assert len(files) > 5
    for name in files[1:]:
        assert (inputs.DEMO / name).stat().st_size <= 40_000
        with Image.open(inputs.DEMO / name) as image:
            assert image.format == "JPEG"
            image.load()
    rows = [line.split("|") for line in (inputs.DEMO / "README.md").read_text().splitlines() if "| `" in line]
    assert [row[1].strip(" `") for row in rows] == files[1:]
    for row in rows:
        assert row[5].strip().startswith(("public domain", "CC0 1.0"))


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        caption.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.split()[-1] == __version__


def python(*arguments, stdout=subprocess.PIPE):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_is_instant_and_short(monkeypatch):
    code = (
        "import sys; from sca_caption.cli.caption import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted(sys.modules))"
    )
    monkeypatch.setenv("COLUMNS", "100")
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    page, _, modules = done.stdout.rpartition("\n[")
    assert not {"'torch'", "'numpy'", "'PIL'", "'matplotlib'"} & set(modules.strip("]\n").split(", "))
    assert len(page.splitlines()) < 100, "two pages"


@pytest.mark.slow
def test_the_program_as_users_start_it(tiny_checkpoint, photos, expected):
    """In its own process: only the caption on stdout, and nothing imported that captioning does not need."""
    code = (
        "import sys, runpy\n"
        "try: runpy.run_path('caption.py', run_name='__main__')\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = python("-c", code, str(photos[0]), "--checkpoint", str(tiny_checkpoint))
    assert (done.returncode, done.stdout) == (0, f"{expected(photos[:1])[0][0].text}\n")
    needless = {"spacy", "nltk", "pycocoevalcap", "matplotlib", "h5py", "tensorboard", "skimage", "sklearn"}
    assert not needless & set(done.stderr.split())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_on_a_full_disk(tiny_checkpoint, photos):
    with open("/dev/full", "w") as full:
        done = python("caption.py", str(photos[0]), "--checkpoint", str(tiny_checkpoint), stdout=full)
    message = "error: cannot write to standard output (No space left on device); free space\n"
    assert (done.returncode, done.stderr) == (2, message)
