"""Readers of caption data sets: each data set is written in its published format, with its irregularities, and read."""

import hashlib
import json
import os

import pytest

from sca_caption.datasets.sources import SOURCES, find
from sca_caption.datasets.sources.annotations import hash_split
from sca_caption.runtime.errors import UserError
from tests.helpers.dataset_trees import contents, image, pack, readable, write
from tests.helpers.odd_folders import lock

# Flickr8k

TOKEN = (
    "\ufeffa.jpg#0\tA child in a pink dress .\r\n"
    "a.jpg#1\tA child in a pink dress .\r\n"  # the same words by another annotator: kept
    "a.jpg#1\tA child in a pink dress .\r\n"  # repeated row: skipped
    "a.jpg#2\t  A girl ,  going in\u2028a café .\r\n"
    "b.jpg#0\tA dog runs .\r\n"
    "b.jpg#1\t \r\n"
    "\r\n"
    "c.jpg#0\tA cat .\r\n"
    "gone.jpg#0\tA missing picture .\r\n"
    "unsplit.jpg#0\tA bird .\r\n"
    "2258277193_586949ec62.jpg.1#0\tJunk .\r\n"
    "2258277193_586949ec62.jpg.1#1\tJunk .\r\n"
    "no tab here\r\n"
)
LISTS = {
    "Flickr_8k.trainImages.txt": "a.jpg\r\ngone.jpg\r\n",
    "Flickr_8k.devImages.txt": "b.jpg\n",
    "Flickr_8k.testImages.txt": "c.jpg\nuncaptioned.jpg",
}
PICTURES = ["a.jpg", "b.jpg", "c.jpg", "unsplit.jpg"]
FLICKR8K = {
    "a.jpg": (
        ("A child in a pink dress .", "A child in a pink dress .", "A girl , going in a café ."),
        "train",
    ),
    "b.jpg": (("A dog runs .",), "val"),
    "c.jpg": (("A cat .",), "test"),
    "gone.jpg": (("A missing picture .",), "train"),
}
FLICKR8K_PROBLEMS = {
    "a.jpg#1", "b.jpg#1", "unsplit.jpg", "2258277193_586949ec62.jpg.1", "no tab here", "uncaptioned.jpg",
}  # fmt: skip


@pytest.mark.parametrize("layout", ["zips", "unpacked", "Images", "nested", "one zip", "zip as root"])
def test_flickr8k_official(tmp_path, layout):
    text = {"Flickr8k.token.txt": TOKEN, **LISTS}
    pictures = {name: image(name) for name in PICTURES}
    root = tmp_path
    if layout == "zips":
        pack(root / "Flickr8k_text.zip", text)
        pack(root / "Flickr8k_Dataset.zip", {f"Flicker8k_Dataset/{n}": b for n, b in pictures.items()})
    elif layout in ("unpacked", "Images"):
        folder = {"unpacked": "Flicker8k_Dataset", "Images": "Images"}[layout]
        write(root, text | {f"{folder}/{n}": b for n, b in pictures.items()})
    elif layout == "nested":
        files = text | {f"Flickr8k_Dataset/Flicker8k_Dataset/{n}": b for n, b in pictures.items()}
        write(root / "flickr8k" / "Flickr8k", files)
    else:
        files = text | {f"Flickr8k/Flicker8k_Dataset/{n}": b for n, b in pictures.items()}
        archive = pack(root / "flickr8k.zip", files)
        root = archive if layout == "zip as root" else root
    source = find("flickr8k", root)
    assert contents(source) == FLICKR8K
    assert readable(source) == {"a.jpg", "b.jpg", "c.jpg"}
    assert {item for item, _ in source.problems} == FLICKR8K_PROBLEMS
    assert len(source.problems) == len(FLICKR8K_PROBLEMS)
    assert "Flickr8k.token.txt" in source.description and "split lists" in source.description


def kaggle8k(count: int) -> str:
    rows = [f"{i}.jpg,A child , number {i} ." for i in range(count - 1)]
    return "\n".join(["image,caption", *rows, f'{count - 1}.jpg,"The ""best"" dog, running ."']) + "\n"


def test_kaggle_captions_are_split_by_hash(tmp_path):
    write(
        tmp_path, {"captions.txt": kaggle8k(80), **{f"Images/{i}.jpg": image(f"{i}.jpg") for i in range(80)}}
    )
    source = find("flickr8k", tmp_path)
    assert source.counts() == {"train": 60, "val": 10, "test": 10}
    ordered = sorted((f"{i}.jpg" for i in range(80)), key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    assert {r.file_name for r in source.records if r.split == "val"} == set(ordered[:10])
    assert {r.file_name for r in source.records if r.split == "test"} == set(ordered[10:20])
    assert "SHA-256" in source.description and not source.problems
    assert contents(source)["3.jpg"][0] == ("A child , number 3 .",)
    assert contents(source)["79.jpg"][0] == ('The "best" dog, running .',)
    assert len(readable(source)) == 80


def karpathy(dataset: str, images: list[dict]) -> str:
    return json.dumps({"dataset": dataset, "images": images})


def entry(name: str, split: str, *raws: str, **more) -> dict:
    sentences = [
        {"tokens": raw.lower().split(), "raw": raw, "imgid": 7, "sentid": i} for i, raw in enumerate(raws)
    ]
    return {"filename": name, "split": split, "imgid": 7, "sentids": [0], "sentences": sentences, **more}


def test_karpathys_json_is_preferred_to_kaggle_captions_without_splits(tmp_path):
    no_raw = entry("1.jpg", "val", "Two Dogs .")
    del no_raw["sentences"][0]["raw"]
    listed = [
        entry("0.jpg", "train", "A Dog, running."),
        no_raw,
        entry("2.jpg", "test", "x"),
        entry("3.jpg", "extra", "y"),
    ]
    write(tmp_path, {"captions.txt": kaggle8k(80), "Images/0.jpg": image("0.jpg")})
    pack(tmp_path / "caption_datasets.zip", {"dataset_flickr8k.json": karpathy("flickr8k", listed)})
    source = find("flickr8k", tmp_path)
    assert contents(source) == {
        "0.jpg": (("A Dog, running.",), "train"),
        "1.jpg": (("two dogs .",), "val"),
        "2.jpg": (("x",), "test"),
    }
    assert source.problems == [("3.jpg", "unknown split 'extra'; skipped")]
    assert "Karpathy" in source.description


def test_kaggle_captions_with_split_lists(tmp_path):
    write(tmp_path, {"captions.txt": "image,caption\na.jpg,one\nb.jpg,two\nc.jpg,three\n", **LISTS})
    write(tmp_path, {f"Images/{name}": image(name) for name in PICTURES})
    assert find("flickr8k", tmp_path).counts() == {"train": 1, "val": 1, "test": 1}


# Flickr30k


def test_flickr30k_token_file(tmp_path):
    rows = [f"{i}.jpg#{k}\tTwo men , number {k} .\n" for i in range(40) for k in range(5)]
    write(tmp_path / "flickr30k", {"results_20130124.token": "".join(rows)})
    pack(
        tmp_path / "flickr30k" / "flickr30k-images.zip",
        {f"flickr30k-images/{i}.jpg": image(f"{i}.jpg") for i in range(40)},
    )
    source = find("flickr30k", tmp_path)
    assert source.counts() == {"train": 30, "val": 5, "test": 5} and len(readable(source)) == 40
    assert {len(record.captions) for record in source.records} == {5}


@pytest.mark.parametrize("packed", [False, True])
def test_flickr30k_kaggle_with_its_irregular_row(tmp_path, packed):
    table = (
        "image_name| comment_number| comment\n"
        "1000092795.jpg| 0| Two young guys , one | two .\n"
        "2199199.jpg| 3| A dog .\n"
        "2199199.jpg| 4   A dog runs across the grass .\n"
        "2199200.jpg\n"
    )
    folder = "flickr30k_images/flickr30k_images"
    names = ("1000092795.jpg", "2199199.jpg")
    files = {f"{folder}/{name}": image(name) for name in names} | {f"{folder}/results.csv": table}
    if packed:
        pack(tmp_path / "archive.zip", files)
    else:
        write(tmp_path, files)
    source = find("flickr30k", tmp_path)
    captions = {name: captions for name, (captions, _) in contents(source).items()}
    assert captions == {
        "1000092795.jpg": ("Two young guys , one | two .",),
        "2199199.jpg": ("A dog .", "A dog runs across the grass ."),
    }
    assert readable(source) == set(names)
    assert [item for item, _ in source.problems] == ["2199199.jpg#4", "2199200.jpg"]


def test_data_sets_share_a_root(tmp_path):
    for name in ("flickr8k", "flickr30k"):
        write(
            tmp_path / name,
            {"captions.txt": f"image,caption\n{name}.jpg,of {name}\n", f"Images/{name}.jpg": b""},
        )
    write(tmp_path / "coco", {"captions.csv": "image,caption\nx.jpg,x\n"})
    for name in ("flickr8k", "flickr30k"):
        assert [record.captions for record in find(name, tmp_path).records] == [(f"of {name}",)]


# MSCOCO


def official(year: str, part: str, count: int, first: int = 0) -> dict[str, str | bytes]:
    """Return the files of one part: images numbered from `first`, two captions each."""
    prefix = f"COCO_{part}2014_" if year == "2014" else ""
    names = {i: f"{prefix}{i:012d}.jpg" for i in range(first, first + count)}
    listing = {
        "info": {"year": int(year)},
        "images": [
            {"license": 1, "file_name": name, "height": 4, "width": 4, "id": i} for i, name in names.items()
        ],
        "licenses": [],
        "annotations": [
            {"image_id": i, "id": 2 * i + k, "caption": f"A man {k}.\n"} for k in range(2) for i in names
        ],
    }
    files = {f"{part}{year}/{name}": image(name) for name in names.values()}
    return files | {f"annotations/captions_{part}{year}.json": json.dumps(listing)}


@pytest.mark.parametrize("layout", ["unpacked", "one zip", "official zips", "nested"])
@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_official(tmp_path, year, layout):
    train, val = official(year, "train", 8), official(year, "val", 5, first=100)
    if layout == "unpacked":
        write(tmp_path, train | val)
    elif layout == "one zip":
        pack(tmp_path / "coco_mini.zip", train | val)
    elif layout == "nested":
        write(tmp_path / f"coco-{year}-dataset" / f"coco{year}", train | val)
    else:
        both = train | val
        for name in (f"train{year}", f"val{year}", "annotations"):
            pack(tmp_path / "coco" / f"{name}.zip", {n: b for n, b in both.items() if n.startswith(name)})
    source = find("coco", tmp_path)
    assert source.counts() == {"train": 8, "val": 3, "test": 2}
    assert [record.image_id for record in source.records] == [*range(8), *range(100, 105)]
    assert all(record.captions == ("A man 0.", "A man 1.") for record in source.records)
    assert len(readable(source)) == 13 and not source.problems
    splits = hash_split([r.file_name for r in source.records if r.image_id >= 100], val=3, test=2)
    assert all(splits.get(r.file_name, "train") == r.split for r in source.records)


def test_coco_official_irregularities_and_missing_part(tmp_path):
    files = official("2017", "train", 3)
    listing = json.loads(files["annotations/captions_train2017.json"])
    listing["images"].append({"id": 50, "file_name": "000000000050.jpg"})
    listing["annotations"] += [
        {"image_id": 99, "id": 900, "caption": "Of what?"},
        dict(listing["annotations"][0]),
    ]
    files["annotations/captions_train2017.json"] = json.dumps(listing)
    del files["train2017/000000000002.jpg"]
    write(
        tmp_path,
        files
        | {
            "annotations/captions_val2017.json": official("2017", "val", 2)[
                "annotations/captions_val2017.json"
            ]
        },
    )
    source = find("coco", tmp_path)
    assert source.counts() == {"train": 3, "val": 0, "test": 0}
    assert readable(source) == {"000000000000.jpg", "000000000001.jpg"}
    assert {item.rpartition("/")[2] for item, _ in source.problems} == {
        "captions_val2017.json", "captions_train2017.json image 99", "000000000000.jpg#0", "000000000050.jpg",
    }  # fmt: skip


def own_coco(folder: str, kind=int) -> dict[str, str | bytes]:
    """An own data set in COCO's layout. folder: before file names in the images list. kind: of the ids there."""
    files = official("2017", "train", 3) | official("2017", "val", 3, first=7)
    for part in ("train", "val"):
        key = f"annotations/captions_{part}2017.json"
        listing = json.loads(files[key])
        for entry in listing["images"]:
            entry |= {"file_name": folder.format(part) + entry["file_name"], "id": kind(entry["id"])}
        files[key] = json.dumps(listing)
    return files


@pytest.mark.parametrize(
    "folder, kind",
    [("{}2017/", int), ("./{}2017/", int), ("{}2017\\", int), ("", str), ("", "{:012}".format)],
)
def test_coco_own_files_spell_names_and_ids_otherwise(tmp_path, folder, kind):
    write(tmp_path, own_coco(folder, kind))
    source = find("coco", tmp_path)
    assert source.counts() == {"train": 3, "val": 2, "test": 1} and not source.problems
    assert sorted(record.image_id for record in source.records) == [0, 1, 2, 7, 8, 9]
    assert all(record.captions == ("A man 0.", "A man 1.") for record in source.records)
    assert len(readable(source)) == 6


@pytest.mark.parametrize("bad", [None, 7, ["a", "b"], {"a": "b"}])
def test_coco_captions_that_are_no_text_are_listed_and_skipped(tmp_path, bad):
    files = official("2017", "train", 3) | official("2017", "val", 3, first=7)
    key = "annotations/captions_train2017.json"
    listing = json.loads(files[key])
    listing["annotations"].append({"image_id": 0, "id": 900, "caption": bad})
    source = find("coco", write(tmp_path, files | {key: json.dumps(listing)}))
    assert contents(source)["000000000000.jpg"] == (("A man 0.", "A man 1."), "train")
    assert [item.rpartition(" ")[2] for item, _ in source.problems] == ["900"]


def test_coco_years(tmp_path):
    write(
        tmp_path,
        official("2014", "train", 2) | official("2014", "val", 2, first=10) | official("2017", "val", 4),
    )
    assert find("coco", tmp_path).counts() == {"train": 2, "val": 1, "test": 1}  # only 2014 is complete
    write(tmp_path, official("2017", "train", 5, first=20))
    assert find("coco", tmp_path).counts() == {"train": 5, "val": 2, "test": 2}  # both are complete: 2017
    assert find("coco", tmp_path, year="2014").counts() == {"train": 2, "val": 1, "test": 1}
    with pytest.raises(UserError, match="unknown year '2015'; one of: 2014, 2017"):
        find("coco", tmp_path, year="2015")


def test_coco_official_restval(tmp_path, monkeypatch):
    monkeypatch.setattr("sca_caption.datasets.sources.coco.HELD_OUT", 2)
    write(tmp_path, official("2014", "train", 3) | official("2014", "val", 9, first=10))
    assert find("coco", tmp_path).counts() == {"train": 8, "val": 2, "test": 2}
    source = find("coco", tmp_path, restval="omit")
    assert source.counts() == {"train": 3, "val": 2, "test": 2}
    assert source.problems == [("restval", "5 images skipped by restval: omit")]


@pytest.mark.parametrize("images_of", ["2014", "2017"])
def test_coco_karpathy(tmp_path, images_of):
    listed = [
        entry("COCO_train2014_000000000001.jpg", "train", "One.", filepath="train2014", cocoid=1),
        entry("COCO_val2014_000000000002.jpg", "restval", "Two.", filepath="val2014", cocoid=2),
        entry("COCO_val2014_000000000003.jpg", "val", "Three.", "Three.", filepath="val2014", cocoid=3),
        entry("COCO_val2014_000000000004.jpg", "test", "Four.", filepath="val2014", cocoid=4),
    ]
    files = {f"{e['filepath']}/{e['filename']}": image(e["filename"]) for e in listed}
    if images_of == "2017":
        files = {f"train2017/{e['cocoid']:012d}.jpg": image(e["filename"]) for e in listed}
    write(tmp_path, files | {"dataset_coco.json": karpathy("coco", listed)})
    source = find("coco", tmp_path)
    assert source.counts() == {"train": 2, "val": 1, "test": 1} and len(readable(source)) == 4
    assert [record.image_id for record in source.records] == [1, 2, 3, 4]
    assert source.records[2].captions == ("Three.", "Three.")
    omitted = find("coco", tmp_path, restval="omit")
    assert omitted.counts() == {"train": 1, "val": 1, "test": 1}
    assert omitted.problems == [("restval", "1 images skipped by restval: omit")]
    with pytest.raises(UserError, match="unknown restval 'drop'; one of: omit, train"):
        find("coco", tmp_path, restval="drop")


# Missing and damaged files

EXPECTED = {
    "flickr8k": ("Flickr8k.token.txt", "captions.txt", "dataset_flickr8k.json", "adityajn105/flickr8k"),
    "flickr30k": ("results_20130124.token", "results.csv", "dataset_flickr30k.json", "hsankesara"),
    "coco": ("dataset_coco.json", "captions_{train,val}{2017,2014}.json", "cocodataset.org"),
    "csv": ("captions.csv", "captions.jsonl"),
}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_empty_root_names_the_expected_files(tmp_path, name):
    if name == "shapes":  # reads no files
        assert find(name, tmp_path / "absent").records
        return
    with pytest.raises(UserError) as caught:
        find(name, tmp_path)
    assert all(words in str(caught.value) for words in (*EXPECTED[name], str(tmp_path)))
    with pytest.raises(UserError, match="does not exist"):
        find(name, tmp_path / "absent")


def test_captions_without_images(tmp_path):
    write(tmp_path, {"Flickr8k.token.txt": TOKEN, **LISTS, "flickr8k-images.tar.gz": b""})
    write(tmp_path, {"Flickr8k_Dataset.zip": b"PK\x03\x04 cut short"})
    with pytest.raises(UserError) as caught:
        find("flickr8k", tmp_path)
    for words in ("none of the 4", "Flickr8k_Dataset.zip is not a readable zip", "tar.gz must be unpacked"):
        assert words in str(caught.value)
    write(tmp_path / "coco", {"annotations/captions_val2017.json": "{}"})
    with pytest.raises(UserError, match=r"captions without images: coco/annotations/captions_val2017\.json"):
        find("coco", tmp_path)


def test_a_loop_of_links_a_pipe_and_a_closed_folder(tmp_path, monkeypatch):
    write(
        tmp_path,
        {
            "captions.csv": "image,caption\na.jpg,a dog\nb/c.jpg,a cat\n",
            "a.jpg": image("a.jpg"),
            "b/c.jpg": image("c.jpg"),
        },
    )
    (tmp_path / "b/up").symlink_to("..")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "shut").mkdir()
    lock(monkeypatch, tmp_path / "shut")
    source = find("csv", tmp_path)
    assert [record.file_name for record in source.records] == ["a.jpg", "b/c.jpg"]
    assert source.problems == [(str(tmp_path / "shut"), "cannot be listed (Permission denied); skipped")]
    lock(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"cannot be listed \(Permission denied\)"):
        find("flickr8k", tmp_path)


def test_damaged_json(tmp_path):
    write(tmp_path, {"dataset_flickr8k.json": '{"images": [{"filename": "a.jpg"'})
    with pytest.raises(UserError, match=r"dataset_flickr8k\.json is not Karpathy's JSON"):
        find("flickr8k", tmp_path)
    write(tmp_path, official("2017", "train", 1) | {"annotations/captions_train2017.json": '{"images": [1]}'})
    with pytest.raises(UserError, match=r"captions_train2017\.json is not COCO's captions JSON"):
        find("coco", tmp_path)


def test_unknown_names():
    with pytest.raises(
        UserError, match="unknown dataset 'flickr9k'; one of: coco, csv, flickr30k, flickr8k, shapes"
    ):
        find("flickr9k", ".")
    with pytest.raises(TypeError, match="restvall"):
        find("coco", ".", restvall="omit")
