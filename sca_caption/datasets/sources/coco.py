"""MSCOCO: Karpathy's JSON over the 2014 (or 2017) image folders, or the official captions files.

    annotations/captions_{train,val}{2014,2017}.json
        {"images": [{"id": 391895, "file_name": "000000391895.jpg", ...}],
         "annotations": [{"id": 770337, "image_id": 391895, "caption": "A man ..."}]}
    train2014/COCO_train2014_000000000009.jpg  val2014/...  train2017/000000000009.jpg  val2017/...

`dataset_coco.json` comes first, because published figures are on its splits. Otherwise the year that has more
of its two parts (captions and image folder) is read, 2017 before 2014: they are the same photographs, divided
differently. The official test sets have no captions, so val is split: see `read_official`.
"""

import json
from pathlib import Path

from sca_caption.datasets.sources.annotations import Gathered, hash_split
from sca_caption.datasets.sources.file_tree import Found, Tree, text_of
from sca_caption.datasets.sources.karpathy import read_karpathy
from sca_caption.datasets.sources.records import Source
from sca_caption.runtime.errors import UserError, choice

HELD_OUT = 5000  # images in each of val and test at most, as in Karpathy's splits
YEARS = ("2017", "2014")
PARTS = ("train", "val")
WHERE = "cocodataset.org/#download (see data/README.md)"


def read_coco(root: Path, *, restval: str = "train", year: str | None = None) -> Source:
    """Return MSCOCO found under `root`. Raises UserError that says what was looked for and where to get it.

    restval: "train" or "omit", for the validation images that are in neither val nor test.
    year: "2014" or "2017" reads the official captions of that year; None chooses as told above.
    """
    choice(restval, ("train", "omit"), "restval")
    if year is not None:
        choice(year, YEARS, "year")
    tree = Tree(root, "coco")
    gathered = Gathered(root, tree.problems)
    karpathy = tree.find("dataset_coco.json")
    if karpathy and year is None:
        folders = read_karpathy(karpathy, gathered, restval=restval)
        used = f"{karpathy[0]} (Karpathy's captions and splits)"
        looked_for = "train2014, val2014 (or train2017, val2017)"
        records = gathered.records(
            lambda name: find_karpathy(tree, folders[name], name, gathered.image_ids[name]),
            looked_for=f"looked for {looked_for} in folders and zips{tree.hints()}; get them from {WHERE}",
        )
        return Source("coco", f"coco: {used}, restval: {restval}", records, tree.problems)
    files = {
        y: {part: found for part in PARTS if (found := tree.find(f"captions_{part}{y}.json"))}
        for y in YEARS
        if year in (None, y)
    }
    present = tree.folders_of_images()
    whole = {y: [part for part in parts if f"{part}{y}" in present] for y, parts in files.items()}
    best = max(whole, key=lambda y: len(whole[y]))  # the first of YEARS among equals
    if not whole[best]:
        captions = [found[0] for parts in files.values() for found in parts.values()]
        raise UserError(
            f"no COCO under {root}: looked for dataset_coco.json, annotations/captions_{{train,val}}"
            f"{{{','.join(files)}}}.json and their image folders (train2017, ...) in folders and zips; "
            f"found {'captions without images: ' + ', '.join(captions) if captions else 'no captions'}"
            f"{tree.hints()}; get them from {WHERE}"
        )
    for part, found in files[best].items():
        if part not in whole[best]:
            gathered.problem(found[0], f"no folder of images {part}{best}; this part was left out")
    return read_official(tree, best, {part: files[best][part] for part in whole[best]}, gathered, restval)


def read_official(tree: Tree, year: str, files: dict[str, Found], gathered: Gathered, restval: str) -> Source:
    """Read the official captions of one year.

    The val part, ordered by the SHA-256 of the file names, gives at most 5,000 images to val and as many to
    test (half to each where it has fewer than 10,000, as in 2017); the rest of it is restval, as in
    Karpathy's splits.
    """
    folders: dict[str, str] = {}
    for part, found in files.items():
        names = read_captions(found, gathered)
        folders |= dict.fromkeys(names, f"{part}{year}")
        if part == "train":
            for name in names:
                gathered.assign(name, "train")
            continue
        test = min(HELD_OUT, len(names) // 2)
        val = min(HELD_OUT, len(names) - test)
        for i, (name, split) in enumerate(hash_split(names, val=val, test=test).items()):
            if i < val + test or restval == "train":
                gathered.assign(name, split)
            else:
                del gathered.captions[name]
        rest = len(names) - val - test
        if rest and restval == "omit":
            gathered.problem("restval", f"{rest} images left out, as asked")
    used = ", ".join(found[0] for found in files.values())
    if "val" in files:
        used += f"; {year}'s val is split by the SHA-256 of the file names into val ({val}) and test ({test})"
        used += f", the other {rest}: {restval}" if rest else ""
    if "train" not in files:
        used += "; there is no train part"
    looked_for = f"get the images from {WHERE}"
    records = gathered.records(lambda name: tree.find(f"{folders[name]}/{name}"), looked_for=looked_for)
    return Source("coco", f"coco: {used}", records, tree.problems)


def shrink(entry: dict) -> dict | tuple:
    """Keep of an annotation or an image what is needed as it is parsed, to bound memory."""
    if "caption" in entry:
        return entry["image_id"], entry.get("id"), entry["caption"]
    if "file_name" in entry:
        return entry["id"], entry["file_name"]
    return entry


def read_captions(found: Found, gathered: Gathered) -> list[str]:
    """Add the captions of one official file and return the names of its images that have any."""
    try:
        content = json.loads(text_of(found, gathered.problems), object_hook=shrink)
        names = dict(content["images"])
        for name in names.values():
            gathered.captions.setdefault(name, {})
        for image_id, number, caption in content["annotations"]:
            if image_id in names:
                gathered.add(names[image_id], number, caption)
            else:
                gathered.problem(f"{found[0]} image {image_id}", "has a caption but is not listed; left out")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{found[0]} is not COCO's captions JSON ({type(error).__name__}: {error}); get it from {WHERE}"
        ) from error
    gathered.image_ids |= {name: image_id for image_id, name in names.items()}
    return [name for name in names.values() if gathered.captions[name]]


def find_karpathy(tree: Tree, folder: str, name: str, image_id: int | None) -> Found | None:
    """Find an image of Karpathy's list in its own folder, under its name of 2017, or anywhere."""
    found = tree.find(f"{folder}/{name}") if folder else None
    if found is None and image_id is not None:
        found = tree.find(f"train2017/{image_id:012d}.jpg") or tree.find(f"val2017/{image_id:012d}.jpg")
    return found or tree.find(name)
