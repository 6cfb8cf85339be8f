"""Captions without photographs, in groups of captions of the same photograph.

CSV with a header           coco_id,caption      (or image, file, file_name or image_id; or caption alone)
                            9,Closeup of bins of food that include broccoli and bread.
COCO's official captions    {"images": [...], "annotations": [{"image_id": 9, "caption": "Closeup ..."}]}
token file of Flickr30k     1000092795.jpg#0<TAB>Two young guys with shaggy hair ...
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sca_caption.datasets.sources.annotations import Annotations
from sca_caption.datasets.sources.coco import parse_captions
from sca_caption.datasets.sources.file_tree import DiskFile, read_text
from sca_caption.datasets.sources.flickr import parse_token_row
from sca_caption.datasets.sources.photographs import photograph_key, without_folder
from sca_caption.datasets.sources.records import Record
from sca_caption.datasets.sources.table import read_csv_rows, split_lines
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import LAYOUTS
from sca_caption.vocab import has_words

PHOTOGRAPH_COLUMNS = ("image", "file", "file_name", "coco_id", "image_id")
COLUMNS = {"caption": "caption"} | dict.fromkeys(PHOTOGRAPH_COLUMNS, "image")
FORMATS = "a CSV with a column caption, COCO's captions JSON or Flickr30k's token file"
EXPECTED_HEADER = f"expected {FORMATS} (see {LAYOUTS})"
HELD_OUT, IN_TRAIN = "of held-out photographs", "of train photographs"
REPEATED, EMPTY = "repeated", "without words"


@dataclass
class Texts:
    """Captions without photographs. `captions` and `groups` have one entry per caption."""

    description: str  # the names of the files
    captions: list[str]
    groups: list[int]  # ascending from 0 without gaps
    left_out: dict[str, int]  # reason -> number of captions
    problems: list[tuple[str, str]] = field(default_factory=list)  # (item, reason and what was done)


def read_texts(
    paths: Sequence[str | Path], records: Iterable[Record] = (), held_out: Iterable[str] = ()
) -> Texts:
    """Read files of captions, without the captions of photographs of the data set and of held-out photographs.

    records: the photographs of the data set. held_out: file names of further photographs to leave out.
    Raises UserError if a file is missing or of no known format, and if no caption is kept.
    """
    excluded = {without_folder(photograph_key(name)): HELD_OUT for name in held_out}
    for record in records:
        own = without_folder(photograph_key(record.file_name))
        if record.split != "train":
            excluded[own] = HELD_OUT
        else:
            excluded.setdefault(own, IN_TRAIN)
    left_out: Counter[str] = Counter()
    problems: list[tuple[str, str]] = []
    # photograph, or a number without one -> its captions, in reading order
    groups: dict[str | int, dict[str, None]] = {}
    for path in map(Path, paths):
        for name, caption in read_file(path, problems):
            key: str | int = (
                len(groups) if name is None else photograph_key(name)
            )  # without a name: a new group
            reason = None if name is None else excluded.get(without_folder(str(key)))
            caption = " ".join(caption.split())
            if reason is None and not has_words(caption):
                reason = EMPTY
            elif reason is None and caption in groups.get(key, ()):
                reason = REPEATED
            if reason is None:
                groups.setdefault(key, {})[caption] = None
            else:
                left_out[reason] += 1
    if not groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no captions found"
        raise UserError(
            f"no caption of --texts {' '.join(map(str, paths))} is kept ({reasons}); "
            "give a file with captions of other photographs, or leave out --texts"
        )
    return Texts(
        description=", ".join(Path(path).name for path in paths),
        captions=[caption for captions in groups.values() for caption in captions],
        groups=[number for number, captions in enumerate(groups.values()) for _ in captions],
        left_out=dict(left_out),
        problems=problems,
    )


def read_file(path: Path, problems: list[tuple[str, str]]) -> Iterator[tuple[str | int | None, str]]:
    """Yield (photograph or None, caption) of a file. The photograph is a file name or COCO's image id."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"--texts {path} {found}; give {FORMATS}")
    file = str(path), DiskFile(str(path))
    if path.suffix.lower() == ".json":
        for image_id, _, caption in parse_captions(file, problems)[1]:
            yield image_id, caption
        return
    text = read_text(file, problems)
    lines = (line.rstrip("\r\n") for line in split_lines(text) if line.strip())
    first = next(lines, "")
    if parse_token_row(first) is None:
        rows = read_csv_rows(
            text,
            str(path),
            Annotations(path, problems),
            columns=COLUMNS,
            needed=("caption",),
            expected=EXPECTED_HEADER,
        )
        for image, captions, _ in rows:
            yield image, captions[0]
        return
    for line in itertools.chain([first], lines):
        row = parse_token_row(line)
        if row is None:
            problems.append((line[:80], f"not a caption line of {path}; skipped"))
        else:
            yield row[0], row[2]
