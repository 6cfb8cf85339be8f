"""Results files: what is written, what stays of an earlier run, what is refused."""

import errno
import io
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sca_caption.evaluation.coco_format import read_predictions
from sca_caption.inference import captioning as inference
from sca_caption.inference import journal
from sca_caption.inference.captioning import Caption, CaptionPipeline, Result
from sca_caption.inference.journal import Journal, journal_of
from sca_caption.inference.results_file import (
    check_results_file,
    finished,
    format_of,
    image_ids,
    results_file,
)
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import message

SETTINGS = {"checkpoint": ["abc"], "num_captions": 1}


def result(name: str, *texts: str, score: float = -1.0) -> Result:
    return Result(Path(name), tuple(Caption(text, 2 * score, score, True, score) for text in texts))


def write(path: Path, results: dict[int, Result], paths=None, **options) -> None:
    """results: by their positions among `paths`."""
    ids = image_ids(paths or [r.item for r in results.values()])
    of_kind = {"numbers": ("score",), "settings": SETTINGS, "words": Vocabulary([])}
    with results_file(path, ids, **{**of_kind, **options}) as file:
        for index, each in results.items():
            file.write(index, each)


def rows(path: Path) -> list[tuple[int, str, str]]:
    return [(e["image_id"], e["file_name"], e["caption"]) for e in json.loads(path.read_text())]


def test_image_ids():
    assert image_ids([Path("x/000000000139.jpg"), Path("COCO_val2014_000000000042.jpg")]) == [139, 42]
    assert image_ids([Path("7.jpg"), Path("cat.jpg")]) == [1, 2]
    assert image_ids([Path("a/7.jpg"), Path("b/7.png")]) == [1, 2]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_new_images_follow_what_is_there_with_numbers_of_their_own(kind, tmp_path):
    name = os.fsdecode(b'latin-\xe9 "quoted", \\n.jpg')
    old = {0: result("b.jpg", "a dog"), 1: result(name, "the cat"), 2: result("gone.jpg", "it")}
    path, whole = tmp_path / f"x.{kind}", tmp_path / f"whole.{kind}"
    write(path, old)
    before = path.read_text()
    write(path, {0: result("a.jpg", "two"), 3: result("c.jpg", "on")}, [*map(Path, ["a.jpg", "b.jpg", name, "c.jpg"])],
          resume=True)  # fmt: skip
    assert path.read_text().startswith(before.rstrip("]\n"))
    # a.jpg is first now, but 1 is b.jpg's number; c.jpg keeps its place, 4
    write(whole, old | {3: result("a.jpg", "two"), 4: result("c.jpg", "on")})
    assert path.read_text() == whole.read_text().replace("\n5,", "\n4,").replace(
        '"image_id": 4', '"image_id": 5'
    ).replace('"image_id": 5, "file_name": "c', '"image_id": 4, "file_name": "c').replace("\n4,a", "\n5,a")
    assert not journal_of(path).exists()


def test_numbers_that_are_names_stay_names(tmp_path):
    path = tmp_path / "x.json"
    write(path, {0: result("7.jpg", "a")})
    write(path, {0: result("5.jpg", "b")}, [Path("5.jpg"), Path("7.jpg")], resume=True)
    assert rows(path) == [(7, "7.jpg", "a"), (5, "5.jpg", "b")]


def test_several_captions_survive_the_way_through_a_table(tmp_path):
    several = SETTINGS | {"num_captions": 2}
    first, second = result("a.jpg", "one", "two"), result("b.jpg", "three", "four")
    for name, resume in (("x.csv", True), ("whole.csv", False)):
        if resume:
            write(tmp_path / name, {0: first}, settings=several)
            write(tmp_path / name, {1: second}, [Path("a.jpg"), Path("b.jpg")], settings=several, resume=True)
        else:
            write(tmp_path / name, {0: first, 1: second}, settings=several)
    assert (tmp_path / "x.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 5


# Names may have any bytes but zeros and slashes, captions any text of UTF-8.
FILE_NAMES = st.binary(min_size=1, max_size=12).map(lambda name: os.fsdecode(re.sub(rb"[/\0]", b"_", name)))
CAPTIONS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
@given(
    st.dictionaries(FILE_NAMES.map(Path), st.lists(CAPTIONS, min_size=2, max_size=2), max_size=4),
    st.booleans(),
)
def test_any_names_and_captions_come_back(kind, tmp_path, captions, several):
    path = tmp_path / f"x.{kind}"
    path.unlink(missing_ok=True)
    results = [result(name, *(texts if several else texts[:1])) for name, texts in captions.items()]
    settings = SETTINGS | {"num_captions": 1 + several}
    write(path, dict(enumerate(results)), settings=settings)
    if not results:
        assert not path.exists()
        return
    format = format_of(path)(path, ("score",), settings, Vocabulary([]))
    found = [(e["file_name"], [c["caption"] for c in e.get("captions", [e])]) for e in finished(format)]
    wanted = [(str(each.item), [caption.text for caption in each.captions]) for each in results]
    assert found == wanted
    if all(texts[0].strip() for texts in captions.values()):
        read = [(each["file_name"], each["caption"]) for each in read_predictions(path)]
        assert read == [(name, texts[0]) for name, texts in wanted]


def test_the_least_trusted_first(tmp_path):
    made = {i: result(f"{i}.jpg", str(i), score=score) for i, score in enumerate((-2.0, -1.0, -5.0, -3.0))}
    write(tmp_path / "x.json", made, least_confident_first=True)
    assert [row[2] for row in rows(tmp_path / "x.json")] == ["2", "3", "0", "1"]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_results_of_another_model_are_not_mixed_in(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    write(path, {0: result("a.jpg", "dog")})
    before = path.read_text()
    with pytest.raises(UserError, match=r"x\.\w+.* another model"):
        write(path, {}, [Path("a.jpg")], numbers=("score", "confidence"), resume=True)
    with pytest.raises(UserError, match=r"--num-captions 1.* 3"):
        write(path, {}, [Path("a.jpg")], settings=SETTINGS | {"num_captions": 3}, resume=True)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1}', "[1, 2]", '[{"file_name": "a"}]', "a,b\n1,2\n", "image_id\n\xff"]
)
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_files_of_others_are_not_taken_for_results(kind, text, tmp_path):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(text.encode("latin-1"))
    if text == "" and kind != "json":
        write(path, {}, [Path("a.jpg")], resume=True)  # nothing to lose
    else:
        with pytest.raises(UserError, match=r"--resume: .*/x\.\w+ .*caption\.py"):
            write(path, {}, [Path("a.jpg")], resume=True)
    assert path.read_bytes() == text.encode("latin-1") and list(tmp_path.iterdir()) == [path]


def test_a_journal_gives_back_whole_entries_and_drops_a_torn_one(tmp_path):
    path = tmp_path / "x.json.partial"
    entries = [{"image_id": i, "file_name": f"{i} \udce9 \u732b", "caption": "a\nb"} for i in range(20)]
    opened = Journal.begin(path, SETTINGS)
    for entry in entries:
        opened.append(entry)
    assert list(opened.entries()) == entries, "readable while it is open"
    opened.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(ends[17], len(whole)):
        path.write_bytes(whole[:length])
        opened = Journal.reopen(path, SETTINGS)
        kept = sum(end <= length for end in ends) - 1
        assert len(opened) == kept and opened.ids == set(range(kept))
        opened.append(entries[kept])
        assert list(opened.entries()) == entries[: kept + 1]
        opened.close()


def test_a_run_that_goes_on_is_not_called_interrupted(tmp_path):
    path = tmp_path / "x.json"
    going_on = Journal.begin(journal_of(path), SETTINGS)
    message(lambda: check_results_file(path), "another run is writing")
    going_on.close()
    message(lambda: check_results_file(path), "interrupted", "--resume")


def test_a_journal_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "x.json.partial"
    Journal.begin(path, SETTINGS | {"force_words": ["dog"]}).close()
    for settings, text in (
        ({"checkpoint": ["abd"]}, ".* another model.* delete"),
        ({"force_words": []}, ".*dog.* none"),
        ({"force_words": ["dog"], "beam_size": 3}, ".*--beam-size none.* 3"),
    ):
        with pytest.raises(UserError, match=f"^--resume: {path} {text}"):
            Journal.reopen(path, SETTINGS | {"force_words": ["dog"]} | settings)
    for text in (b"", b"torn", b"[]\n", b'{"caption": 1}\n'):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"interrupted.* delete it"):
            Journal.reopen(path, SETTINGS)
        assert path.read_bytes() == text


def test_a_journal_of_an_earlier_version_is_continued(tmp_path):
    path = tmp_path / "x.json.partial"
    earlier = {"consensus": 5.5, "sound_endings": True, "mention": ["dog"], "with_attention": True}
    current = {
        "rerank_weight": 5.5,
        "remove_bad_endings": True,
        "force_words": ["dog"],
        "save_attention": True,
    }
    path.write_text(json.dumps({"settings": SETTINGS | earlier}) + "\n")
    Journal.reopen(path, SETTINGS | current).close()


def test_captions_that_another_program_destroyed_are_missed(tmp_path):
    path = tmp_path / "x.json"
    with (
        pytest.raises(UserError, match=r"1 of 2 captions.* delete it"),
        results_file(path, [1, 2], numbers=("score",), settings=SETTINGS, words=Vocabulary([])) as file,
    ):
        for index, name in enumerate(("a.jpg", "b.jpg")):
            file.write(index, result(name, "a dog"))
        whole = journal_of(path).read_bytes()
        journal_of(path).write_bytes(whole[:-5])
    assert not path.exists() and journal_of(path).exists()


def test_two_runs_do_not_write_one_journal(tmp_path):
    path = tmp_path / "x.json.partial"
    first = Journal.begin(path, SETTINGS)
    with pytest.raises(UserError, match=f"^another run .*{path}; wait "):
        Journal.reopen(path, SETTINGS)
    first.close()
    Journal.reopen(path, SETTINGS).close()


def test_an_interrupted_run_leaves_results_as_they_were_and_can_go_on(run, photos, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    output.write_text("of an earlier run")
    stream = CaptionPipeline.stream

    def interrupted(self, items, **options):
        yield next(stream(self, items, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(inference.CaptionPipeline, "stream", interrupted)
        status, out, err = run(*photos, "--output", output)
    assert (status, out) == (130, "")
    assert re.fullmatch(r"1 images? .*--resume.*\ninterrupted\n", err)
    assert output.read_text() == "of an earlier run"

    status, out, err = run(*photos, "--output", output)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: --output {output}: ") and "interrupted" in err and "--resume" in err
    status, out, err = run(*photos, "--output", output, "--resume", "--beam-size", 2)
    assert (status, out) == (2, "")
    assert "--beam-size 7" in err and " 2; " in err and "delete it" in err and err.count("\n") == 1
    assert output.read_text() == "of an earlier run"

    status, out, err = run(*photos, "--output", output, "--resume")
    assert (status, out, err) == (0, "", f"7 of 7 images captioned in {output}, 1 of them before\n")
    assert run(*photos, "--output", tmp_path / "whole.csv")[0] == 0
    assert output.read_text() == (tmp_path / "whole.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "photos", "whole.csv"]


def test_a_full_disk(tmp_path, run, photos, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "open", lambda path, *_, **__: path.touch() or Full(), raising=False)
    for name in ("out.json", "out.csv"):
        status, out, err = run(photos[0], "--output", tmp_path / name)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: cannot write {tmp_path / name}.partial (No space left on device); ")
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_disk_that_gets_full_keeps_what_is_done(tmp_path, run, photos, monkeypatch):
    append, left = Journal.append, [3]

    def full(self, entry):
        if not left[0]:
            self.file = open("/dev/full", "wb")  # noqa: SIM115
        left[0] -= 1
        append(self, entry)

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    output = tmp_path / "out.json"
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", full)
        status, out, err = run(*photos, "--output", output)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: cannot write {output}.partial (No space left on device); ")
    assert "--resume" in err and err.count("\n") == 1
    assert run(*photos, "--output", output, "--resume")[2].endswith("3 of them before\n")
    assert len(rows(output)) == 7 and not journal_of(output).exists()
