"""Flickr8k and Flickr30k: the official text files, Kaggle's tables, and Karpathy's JSON.

    Flickr8k.token.txt and
    results_20130124.token (tab)            1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress ...
    captions.txt (Kaggle)                   image,caption
                                            1000268201_693b08cb0e.jpg,A child in a pink dress ...
    results.csv (Kaggle)                    image_name| comment_number| comment
                                            1000092795.jpg| 0| Two young guys with shaggy hair ...
    Flickr_8k.{train,dev,test}Images.txt    one image name a line

Captions with split lists come first; else Karpathy's JSON; else captions alone, split by hash.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sca_caption.datasets.sources.annotations import Gathered
from sca_caption.datasets.sources.file_tree import IMAGE_SUFFIXES, Found, Tree, lines_of
from sca_caption.datasets.sources.karpathy import read_karpathy
from sca_caption.datasets.sources.records import Source
from sca_caption.runtime.errors import UserError

Row = tuple[str, str | None, str]  # image name, caption number (None where the format has none), caption


@dataclass(frozen=True)
class Layout:
    """The names of one of the two data sets, and the sizes of its usual validation and test splits."""

    name: str
    captions: tuple[str, ...]  # the first that is there is read
    split_list: str  # {} is train, dev or test
    karpathy: str
    images: str  # for messages
    val: int
    test: int
    where: str


FLICKR8K = Layout(
    name="flickr8k",
    captions=("Flickr8k.token.txt", "captions.txt"),
    split_list="Flickr_8k.{}Images.txt",
    karpathy="dataset_flickr8k.json",
    images="Flickr8k_Dataset.zip or a folder of its images",
    val=1000,
    test=1000,
    where="kaggle.com/datasets/adityajn105/flickr8k or the official zips (see data/README.md)",
)
FLICKR30K = Layout(
    name="flickr30k",
    captions=("results_20130124.token", "results.csv", "captions.txt"),
    split_list="Flickr_30k.{}Images.txt",
    karpathy="dataset_flickr30k.json",
    images="flickr30k_images or a zip of it",
    val=1014,
    test=1000,
    where="kaggle.com/datasets/hsankesara/flickr-image-dataset or the official page (see data/README.md)",
)


def read_flickr8k(root: Path) -> Source:
    """Return Flickr8k found under `root`. Raises UserError: what was looked for and where to get it."""
    return read_flickr(FLICKR8K, root)


def read_flickr30k(root: Path) -> Source:
    """Return Flickr30k found under `root`. Raises UserError: what was looked for and where to get it."""
    return read_flickr(FLICKR30K, root)


def read_flickr(layout: Layout, root: Path) -> Source:
    tree = Tree(root, layout.name)
    captions = next(filter(None, map(tree.find, layout.captions)), None)
    lists = {
        split: tree.find(layout.split_list.format(theirs))
        for split, theirs in (("train", "train"), ("val", "dev"), ("test", "test"))
    }
    karpathy = tree.find(layout.karpathy)
    gathered = Gathered(root, tree.problems)
    if captions and all(lists.values()):
        read_captions(captions, gathered)
        for split, found in lists.items():
            for name in lines_of(found, tree.problems):
                gathered.assign(name.strip(), split)
        used = f"{captions[0]} with the split lists {layout.split_list.format('{train,dev,test}')}"
    elif karpathy:
        read_karpathy(karpathy, gathered)
        used = f"{karpathy[0]} (Karpathy's captions and splits)"
    elif captions:
        read_captions(captions, gathered)
        count = sum(map(bool, gathered.captions.values()))
        val, test = min(layout.val, count // 8), min(layout.test, count // 8)
        gathered.assign_by_hash(val=val, test=test)
        used = (
            f"{captions[0]}; no official splits with it, so the images are ordered by the SHA-256 of their"
            f" names: the first {val} are val, the next {test} test, the rest train"
        )
    else:
        raise UserError(
            f"no captions of {layout.name} under {root}: looked for {', '.join(layout.captions)},"
            f" {layout.karpathy} in folders and zips{tree.hints()}; get it from {layout.where}"
        )
    looked_for = f"looked for {layout.images}{tree.hints()}; get it from {layout.where}"
    records = gathered.records(tree.find, looked_for=looked_for)
    return Source(layout.name, f"{layout.name}: {used}", records, tree.problems)


def read_captions(found: Found, gathered: Gathered) -> None:
    """Read one of the text formats, told apart by the first line."""
    path, lines = found[0], lines_of(found, gathered.problems)
    header = re.sub(r"[\s\"]", "", lines[0].lower()) if lines else ""
    parse = next((parse for start, parse in HEADERS.items() if header.startswith(start)), token_row)
    junk = set()
    for line in lines if parse is token_row else lines[1:]:
        row = parse(line)
        if row is None:
            gathered.problem(line[:80], f"not a caption line of {path}; left out")
        elif row[0].lower().endswith(IMAGE_SUFFIXES):
            gathered.add(*row)
            if parse is pipe_row and line.count("|") < 2:
                gathered.problem(f"{row[0]}#{row[1]}", "no bar between number and caption; read all the same")
        elif row[0] not in junk:  # Flickr8k.token.txt has 2258277193_586949ec62.jpg.1, five times
            junk.add(row[0])
            gathered.problem(row[0], "not the name of an image; left out with its captions")


def token_row(line: str) -> Row | None:
    """Read `name.jpg#0<TAB>caption`."""
    key, tab, caption = line.partition("\t")
    name, mark, number = key.strip().rpartition("#")
    return (name, number, caption) if tab and mark and name else None


def comma_row(line: str) -> Row | None:
    """Read `name.jpg,caption`, the caption quoted or not, with commas or not."""
    name, comma, caption = line.partition(",")
    return (unquoted(name), None, unquoted(caption)) if comma and name.strip() else None


def numbered_comma_row(line: str) -> Row | None:
    """Read `name.jpg,0,caption`."""
    fields = line.split(",", 2)
    return (unquoted(fields[0]), fields[1].strip(), unquoted(fields[2])) if len(fields) == 3 else None


def pipe_row(line: str) -> Row | None:
    """Read `name.jpg| 0| caption`, and the row where Kaggle's file lacks a bar:
    `2199199.jpg| 4   A dog runs across the grass .`"""
    fields = line.split("|", 2)
    if len(fields) == 3:
        return fields[0].strip(), fields[1].strip(), fields[2]
    broken = re.fullmatch(r"\s*(\d+)\s+(\S.*)", fields[-1]) if len(fields) == 2 else None
    return (fields[0].strip(), broken[1], broken[2]) if broken else None


def unquoted(field: str) -> str:
    field = field.strip()
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


HEADERS = {
    "image_name|comment_number|": pipe_row,
    "image_name,comment_number,": numbered_comma_row,
    "image,caption": comma_row,
}
