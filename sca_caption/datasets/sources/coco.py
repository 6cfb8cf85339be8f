"""MSCOCO from Karpathy's JSON or from the official captions files, with the images of 2014 or 2017.

    annotations/captions_{train,val}{2014,2017}.json
        {"images": [{"id": 391895, "file_name": "000000391895.jpg", ...}],
         "annotations": [{"id": 770337, "image_id": 391895, "caption": "A man ..."}]}
    train2014/COCO_train2014_000000000009.jpg  val2014/...  train2017/000000000009.jpg  val2017/...

If `dataset_coco.json` exists, it is read, because published results use its splits. Otherwise one year of the
official files is read: the year with more complete parts (captions and image folder of train or val), 2017 if
both have as many. Both years have the same photographs in different splits. The official test sets have no
captions, so part of val becomes test: see `read_official`.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sca_caption.datasets.sources.annotations import Annotations, hash_split
from sca_caption.datasets.sources.coco_ids import LARGEST, plain_id, read_ids
from sca_caption.datasets.sources.file_tree import FileTree, FoundFile, read_text
from sca_caption.datasets.sources.karpathy import read_karpathy
from sca_caption.datasets.sources.records import Source
from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.json_text import excerpt, parse_json
from sca_caption.runtime.programs import LAYOUTS

HELD_OUT = 5000  # maximum number of images in val and in test, as in Karpathy's splits
YEARS = ("2017", "2014")
PARTS = ("train", "val")
DOWNLOAD = f"cocodataset.org/#download (see {LAYOUTS})"


def read_coco(
    root: Path, *, restval: str = "train", year: str | None = None, ids: str | Path | None = None
) -> Source:
    """Read MSCOCO from `root`.

    restval: "train" adds the validation images outside val and test to train; "omit" skips them.
    year: "2014" or "2017" reads the official captions of that year; None chooses as in the module's docstring.
    ids: a list of photographs with their splits, see coco_ids.py; the official captions of all years are read.
    Raises UserError if files are missing; the message lists them and where to download them.
    """
    choice(restval, ("train", "omit"), "restval")
    if year is not None:
        choice(year, YEARS, "year")
    if ids is not None:
        return read_listed(root, ids, YEARS if year is None else (year,))
    tree = FileTree(root, "coco")
    annotations = Annotations(root, tree.problems)
    karpathy = tree.find("dataset_coco.json")
    if karpathy and year is None:
        folders = read_karpathy(karpathy, annotations, restval=restval)
        used = f"{karpathy[0]} (Karpathy's captions and splits)"
        folder_names = "train2014, val2014 (or train2017, val2017)"
        records = annotations.records(
            lambda name: find_karpathy(tree, folders[name], name, annotations.image_ids.get(name)),
            remedy=f"expected {folder_names} in folders and zips{tree.error_hints()}; get them from {DOWNLOAD}",
        )
        return Source("coco", f"coco: {used}, restval: {restval}", records, tree.problems)
    files = {
        y: {part: found for part in PARTS if (found := tree.find(f"captions_{part}{y}.json"))}
        for y in YEARS
        if year in (None, y)
    }
    present = tree.image_folders()
    complete = {y: [part for part in parts if f"{part}{y}" in present] for y, parts in files.items()}
    best = max(complete, key=lambda y: len(complete[y]))  # the first of YEARS if several are equal
    if not complete[best]:
        captions = [found[0] for parts in files.values() for found in parts.values()]
        raise UserError(
            f"no COCO in {root}: expected dataset_coco.json, annotations/captions_{{train,val}}"
            f"{{{','.join(files)}}}.json and their image folders (train2017, ...) in folders and zips; "
            f"found {'captions without images: ' + ', '.join(captions) if captions else 'no captions'}"
            f"{tree.error_hints()}; get them from {DOWNLOAD}"
        )
    for part, found in files[best].items():
        if part not in complete[best]:
            annotations.report(found[0], f"no image folder {part}{best}; this part was skipped")
    return read_official(
        tree, best, {part: files[best][part] for part in complete[best]}, annotations, restval
    )


def read_official(
    tree: FileTree, year: str, files: dict[str, FoundFile], annotations: Annotations, restval: str
) -> Source:
    """Read the official captions of one year. files: "train" and "val" -> the captions file of that part.

    The images of the val part are sorted by the SHA-256 of their names. The first 5,000 are val, the next 5,000
    test, and the rest is restval, as in Karpathy's splits. With fewer than 10,000 images, as in 2017, each of val
    and test gets half of them.
    """
    folders: dict[str, str] = {}
    for part, found in files.items():
        names = read_captions(found, annotations)
        folders |= dict.fromkeys(names, f"{part}{year}")
        if part == "train":
            for name in names:
                annotations.assign(name, "train")
            continue
        test = min(HELD_OUT, len(names) // 2)
        val = min(HELD_OUT, len(names) - test)
        for i, (name, split) in enumerate(hash_split(names, val=val, test=test).items()):
            if i < val + test or restval == "train":
                annotations.assign(name, split)
            else:
                del annotations.captions[name]
        rest = len(names) - val - test
        if rest and restval == "omit":
            annotations.report("restval", f"{rest} images skipped by restval: omit")
    used = ", ".join(found[0] for found in files.values())
    if "val" in files:
        used += (
            f"; val of {year} is split by the SHA-256 of the file names into val ({val}) and test ({test})"
        )
        used += f", the other {rest}: {restval}" if rest else ""
    if "train" not in files:
        used += "; no train part"
    remedy = f"get the images from {DOWNLOAD}"
    records = annotations.records(lambda name: find_official(tree, folders[name], name), remedy=remedy)
    return Source("coco", f"coco: {used}", records, tree.problems)


def find_official(tree: FileTree, folder: str, name: str) -> FoundFile | None:
    """Find an image in the folder of its part, or where its name says if that has folders, as own files have."""
    return tree.find(f"{folder}/{name}") or (tree.find(name) if "/" in name else None)


def read_listed(root: Path, ids: str | Path, years: Sequence[str] = YEARS) -> Source:
    """Read the photographs of a list of ids, from all official captions files and image folders of `years`.

    A photograph has its name of the release of 2017 (000000000009.jpg) in both releases. Those without captions or
    without an image file are counted in one note. Raises UserError if none is found.
    """
    splits, name_of_list = read_ids(ids)
    tree = FileTree(root, "coco")
    annotations = Annotations(root, tree.problems)
    images = {image_id: found for image_id in splits if (found := find_listed(tree, image_id, years))}
    files = [found for year in years for part in PARTS if (found := tree.find(f"captions_{part}{year}.json"))]
    used = []
    for found in files:
        wanted = {image_id for image_id in images if f"{image_id:012d}.jpg" not in annotations.captions}
        if not wanted:
            break
        used.append(found[0])
        for image_id, number, caption in parse_captions(found, annotations.problems)[1]:
            if image_id in wanted:
                annotations.add(f"{image_id:012d}.jpg", number, caption)
    for image_id, split in splits.items():
        name = f"{image_id:012d}.jpg"
        if name in annotations.captions:
            annotations.assign(name, split)
            annotations.image_ids[name] = image_id
    missing = len(splits) - len(annotations.captions)
    if missing == len(splits):
        raise UserError(
            f"none of the {missing} ids of {name_of_list} was found in {root}: "
            f"{len(images)} of their images and {len(files)} captions files; expected annotations/captions_"
            f"{{train,val}}{{{','.join(years)}}}.json and their image folders{tree.error_hints()}; "
            f"get them from {DOWNLOAD}"
        )
    if missing:
        annotations.report(str(name_of_list), f"ids that were not found: {missing} of {len(splits)}; skipped")
    records = annotations.records(
        lambda name: images[annotations.image_ids[name]], remedy=f"get the images from {DOWNLOAD}"
    )
    return Source(
        "coco", f"coco: {', '.join(used)}; ids and splits of {name_of_list}", records, tree.problems
    )


def find_listed(tree: FileTree, image_id: int, years: Sequence[str]) -> FoundFile | None:
    """Find the image of an id under the names and in the folders of `years`."""
    for year in years:
        for part in PARTS:
            prefix = f"COCO_{part}2014_" if year == "2014" else ""
            if found := tree.find(f"{part}{year}/{prefix}{image_id:012d}.jpg"):
                return found
    return None


def keep_needed_fields(entry: dict) -> dict | tuple:
    """Reduce a JSON object to a tuple of the needed fields while it is parsed, to save memory.

    Returns (image_id, annotation id, caption) for an annotation and (id, file_name) for an image.
    """
    if "caption" in entry:
        return entry["image_id"], entry.get("id"), entry["caption"]
    if "file_name" in entry:
        return entry["id"], entry["file_name"]
    return entry


Caption = tuple[int, int | None, str]  # image id, annotation id, caption


def parse_captions(found: FoundFile, problems: list[tuple[str, str]]) -> tuple[dict[int, str], list[Caption]]:
    """Parse an official captions file. Returns the file name per image id, and the captions.

    Adds captions that are no text to `problems`. Raises UserError if it is not COCO's captions JSON.
    """
    try:
        content = parse_json(read_text(found, problems), keep_needed_fields)
        names = {plain_id(image_id): file_name(name) for image_id, name in content["images"]}
        captions = []
        for entry in content["annotations"]:
            if not isinstance(entry, tuple) or len(entry) != 3:
                raise KeyError("caption")
            image_id, number, caption = plain_id(entry[0]), entry[1], entry[2]
            if isinstance(caption, str):
                captions.append((image_id, number, caption))
            else:
                item = f"{found[0]} annotation {number}"
                problems.append((item, f"its caption is {excerpt(caption)}, not text; skipped"))
        if content["annotations"] and not captions:
            raise TypeError("captions must be strings")
        hash(tuple(image_id for image_id, _, _ in captions))  # raises TypeError for lists and objects
        return names, captions
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{found[0]} is not COCO's captions JSON ({type(error).__name__}: {error}); get it from {DOWNLOAD}"
        ) from error


def file_name(name: str) -> str:
    """The name of an image with / between folders. Raises TypeError if it is no text."""
    if not isinstance(name, str):
        raise TypeError(f"file_name {name!r}")
    return str(PurePosixPath(name.replace("\\", "/")))


def read_captions(found: FoundFile, annotations: Annotations) -> list[str]:
    """Add the captions of one official file. Returns the names of its images with captions."""
    names, captions = parse_captions(found, annotations.problems)
    for name in names.values():
        annotations.captions.setdefault(name, {})
    for image_id, number, caption in captions:
        if image_id in names:
            annotations.add(names[image_id], number, caption)
        else:
            annotations.report(
                f"{found[0]} image {image_id}", "has a caption but is not in the list of images; skipped"
            )
    annotations.image_ids |= {
        name: image_id
        for image_id, name in names.items()
        if isinstance(image_id, int) and abs(image_id) <= LARGEST
    }
    return [name for name in names.values() if annotations.captions[name]]


def find_karpathy(tree: FileTree, folder: str, name: str, image_id: int | None) -> FoundFile | None:
    """Find an image of Karpathy's JSON in its `folder`, by its name in the release of 2017, or in any folder."""
    found = tree.find(f"{folder}/{name}") if folder else None
    if found is None and image_id is not None:
        found = tree.find(f"train2017/{image_id:012d}.jpg") or tree.find(f"val2017/{image_id:012d}.jpg")
    return found or tree.find(name)
