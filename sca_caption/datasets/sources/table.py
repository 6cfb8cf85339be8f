"""A user's own data set: a CSV or TSV table with a header, or JSON Lines.

    image,caption,split                       {"image": "a.jpg", "caption": "a dog runs", "split": "train"}
    a.jpg,a dog runs,train                    {"image": "b.jpg", "captions": ["a cat", "a cat on a sofa"]}
    a.jpg,"a dog, running on grass",train

An image with several captions has several rows, or a list in `captions`. The delimiter is the one of , ; tab |
with which the header names both columns. `split` is optional: without it, 5 % of the images (at least one) are val
and as many test, by the SHA-256 of their names. An image path is relative to the table's folder, to `root` or to
`images/`; otherwise it is searched in all folders below.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from sca_caption.datasets.sources.annotations import Annotations
from sca_caption.datasets.sources.file_tree import DiskFile, FileTree, FoundFile, read_text
from sca_caption.datasets.sources.records import Source
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.json_text import excerpt, parse_json
from sca_caption.runtime.programs import LAYOUTS

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
HELD_OUT = 0.05  # fraction of the images in val, and in test
QUOTED_LINES = 20  # a quoted field with more lines is taken for a quote that was never closed
EXPECTED_HEADER = f"make its first line image,caption or image,caption,split (see {LAYOUTS})"
Row = tuple[
    str | None, list[str], str
]  # image (None without the column), captions, split ("" if none is given)


def read_table(root: Path) -> Source:
    """Read the data set of a table. root: the table, or the folder or zip that contains it.

    Raises UserError if there is no table, if there are several and none has a name of NAMES, if the table has no
    header, and if no image was found.
    """
    inside = root.parent if root.suffix.lower() in (*SUFFIXES, ".txt") and root.is_file() else root
    tree = FileTree(inside)
    path, file = (root.name, DiskFile(str(root))) if inside != root else find_table(tree, root)
    annotations = Annotations(inside, tree.problems)
    text = read_text((path, file), tree.problems)
    read_rows = read_json_rows if path.lower().endswith(".jsonl") else read_csv_rows
    unsplit = set()
    for image, captions, split in read_rows(text, path, annotations):
        assert image is not None, "both readers require an image"
        name = str(PurePosixPath(image.strip().replace("\\", "/")))
        for caption in captions:
            if " ".join(caption.split()) in annotations.captions.get(name, {}).values():
                annotations.report(name, f"repeated caption {caption[:60]!r}; skipped")
            else:
                annotations.add(name, None, caption)
        split = split.strip().lower()
        if split in SPLIT_NAMES:
            annotations.assign(name, SPLIT_NAMES[split])
        elif split:
            annotations.report(name, f"unknown split {split!r}; ignored")
        else:
            unsplit.add(name)
    used = f"{path} with its own splits"
    if unsplit and unsplit == set(annotations.captions):
        count = sum(map(bool, annotations.captions.values()))
        held = max(1, round(HELD_OUT * count)) if count > 2 else 0
        annotations.assign_by_hash(val=held, test=held)
        used = (
            f"{path} without splits; the images are sorted by the SHA-256 of their names:"
            f" the first {held} are val, the next {held} test, the rest train"
        )
    base = path.rpartition("/")[0] if inside == root else ""
    remedy = "give image paths relative to the table, to --root or to its folder images/"
    records = annotations.records(lambda name: find_image(tree, base, name, annotations), remedy=remedy)
    return Source("csv", f"csv: {used}", records, tree.problems)


def find_table(tree: FileTree, root: Path) -> FoundFile:
    """Find the table of a folder or zip: a name of NAMES, or the only CSV, TSV or JSONL file."""
    found = next(filter(None, map(tree.find, NAMES)), None)
    others = sorted(entry for name in tree.entries if name.endswith(SUFFIXES) for entry in tree.entries[name])
    if found is None and len(others) == 1:
        found = others[0]
    if found is None:
        names = ", ".join(path for path, _ in others[:5])
        raise UserError(
            f"no table of captions in {root}: expected {', '.join(NAMES)}, "
            + (
                f"found {names}; give one as --root FILE"
                if others
                else f"found no CSV, TSV or JSONL file; see {LAYOUTS}"
            )
        )
    return found


def find_image(tree: FileTree, base: str, name: str, annotations: Annotations) -> FoundFile | None:
    """Find an image by its path in the table: relative to `base` (the table's folder), to the root or to images/.

    Otherwise returns a file of the tree whose path ends with `name`; reports if several do.
    """
    for folder in (base, "", f"{base}/images" if base else "images"):
        path = str(PurePosixPath(folder, name))
        found = tree.find_path(path)
        if found:
            return found
        disk = tree.root / path  # absolute, outside the root, or deeper than MAX_DEPTH
        if os.path.isfile(disk):  # unlike Path.is_file, returns False if the name is too long
            return path, DiskFile(str(disk))
    namesakes = tree.find_all(name)
    if len(namesakes) > 1:
        used, other = namesakes[0][0], namesakes[1][0]
        annotations.report(name, f"several files have this name; used {used}, not {other}")
    return namesakes[0] if namesakes else None


def read_csv_rows(
    text: str,
    path: str,
    annotations: Annotations,
    *,
    columns: Mapping[str, str] = COLUMNS,
    needed: Sequence[str] = ("image", "caption"),
    expected: str = EXPECTED_HEADER,
) -> Iterator[Row]:
    """Yield the rows of a CSV table. Its header names the columns, in any order.

    columns: accepted header -> column. needed: columns that the header must have; "caption" is one of them.
    expected: the end of the error message about the header.
    Raises UserError if the header lacks a needed column, and for a quote that is not closed.
    """
    first = next((line.rstrip("\r\n") for line in split_lines(text) if line.strip()), "")
    for delimiter in DELIMITERS:
        fields = next(csv.reader([first], delimiter=delimiter), [])
        header = [columns.get(field.strip().lower(), "") for field in fields]
        if all(column in header for column in needed):
            break
    else:
        raise UserError(
            f"{path} has no header with {' and '.join(needed)}; "
            f"{f'it begins with {first[:50]!r}' if first else 'it is empty'}; {expected}"
        )
    caption = header.index("caption")
    image = header.index("image") if "image" in header else None
    split = header.index("split") if "split" in header else None
    reader = csv.reader(split_lines(text), delimiter=delimiter, skipinitialspace=True)
    while not any(field.strip() for field in next(reader)):
        pass  # blank lines before the header
    joined, line = 0, reader.line_num + 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {error}; close or double the quote") from error
        if row is None:
            break
        item, lines, line = f"{path}, line {line}", reader.line_num + 1 - line, reader.line_num + 1
        if lines > QUOTED_LINES:
            raise UserError(f"{item}: a quoted field has {lines} lines; close or double the quote")
        if lines > 1:
            annotations.report(item, f"a quoted field has {lines} lines; joined")
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        extra = len(row) - len(header)
        if extra > 0:  # unquoted delimiters; only captions have them
            row[caption : caption + extra + 1] = [f"{delimiter} ".join(row[caption : caption + extra + 1])]
            joined += 1
        name = None if image is None else row[image] if image < len(row) else ""
        if len(row) <= caption or (name is not None and not name.strip()):
            if any(field.strip() for field in row):
                annotations.report(item, f"{len(row)} fields without an image and a caption; skipped")
            continue
        yield name, [row[caption]], row[split] if split is not None and split < len(row) else ""
    if joined:
        annotations.report(path, f"{joined} rows with an unquoted {delimiter!r}; read as part of the caption")


def split_lines(text: str) -> Iterator[str]:
    """Yield lines with their line ends, as csv.reader needs them. io.StringIO would copy the text, 4 bytes per letter."""
    return (found[0] for found in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))


def read_json_rows(text: str, path: str, annotations: Annotations) -> Iterator[Row]:
    """Yield the rows of JSON Lines. Each line is an object with image, caption or captions, and optionally split.

    Raises UserError if no line is such an object.
    """
    good = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = {COLUMNS.get(key.strip().lower(), key): value for key, value in parse_json(line).items()}
            given = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
            captions = [caption for caption in given if isinstance(caption, str)]
            if not captions:
                raise TypeError("captions must be strings")
            row = str(entry["image"]), captions, str(entry.get("split") or "")
            for caption in given:
                if not isinstance(caption, str):
                    item = f"{path}, line {number}"
                    annotations.report(item, f"a caption is {excerpt(caption)}, not text; skipped")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = (
                f"lacks {error}" if isinstance(error, KeyError) else "not an object with image and caption"
            )
            annotations.report(f"{path}, line {number}", f"{reason}; skipped")
            continue
        good = True
        yield row
    if not good:
        raise UserError(f'{path} has no line like {{"image": "a.jpg", "caption": "a cat"}}, see {LAYOUTS}')
