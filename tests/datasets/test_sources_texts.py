"""Captions without photographs: their files, their groups, and what is left out."""

import json

import pytest

from sca_caption.datasets.sources.photographs import photograph_key
from sca_caption.datasets.sources.records import Record
from sca_caption.datasets.sources.texts import read_texts
from sca_caption.runtime.errors import UserError
from tests.helpers.dataset_trees import write


def photographs(**names: str) -> list[Record]:
    """Records of photographs. names: split -> file names, separated by spaces."""
    return [
        Record(name, ("a dog",), split, None, bytes)
        for split, listed in names.items()
        for name in listed.split()
    ]


@pytest.mark.parametrize(
    "names",
    [
        (9, "9", " 9 ", "000000000009", "000000000009.jpg", "images/000000000009.jpg", "COCO_train2014_000000000009.jpg",
         "val2014\\COCO_val2014_000000000009.JPG"),
        ("1000268201_693b08cb0e.jpg", "1000268201.jpg", "Images/1000268201_693b08cb0e.jpg", "flickr30k_1000268201.jpg"),
        ("9.jpg", "9.JPG"),
        ("9.png",),
        ("trip/9.jpg", "trip\\9.jpg"),
        ("20200101_123456.jpg",),
        ("café.jpg", "cafe\u0301.jpg"),
    ],
)  # fmt: skip
def test_names_of_a_photograph_have_one_key(names):
    others = {
        photograph_key(name) for name in (10, "1000268202.jpg", "8.jpg", "20200101_123457.jpg", "cafe.jpg")
    }
    keys = {photograph_key(name) for name in names}
    assert len(keys) == 1 and not keys & others


FORMS = {
    "a.csv": "coco_id,caption\n9,A dog.\n7,Two cats.\n9,A red dog.\n",
    "b.csv": 'caption;split;image\n"A dog.";;000000000009.jpg\nTwo cats.;;COCO_val2014_000000000007.jpg\nA red dog.;;9\n',
    "c.tsv": "image_id\tcaption\r\n9\tA dog.\r\n7\tTwo cats.\r\n\r\n9\tA  red\u00a0dog.\r\n",
    "d.json": json.dumps({"images": [{"id": 9, "file_name": "x"}], "annotations": [
        {"id": 1, "image_id": 9, "caption": "A dog."}, {"id": 2, "image_id": 7, "caption": "Two cats."},
        {"id": 3, "image_id": 9, "caption": "A red dog.\n"}]}),
    "e.token": "9.jpg#0\tA dog.\n7.jpg#0\tTwo cats.\n9.jpg#1\tA red dog.\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_captions_of_a_photograph_are_one_group_in_every_format(tmp_path, name):
    write(tmp_path, FORMS)
    texts = read_texts([tmp_path / name])
    assert texts.captions == ["A dog.", "A red dog.", "Two cats."]
    assert texts.groups == [0, 0, 1]
    assert (texts.description, texts.left_out, texts.problems) == (name, {}, [])


def test_without_a_photograph_each_caption_is_a_group_and_files_are_joined(tmp_path):
    write(tmp_path, FORMS | {"x.csv": "caption\nA dog.\nA dog.\n...\n"})
    texts = read_texts([tmp_path / name for name in ("x.csv", "a.csv", "d.json", "x.csv")])
    assert texts.captions == ["A dog.", "A dog.", "A dog.", "A red dog.", "Two cats.", "A dog.", "A dog."]
    assert texts.groups == [0, 1, 2, 2, 3, 4, 5]
    assert texts.left_out == {"without words": 2, "repeated": 3}
    assert texts.description == "x.csv, a.csv, d.json, x.csv"


def test_photographs_of_the_data_set_and_held_out_ones_are_left_out(tmp_path):
    rows = "".join(
        f"{name},caption {k} of {name}\n" for name in (1, 2, 3, 4, 5, "d.jpg", 77) for k in range(2)
    )
    flickr = "".join(f"{number}.jpg#0\tA dog {number}.\n" for number in range(1000268200, 1000268204))
    write(tmp_path, {"a.csv": "image,caption\n" + rows, "b.token": flickr})
    texts = read_texts(
        [tmp_path / "a.csv", tmp_path / "b.token"],
        photographs(
            train="images/000000000001.jpg COCO_val2014_000000000005.jpg",
            val="COCO_train2014_000000000002.jpg 1000268201_693b08cb0e.jpg",
            test="deep/D.jpg",
        ),
        held_out=["000000000003.jpg", "COCO_val2014_000000000005.jpg", "1000268203_ffffffffff.jpg", "unseen.jpg"],
    )  # fmt: skip
    assert texts.captions == [
        "caption 0 of 4", "caption 1 of 4", "caption 0 of 77", "caption 1 of 77",
        "A dog 1000268200.", "A dog 1000268202.",
    ]  # fmt: skip
    assert texts.groups == [0, 0, 1, 1, 2, 3]
    assert texts.left_out == {"of train photographs": 2, "of held-out photographs": 10}


def test_odd_rows_are_reported(tmp_path):
    write(
        tmp_path,
        {
            "a.csv": "file,caption\na.jpg,A dog, wet\n,nothing\nb.jpg\n",
            "b.token": "a.jpg#0\tA cat.\nno tab\n",
        },
    )
    texts = read_texts([tmp_path / "a.csv", tmp_path / "b.token"])
    assert texts.captions == ["A dog, wet", "A cat."] and texts.groups == [0, 0]
    assert [reason.split(";")[0].split(" of ")[0] for _, reason in texts.problems] == [
        "2 fields without an image and a caption", "1 fields without an image and a caption",
        "1 rows with an unquoted ','", "not a caption line",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("gone.csv", None, ("--texts", "gone.csv does not exist", "column caption")),
        ("a.csv", "image,words\na.jpg,A dog\n", ("no header with caption", "'image,words'", "captions JSON")),
        ("a.csv", "", ("no header with caption", "empty")),
        ("a.csv", "caption\n", ("no caption", "a.csv is kept", "no captions found", "leave out --texts")),
        ("a.csv", "coco_id,caption\n1,A dog\n2,A cat\n2,...\n3,!\n",
         ("1 of train photographs, 2 of held-out photographs, 1 without words",)),
        ("a.json", "{}", ("a.json is not COCO's captions JSON", "KeyError")),
        ("a.json", '{"images": [], "annotations": [{"image_id": 1, "caption": null}]}', ("captions must be strings",)),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, file, content, wanted):
    if content is not None:
        write(tmp_path, {file: content})
    with pytest.raises(UserError) as caught:
        read_texts([tmp_path / file], photographs(train="000000000001.jpg", test="000000000002.jpg"))
    assert not [part for part in wanted if part not in str(caught.value)], str(caught.value)
