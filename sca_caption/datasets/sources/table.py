"""One's own photographs: a CSV (or TSV) with a header, or JSON Lines.

    image,caption,split                       {"image": "a.jpg", "caption": "a dog runs", "split": "train"}
    a.jpg,a dog runs,train                    {"image": "b.jpg", "captions": ["a cat", "a cat on a sofa"]}
    a.jpg,"a dog, running on grass",train

An image with several captions has several rows (or a list in `captions`). The delimiter, one of , ; tab |, is
the one with which the header reads. `split` is optional: without it 5 % of the images (at least one) are val
and as many test, by the SHA-256 of their names. Images are looked for beside the file, under `root`, in
`images/`, then anywhere below.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sca_caption.datasets.sources.annotations import Gathered
from sca_caption.datasets.sources.file_tree import DiskFile, Found, Tree, text_of
from sca_caption.datasets.sources.records import Source
from sca_caption.runtime.errors import UserError

DELIMITERS = (",", ";", "\t", "|")
COLUMNS = {  # accepted header -> column
    "image": "image", "file_name": "image", "filename": "image",
    "caption": "caption", "captions": "caption", "text": "caption", "split": "split",
}  # fmt: skip
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
NAMES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
SUFFIXES = (".csv", ".tsv", ".jsonl")
HELD_OUT = 0.05  # of the images, for each of val and test
QUOTED_LINES = 20  # a field that spans more lines than this is a quote that was never closed
HOW = "make its first line image,caption or image,caption,split (see data/README.md)"
Row = tuple[str, list[str], str]  # image, captions, split ("" where there is none)


def read_table(root: Path) -> Source:
    """Return the data set of a table: `root` is the file, or the folder or zip that holds it.

    Raises UserError: no such file, several and none of a usual name, no header, or no image found."""
    inside = root.parent if root.suffix.lower() in (*SUFFIXES, ".txt") and root.is_file() else root
    tree = Tree(inside)
    path, file = (root.name, DiskFile(str(root))) if inside != root else find_table(tree, root)
    gathered = Gathered(inside, tree.problems)
    text = text_of((path, file), tree.problems)
    rows_of = json_rows if path.lower().endswith(".jsonl") else csv_rows
    unsplit = set()
    for image, captions, split in rows_of(text, path, gathered):
        name = str(PurePosixPath(image.strip().replace("\\", "/")))
        for caption in captions:
            if " ".join(caption.split()) in gathered.captions.get(name, {}).values():
                gathered.problem(name, f"repeated caption {caption[:60]!r}; left out")
            else:
                gathered.add(name, None, caption)
        split = split.strip().lower()
        if split in SPLIT_NAMES:
            gathered.assign(name, SPLIT_NAMES[split])
        elif split:
            gathered.problem(name, f"unknown split {split!r}; the row counts only if another names its split")
        else:
            unsplit.add(name)
    used = f"{path} with its own splits"
    if unsplit and unsplit == set(gathered.captions):
        count = sum(map(bool, gathered.captions.values()))
        held = max(1, round(HELD_OUT * count)) if count > 2 else 0
        gathered.assign_by_hash(val=held, test=held)
        used = (
            f"{path}; it names no splits, so the images are ordered by the SHA-256 of their names:"
            f" the first {held} are val, the next {held} test, the rest train"
        )
    base = path.rpartition("/")[0] if inside == root else ""
    looked_for = "image paths are relative to the table, to --root or to its folder images/"
    records = gathered.records(lambda name: find_image(tree, base, name, gathered), looked_for=looked_for)
    return Source("csv", f"csv: {used}", records, tree.problems)


def find_table(tree: Tree, root: Path) -> Found:
    found = next(filter(None, map(tree.find, NAMES)), None)
    others = sorted(entry for name in tree.entries if name.endswith(SUFFIXES) for entry in tree.entries[name])
    if found is None and len(others) == 1:
        found = others[0]
    if found is None:
        names = ", ".join(path for path, _ in others[:5])
        raise UserError(
            f"no table of captions under {root}: looked for {', '.join(NAMES)}, "
            + (f"found {names}; name one with --root FILE" if others else "found no CSV, TSV or JSONL file")
        )
    return found


def find_image(tree: Tree, base: str, name: str, gathered: Gathered) -> Found | None:
    """Find an image by its path as written: beside the table (at `base` in the tree), under the root, in
    images/, or, where only one file's path ends so, anywhere in the tree."""
    for folder in (base, "", f"{base}/images" if base else "images"):
        path = str(PurePosixPath(folder, name))
        found = tree.at(path)
        if found:
            return found
        disk = tree.root / path  # deeper than the tree goes, absolute, or in a folder beside the root
        if os.path.isfile(disk):  # unlike Path.is_file, False for a name too long to be one
            return path, DiskFile(str(disk))
    found = tree.find_all(name)
    if len(found) > 1:
        gathered.problem(name, f"several files are called so; took {found[0][0]}, not {found[1][0]}")
    return found[0] if found else None


def csv_rows(text: str, path: str, gathered: Gathered) -> Iterator[Row]:
    """Yield the rows of a CSV whose header names the image and caption columns, in any order."""
    first = next((line.rstrip("\r\n") for line in split_lines(text) if line.strip()), "")
    for delimiter in DELIMITERS:
        fields = next(csv.reader([first], delimiter=delimiter), [])
        header = [COLUMNS.get(field.strip().lower(), "") for field in fields]
        if "image" in header and "caption" in header:
            break
    else:
        raise UserError(f"{path} has no header with image and caption; it begins {first[:50]!r}; {HOW}")
    image, caption = header.index("image"), header.index("caption")
    split = header.index("split") if "split" in header else None
    reader = csv.reader(split_lines(text), delimiter=delimiter, skipinitialspace=True)
    while not any(field.strip() for field in next(reader)):
        pass  # blank lines before the header
    joined, line = 0, reader.line_num + 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {error}; is a quote left open?") from error
        if row is None:
            break
        item, lines, line = f"{path}, line {line}", reader.line_num + 1 - line, reader.line_num + 1
        if lines > QUOTED_LINES:
            raise UserError(f"{item}: a quoted field runs over {lines} lines; close the quote, or double it")
        if lines > 1:
            gathered.problem(item, f"a quoted field runs over {lines} lines; they were joined")
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        extra = len(row) - len(header)
        if extra > 0:  # delimiters in a caption that is not quoted: the other columns hold none
            row[caption : caption + extra + 1] = [f"{delimiter} ".join(row[caption : caption + extra + 1])]
            joined += 1
        if len(row) <= max(image, caption) or not row[image].strip():
            if any(field.strip() for field in row):
                gathered.problem(item, f"{len(row)} fields and no image with a caption; left out")
            continue
        yield row[image], [row[caption]], row[split] if split is not None and split < len(row) else ""
    if joined:
        gathered.problem(path, f"{joined} rows have {delimiter!r} unquoted; taken as part of the caption")


def split_lines(text: str) -> Iterator[str]:
    """Yield the lines with their ends, as csv wants them; io.StringIO would hold the text again, four bytes a letter."""
    return (found[0] for found in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))


def json_rows(text: str, path: str, gathered: Gathered) -> Iterator[Row]:
    """Yield the rows of JSON Lines: an object a line with image, caption or captions, and perhaps split."""
    good = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = {COLUMNS.get(key.strip().lower(), key): value for key, value in json.loads(line).items()}
            captions = [entry["caption"]] if isinstance(entry["caption"], str) else entry["caption"]
            if not all(isinstance(caption, str) for caption in captions):
                raise TypeError("captions are strings")
            row = str(entry["image"]), captions, str(entry.get("split") or "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else "not an object of image and caption"
            gathered.problem(f"{path}, line {number}", f"{reason}; left out")
            continue
        good = True
        yield row
    if not good:
        raise UserError(f'{path} lacks lines as {{"image": "a.jpg", "caption": "a cat"}}, see data/README.md')
