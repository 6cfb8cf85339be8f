"""What actors write, without a cluster: rows with captions or errors, in files of both formats."""

import json
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray comes with the extra ray")

import fsspec
import numpy as np
import pyarrow.parquet as pq
import torch

from sca_caption.checkpoint import fingerprint
from sca_caption.config import SearchConfig
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.ray_data import Job, ResultFolder, ShardCaptioner, cause_of
from sca_caption.inference.shards import Shard, shards_of_names
from sca_caption.runtime.errors import UserError

OPTIONS = {"device": "cpu", "batch_size": 2, "search": SearchConfig(max_length=5)}


def rows_of(output: ResultFolder) -> list[dict]:
    store, folder = fsspec.url_to_fs(output.url)
    rows = []
    for path in store.glob(f"{folder}/part-*"):
        with store.open(path, "rb") as file:
            rows += map(json.loads, file) if output.format == "jsonl" else pq.read_table(file).to_pylist()
    return rows


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("url", ["", "memory://ray_data"])
def test_parts_hold_a_caption_or_an_error_per_photograph(url, format, photos, tiny_checkpoint, tmp_path):
    bad, odd = tmp_path / "photos" / "bad.jpg", tmp_path / "photos" / "caf\udce9.jpg"
    bad.write_text("no picture")
    odd.write_bytes(photos[0].read_bytes())
    names = [*map(str, photos), str(bad), str(odd)]
    output = ResultFolder(f"{url or tmp_path / 'out'}/{format}", format)
    assert output.parts({"beam_size": 3}) == []
    output.begin({"beam_size": 3})
    assert output.parts({"beam_size": 3}) == []
    job = Job(tiny_checkpoint, fingerprint(tiny_checkpoint), OPTIONS, 1, output)
    batch = {"item": np.array([shard.to_json() for shard in shards_of_names(names, 4)])}
    for _ in range(2):  # captioned again, a shard replaces its part
        counts = ShardCaptioner(job)(batch)
        assert counts == {"captioned": [4, 3, 1], "failed": [0, 1, 0]} and torch.get_num_threads() == 1

    rows = {row["file_name"]: row for row in rows_of(output)}
    shown = [*map(str, photos), str(bad), str(odd).replace("\udce9", "\\xe9")]
    assert sorted(rows) == sorted(shown) and len(rows_of(output)) == len(shown)
    pipeline = CaptionPipeline.load(tiny_checkpoint, **OPTIONS)
    for result in pipeline.stream(photos):
        best = result.captions[0]
        expected = {"caption": best.text, "score": round(best.score, 4), "confidence": None, "error": None}
        assert rows[str(result.item)] == {"file_name": str(result.item), **expected}
    assert rows[str(bad)]["caption"] is None and "not an image" in rows[str(bad)]["error"]
    parts = output.parts({"beam_size": 3})
    assert sorted(name for part in parts for name in output.names(part)) == sorted(shown)
    assert [Path(part).stem for part in parts] == sorted(shard.stem for shard in shards_of_names(names, 4))


def test_other_settings_other_files_and_damage_are_refused(tmp_path):
    output = ResultFolder(str(tmp_path / "out"))
    output.begin({"beam_size": 3, "checkpoint": ["a"]})
    for settings, found in [
        ({"beam_size": 5, "checkpoint": ["a"]}, "--beam-size 3"),
        ({"beam_size": 3}, "model"),
    ]:
        with pytest.raises(UserError, match=found):
            output.parts(settings)
    (tmp_path / "out" / "run.json").write_text("{")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for name in ("out", "mine", "mine/notes.txt"):
        with pytest.raises(UserError, match="--output") as raised:
            ResultFolder(str(tmp_path / name)).parts({})
        assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_actors_refuse_another_checkpoint(tiny_checkpoint, tmp_path):
    output = ResultFolder(str(tmp_path))
    for file, found in [(tiny_checkpoint, "differs"), (tmp_path / "gone.pt", "not on all machines")]:
        with pytest.raises(UserError, match=found):
            ShardCaptioner(Job(file, "0" * 16, OPTIONS, 1, output))


def test_errors_of_users_are_found_behind_those_of_ray():
    wrapped = RuntimeError("in Ray")
    wrapped.cause = UserError("disk full")
    outer = RuntimeError("in Ray Data")
    outer.__cause__ = wrapped
    assert cause_of(outer) is wrapped.cause
    last = cause_of(RuntimeError("Traceback\n  File\nIt died"))
    assert isinstance(last, UserError) and "It died" in str(last) and "\n" not in str(last)


def test_a_table_without_rows_has_no_shard():
    assert shards_of_names([], 3) == [] and len(Shard(("a", "b"))) == 2
