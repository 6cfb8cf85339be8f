"""Tables of a user's own photographs in CSV, TSV and JSON Lines, and their errors."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sca_caption.datasets.sources import find
from sca_caption.datasets.sources.annotations import Annotations
from sca_caption.datasets.sources.table import DELIMITERS, read_csv_rows, read_json_rows
from sca_caption.runtime.errors import UserError
from tests.helpers.dataset_trees import contents, image, pack, readable, write

ROWS = [
    ("image", "caption", "split"),
    ("a.jpg", "A dog, running; fast | far", "train"),
    ("a.jpg", "Un café\nà Paris", "training"),
    ("a.jpg", "A dog, running; fast | far", "train"),
    ("sub\\b.jpg", "A cat", "dev"),
    ("./c.jpg", "A bird", "TEST"),
    ("d.jpg", "A fish", "holdout"),
    ("e.jpg", "", "train"),
    ("f.jpg", "A cow", ""),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv(tmp_path, delimiter, encoding):
    write(tmp_path, {name: image(Path(name).name) for name in ("a.jpg", "sub/b.jpg", "images/c.jpg")})
    with open(tmp_path / "captions.csv", "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(ROWS)  # with CRLF, and quotes where needed
    source = find("csv", tmp_path)
    assert contents(source) == {
        "a.jpg": (("A dog, running; fast | far", "Un café à Paris"), "train"),
        "sub/b.jpg": (("A cat",), "val"),
        "c.jpg": (("A bird",), "test"),
    }
    assert readable(source) == {"a.jpg", "sub/b.jpg", "c.jpg"}
    reasons = [(item, reason.split(";")[0].split(" 'A")[0]) for item, reason in source.problems]
    assert reasons == [
        ("captions.csv, line 3", "a quoted field has 2 lines"), ("a.jpg", "repeated caption"),
        ("d.jpg", "unknown split 'holdout'"), ("e.jpg", "empty caption"),
        ("d.jpg", "has captions but no split"), ("e.jpg", "no captions"),
        ("f.jpg", "has captions but no split"),
    ]  # fmt: skip


def test_csv_with_unquoted_commas_short_rows_and_other_columns(tmp_path):
    text = "id,image,caption,split\n1,a.jpg,A dog, running, fast,train\n2,b.jpg,A cat,val,,\n\n3,c.jpg\n"
    write(tmp_path, {"mine.csv": text, "a.jpg": image("a.jpg"), "b.jpg": image("b.jpg")})
    source = find("csv", tmp_path / "mine.csv")
    assert contents(source) == {"a.jpg": (("A dog, running, fast",), "train"), "b.jpg": (("A cat",), "val")}
    assert [item for item, _ in source.problems] == ["mine.csv, line 5", "mine.csv"]


def test_csv_without_splits_in_a_zip(tmp_path):
    rows = "".join(f"{i:03d}.jpg,picture {i}\n" for i in range(60))
    images = {f"images/{i:03d}.jpg": image(f"{i:03d}.jpg") for i in range(60)}
    root = pack(tmp_path / "web.zip", images | {"captions.csv": "image,caption\n" + rows})
    source = find("csv", root)
    assert source.counts() == {"train": 54, "val": 3, "test": 3} and len(readable(source)) == 60
    assert contents(find("csv", tmp_path)) == contents(source)
    assert "SHA-256" in source.description


def test_jsonl(tmp_path):
    lines = [
        {"image": "a.jpg", "captions": ["A dog.", "A café."], "split": "train"},
        {"file_name": "deep/b.jpg", "text": "A cat."},
        {"image": "b.jpg", "split": "val"},
        {"image": "c.jpg", "caption": None},
    ]
    text = "\n".join([*(json.dumps(line, ensure_ascii=False) for line in lines), "not json", ""])
    write(tmp_path, {"captions.jsonl": text, "a.jpg": image("a.jpg"), "x/y/deep/b.jpg": image("b.jpg")})
    source = find("csv", tmp_path)
    assert contents(source) == {"a.jpg": (("A dog.", "A café."), "train")}
    assert [item for item, _ in source.problems] == [
        "captions.jsonl, line 3", "captions.jsonl, line 4", "captions.jsonl, line 5", "deep/b.jpg",
    ]  # fmt: skip
    assert "lacks 'caption'" in source.problems[0][1]


def test_csv_image_names(tmp_path):
    absolute = write(tmp_path / "elsewhere", {"far.jpg": image("far.jpg")}) / "far.jpg"
    rows = [f"{absolute},far", "CAFE\u0301.JPG,accent", "twice.jpg,two", "../out.jpg,out", "gone.jpg,gone"]
    table = "\n".join(["image,caption", *rows])
    files = {
        "captions.csv": table,
        "p/café.jpg": image("CAFE\u0301.JPG"),
        "p/twice.jpg": b"p",
        "q/twice.jpg": b"q",
    }
    write(
        tmp_path, {f"set/{name}": content for name, content in files.items()} | {"out.jpg": image("out.jpg")}
    )
    source = find("csv", tmp_path / "set")
    records = {record.file_name: record for record in source.records}
    assert records["twice.jpg"].read() == b"p"
    assert source.problems == [
        ("twice.jpg", "several files have this name; used p/twice.jpg, not q/twice.jpg")
    ]
    for name in (str(absolute), "CAFE\u0301.JPG", "../out.jpg"):
        assert records[name].read() == image(Path(name).name)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        records["gone.jpg"].read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a.jpg,a dog\n",
            r"captions\.csv has no header with image and caption; it begins with 'a\.jpg,a dog'",
        ),
        ("", "has no header"),
        ("image,caption\n", "no image with captions and a split"),
        ("image,caption\na.jpg,a dog\n", r"none of the 1 captioned images \(a\.jpg, \.\.\.\) was found in"),
        ('image,caption\na.jpg,"a dog\n' + "b.jpg,a cat\n" * 30, "line 2: a quoted field has 31 lines"),
        ('image,caption\na.jpg,"a dog\n' + "b.jpg,a cat\n" * 30000, "line 2: field larger than field limit"),
    ],
)
def test_csv_errors(tmp_path, text, message):
    write(tmp_path, {"captions.csv": text})
    with pytest.raises(UserError, match=message) as caught:
        find("csv", tmp_path)
    assert "\n" not in str(caught.value)


def test_csv_several_tables(tmp_path):
    write(tmp_path, {"one.csv": "", "two.csv": ""})
    with pytest.raises(UserError, match=r"found one\.csv, two\.csv; give one as --root FILE"):
        find("csv", tmp_path)


def test_text_that_is_not_utf8_is_reported(tmp_path):
    write(
        tmp_path,
        {"captions.csv": "image,caption\na.jpg,Un café…\n".encode("cp1252"), "a.jpg": image("a.jpg")},
    )
    source = find("csv", tmp_path)
    assert source.records[0].captions == ("Un café…",)
    assert source.problems == [("captions.csv", "not UTF-8 (byte 26); read as Windows-1252")]


def test_damaged_zip_member_is_an_os_error(tmp_path):
    root = pack(
        tmp_path / "a.zip",
        {"captions.csv": "image,caption\na.jpg,a\nb.jpg,b", "a.jpg": b"a" * 99, "b.jpg": b"bbb"},
    )
    data = root.read_bytes()
    root.write_bytes(data.replace(b"bbb", b"bxb"))
    stored, deflated = (
        next(r for r in find("csv", root).records if r.file_name == n) for n in ("b.jpg", "a.jpg")
    )
    assert deflated.read() == b"a" * 99
    with pytest.raises(OSError, match=r"b\.jpg fails its checksum"):
        stored.read()
    root.write_bytes(b"\0" * len(data))
    with pytest.raises(OSError, match=r"no local header for a\.jpg"):
        deflated.read()


def test_files_that_are_too_large_are_refused_before_they_fill_the_memory(tmp_path):
    files = {"captions.csv": "image,caption\na.jpg,a dog", "a.jpg": bytes(1000)}
    roots = [pack(tmp_path / "a.zip", files), write(tmp_path / "folder", files)]
    for root in roots:
        (record,) = find("csv", root).records
        assert record.read() == record.read(1000) == bytes(1000)
        with pytest.raises(OSError, match=r"more than .* MB"):
            record.read(999)


FIELDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)
TABLES = st.lists(st.tuples(FIELDS, FIELDS), max_size=4)


@given(st.sampled_from(DELIMITERS), TABLES, st.permutations(["image", "caption"]))
def test_any_rows_of_a_csv_come_back(delimiter, rows, header):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    writer.writerows(row if header[0] == "image" else row[::-1] for row in rows)
    found = read_csv_rows(stream.getvalue(), "a.csv", Annotations(Path(), []))
    assert [(image, *captions) for image, captions, _ in found] == rows


@given(TABLES)
def test_any_rows_of_json_lines_come_back(rows):
    text = "\n".join(json.dumps({"image": image, "caption": caption}) for image, caption in rows)
    if rows:
        found = read_json_rows(text, "a.jsonl", Annotations(Path(), []))
        assert [(image, *captions) for image, captions, _ in found] == rows


@given(
    st.text(),
    st.sampled_from(["", "image,caption\n", "image\tcaption\tsplit\n"]),
    st.sampled_from([".csv", ".jsonl"]),
)
def test_any_text_is_read_as_a_table_or_refused(tmp_path, text, head, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes((head + text).encode("utf-8", "surrogatepass"))
    try:
        found = find("csv", path)
    except UserError as error:
        assert str(error)
    else:
        assert all(caption.strip() for record in found.records for caption in record.captions)
