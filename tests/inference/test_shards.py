"""Shards of photographs: what folders, object stores and Parquet files hold, each photograph in one shard, in order."""

import io
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pyarrow comes with the extra ray")

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sca_caption.images import ImageError, Transform, load
from sca_caption.inference.shards import (
    Photograph,
    Shard,
    find_inputs,
    photographs,
    shards_of_names,
    shards_of_parquet,
)
from sca_caption.runtime.errors import UserError


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (9, 7), level).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, columns: dict, rows_per_group: int = 1000) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return str(path)


def read(path: str, size: int, column: str = "image") -> list[Photograph]:
    return [each for shard in shards_of_parquet(path, column, size) for each in photographs(shard)]


@pytest.mark.parametrize(
    ("rows", "group", "size"), [(10, 3, 4), (10, 4, 3), (130, 1000, 70), (7, 7, 7), (1, 1, 5)]
)
def test_every_row_of_a_parquet_file_is_in_one_shard(rows, group, size, tmp_path):
    contents = [png(i) for i in range(rows)]
    path = write(tmp_path / "a.parquet", {"other": range(rows), "image": contents}, group)
    assert read(path, size) == [Photograph(f"{path}#{i}", data) for i, data in enumerate(contents)]
    shards = shards_of_parquet(path, "image", size)
    assert [len(shard) for shard in shards] == [len([*photographs(shard)]) for shard in shards]
    assert max(map(len, shards)) <= size


def test_rows_are_named_by_their_column_their_path_or_their_place(tmp_path):
    paths = ["a.jpg", "/there/b.jpg", "s3://c/d.jpg", None, ""]
    absolute = [f"{tmp_path}/a.jpg", "/there/b.jpg", "s3://c/d.jpg", None, ""]
    path = write(tmp_path / "paths.parquet", {"url": paths})
    places = [f"{path}#3", f"{path}#4"]
    assert read(path, 2, "url") == [*map(Photograph, absolute[:3] + places, absolute)]
    path = write(tmp_path / "names.parquet", {"url": paths, "file_name": ["v", "w", "x", "y", "z"]})
    assert read(path, 2, "url") == [*map(Photograph, "vwxyz", absolute)]
    pairs = [
        {"bytes": png(1), "path": "e.png"},
        {"bytes": None, "path": "f.png"},
        {"bytes": png(2), "path": None},
        None,
    ]
    path = write(tmp_path / "pairs.parquet", {"image": pairs})
    sources = [png(1), f"{tmp_path}/f.png", png(2), None]
    assert read(path, 2) == [*map(Photograph, ["e.png", "f.png", f"{path}#2", f"{path}#3"], sources)]


def test_files_of_an_object_store_are_read_by_their_urls():
    store = fsspec.filesystem("memory")
    for level, name in enumerate(["b.png", "deep/a.png", "notes.txt"]):
        store.pipe_file(f"/shards/{name}", png(level))
    names, tables = find_inputs(["memory://shards"], "/nowhere")
    assert [name.rpartition("shards/")[2] for name in names] == ["b.png", "deep/a.png"] and tables == []
    for level, name in enumerate(names):
        expected = load(png(level), Transform(8))
        np.testing.assert_array_equal(Photograph(name, name).load(Transform(8)), expected)
    for bad, reason in [
        ("memory://shards/gone.png", "no such file"),
        (None, "None"),
        (b"no", "not an image"),
        ("x", "no such"),
    ]:
        with pytest.raises(ImageError, match=reason) as raised:
            Photograph("named", bad).load(Transform(8))
        assert "\n" not in str(raised.value)


def test_inputs_are_found_once_and_results_are_not_inputs(photos, tmp_path):
    folder, output = photos[0].parent, photos[0].parent / "out"
    output.mkdir()
    for place in (folder, output):
        write(place / "t.parquet", {"image": [b""]})
    (folder / "notes.txt").write_text("")
    names, tables = find_inputs([str(folder), str(photos[2])], str(output))
    assert sorted(names) == sorted(map(str, photos)) and tables == [str(folder / "t.parquet")]
    for empty in (output, folder / "gone.jpg", folder / "notes.txt", "memory://nothing", "gone://x"):
        with pytest.raises(UserError, match=str(empty)) as raised:
            find_inputs([str(folder), str(empty)], str(output))
        assert "\n" not in str(raised.value)


def test_parquet_files_without_images_are_refused(tmp_path):
    numbers, text = write(tmp_path / "n.parquet", {"image": [1, 2]}), tmp_path / "t.parquet"
    text.write_text("no table")
    for path, column, found in [
        (numbers, "image", "int64"),
        (numbers, "photo", "image"),
        (text, "image", "Parquet"),
    ]:
        with pytest.raises(UserError, match=found) as raised:
            shards_of_parquet(str(path), column, 5)
        assert "\n" not in str(raised.value)


def test_result_files_are_named_by_the_contents_of_shards():
    shards = [
        *shards_of_names([f"{i}.jpg" for i in range(7)], 3),
        Shard((), "t", "image", 0, 3),
        Shard((), "t", "image", 3, 3),
    ]
    shards += [Shard((), "t", "other", 0, 3), Shard(("\udcff.jpg",))]
    assert len({shard.stem for shard in shards}) == len(shards)
    assert [Shard.from_json(shard.to_json()) for shard in shards] == shards
