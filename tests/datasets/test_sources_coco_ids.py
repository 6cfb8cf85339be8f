"""COCO's photographs by a list of ids, from the files of 2014 and of 2017."""

import collections
import json

import pytest

from sca_caption.datasets.sources import find
from sca_caption.datasets.sources.coco_ids import read_ids
from sca_caption.datasets.sources.texts import read_texts
from sca_caption.runtime.errors import UserError
from tests.helpers.dataset_trees import contents, image, readable, write


def part(year: str, name: str, ids: list[int]) -> dict[str, str | bytes]:
    """Return the files of one part of a release: one image and two captions per id."""
    prefix = f"COCO_{name}2014_" if year == "2014" else ""
    names = {i: f"{prefix}{i:012d}.jpg" for i in ids}
    listing = {
        "images": [{"id": i, "file_name": file} for i, file in names.items()],
        "annotations": [
            {"image_id": i, "id": 10 * i + k, "caption": f"{k} of {i}"} for k in range(2) for i in ids
        ],
    }
    images = {f"{name}{year}/{file}": image(f"{i:012d}.jpg") for i, file in names.items()}
    return images | {f"annotations/captions_{name}{year}.json": json.dumps(listing)}


IDS = "id,split\n4,train\n000000000002,val\n12,train\n11,test\n99,train\n98,val\n"
WANTED = {
    f"{i:012d}.jpg": ((f"0 of {i}", f"1 of {i}"), split)
    for i, split in {2: "val", 4: "train", 11: "test", 12: "train"}.items()
}


@pytest.mark.parametrize("years", [["2014"], ["2017"], ["2014", "2017"]])
def test_both_releases_give_the_same_records(tmp_path, years):
    if "2014" in years:
        write(tmp_path, part("2014", "train", [1, 2, 3, 4]) | part("2014", "val", [10, 11, 12]))
    if "2017" in years:
        write(tmp_path, part("2017", "train", [1, 2, 3, 11, 12]) | part("2017", "val", [4, 10]))
    write(tmp_path, {"mine.csv": IDS, "dataset_coco.json": "not read"})
    source = find("coco", tmp_path, ids=tmp_path / "mine.csv")
    assert contents(source) == WANTED and readable(source) == set(WANTED)
    assert [record.image_id for record in source.records] == [2, 4, 11, 12]
    assert source.problems == [("mine.csv", "ids that were not found: 2 of 6; skipped")]
    assert source.description.endswith("ids and splits of mine.csv")
    assert years[-1] in source.description


def test_ids_need_an_image_and_captions_and_year_restricts_both(tmp_path):
    files = part("2017", "train", [1, 2, 3]) | part("2014", "val", [3, 4])
    del files["train2017/000000000002.jpg"]
    write(tmp_path, files | {"mine.csv": "id,split\n1,train\n2,train\n3,val\n4,test\n5,train\n",
                             "train2017/000000000005.jpg": image("000000000005.jpg")})  # fmt: skip
    source = find("coco", tmp_path, ids=tmp_path / "mine.csv")
    assert [record.image_id for record in source.records] == [1, 3, 4]
    assert source.problems == [("mine.csv", "ids that were not found: 2 of 5; skipped")]
    assert len(readable(source)) == 3
    assert [r.image_id for r in find("coco", tmp_path, ids=tmp_path / "mine.csv", year="2014").records] == [
        3,
        4,
    ]


def test_texts_of_the_same_captions_file_are_those_of_other_photographs(tmp_path):
    write(tmp_path, part("2017", "train", [1, 2, 3, 4, 11, 12]) | {"mine.csv": IDS})
    source = find("coco", tmp_path, ids=tmp_path / "mine.csv")
    texts = read_texts([tmp_path / "annotations/captions_train2017.json"], source.records)
    assert texts.captions == ["0 of 1", "1 of 1", "0 of 3", "1 of 3"] and texts.groups == [0, 0, 1, 1]
    assert texts.left_out == {"of train photographs": 4, "of held-out photographs": 4}


def test_everyday_is_packaged():
    splits, name = read_ids("everyday")
    assert name == "everyday"
    assert collections.Counter(splits.values()) == {"train": 4194, "val": 250, "test": 250}
    assert list(splits) == sorted(splits)
    assert min(splits) == 9 and max(splits) < 600_000  # COCO's largest image id is 581,929


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, ("--ids", "mine.csv does not exist", "columns id and split", "everyday")),
        ("", ("begins with ''", "columns id and split")),
        ("9,train\n", ("begins with '9,train'", "columns id and split")),
        ("id,split\n", ("lists no photographs",)),
        ("id,split\n9,train\n8,holdout\n", ("row 3", "split 'holdout'", "train, val, test")),
        ("id,split\n9\n", ("row 2", "split ''")),
        ("id,split\na.jpg,train\n", ("row 2", "id 'a.jpg' is not a number")),
        ("id,split\n9,train\n009,val\n", ("row 3", "id 009 is in train and in val")),
        ("id,split\n77,train\n",
         ("none of the 1 ids of mine.csv", "0 of their images and 1 captions files", "cocodataset.org")),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, text, wanted):
    write(tmp_path, part("2017", "train", [1, 2]) | ({} if text is None else {"mine.csv": text}))
    with pytest.raises(UserError) as caught:
        find("coco", tmp_path, ids=tmp_path / "mine.csv")
    assert not [part for part in wanted if part not in str(caught.value)], str(caught.value)
