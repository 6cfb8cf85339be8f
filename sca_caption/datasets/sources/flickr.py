"""Flickr8k and Flickr30k: the official text files, Kaggle's tables, and Karpathy's JSON.

    Flickr8k.token.txt and
    results_20130124.token (tab)            1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress ...
    captions.txt (Kaggle)                   image,caption
                                            1000268201_693b08cb0e.jpg,A child in a pink dress ...
    results.csv (Kaggle)                    image_name| comment_number| comment
                                            1000092795.jpg| 0| Two young guys with shaggy hair ...
    Flickr_8k.{train,dev,test}Images.txt    one image name per line

Reads the captions with the split lists if all exist, otherwise Karpathy's JSON, otherwise the captions alone. Captions
without splits are split by the SHA-256 of the image names.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sca_caption.datasets.sources.annotations import Annotations
from sca_caption.datasets.sources.file_tree import IMAGE_SUFFIXES, FileTree, FoundFile, read_lines
from sca_caption.datasets.sources.karpathy import read_karpathy
from sca_caption.datasets.sources.records import Source
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import LAYOUTS

Row = tuple[str, str | None, str]  # image name, caption number (None if the format has no numbers), caption


@dataclass(frozen=True)
class Layout:
    """The file names of Flickr8k or Flickr30k, and the sizes of its usual validation and test splits."""

    name: str
    captions: tuple[str, ...]  # the first existing file is read
    split_list: str  # {} stands for train, dev or test
    karpathy: str
    images: str  # for error messages
    val: int  # images
    test: int  # images
    download: str  # for error messages


FLICKR8K = Layout(
    name="flickr8k",
    captions=("Flickr8k.token.txt", "captions.txt"),
    split_list="Flickr_8k.{}Images.txt",
    karpathy="dataset_flickr8k.json",
    images="Flickr8k_Dataset.zip or a folder of its images",
    val=1000,
    test=1000,
    download=f"kaggle.com/datasets/adityajn105/flickr8k or the official zips (see {LAYOUTS})",
)
FLICKR30K = Layout(
    name="flickr30k",
    captions=("results_20130124.token", "results.csv", "captions.txt"),
    split_list="Flickr_30k.{}Images.txt",
    karpathy="dataset_flickr30k.json",
    images="flickr30k_images or a zip of it",
    val=1014,
    test=1000,
    download=f"kaggle.com/datasets/hsankesara/flickr-image-dataset or the official page (see {LAYOUTS})",
)


def read_flickr8k(root: Path) -> Source:
    """Read Flickr8k from `root`. Raises UserError if files are missing; the message lists them."""
    return read_flickr(FLICKR8K, root)


def read_flickr30k(root: Path) -> Source:
    """Read Flickr30k from `root`. Raises UserError if files are missing; the message lists them."""
    return read_flickr(FLICKR30K, root)


def read_flickr(layout: Layout, root: Path) -> Source:
    """Read the data set with the file names of `layout` from `root`."""
    tree = FileTree(root, layout.name)
    captions = next(filter(None, map(tree.find, layout.captions)), None)
    lists = {
        split: tree.find(layout.split_list.format(name))
        for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))
    }
    karpathy = tree.find(layout.karpathy)
    annotations = Annotations(root, tree.problems)
    if captions and all(lists.values()):
        read_captions(captions, annotations)
        for split, found in lists.items():
            assert found
            for name in read_lines(found, tree.problems):
                annotations.assign(name.strip(), split)
        used = f"{captions[0]} with the split lists {layout.split_list.format('{train,dev,test}')}"
    elif karpathy:
        read_karpathy(karpathy, annotations)
        used = f"{karpathy[0]} (Karpathy's captions and splits)"
    elif captions:
        read_captions(captions, annotations)
        count = sum(map(bool, annotations.captions.values()))
        val, test = min(layout.val, count // 8), min(layout.test, count // 8)
        annotations.assign_by_hash(val=val, test=test)
        used = (
            f"{captions[0]} without split lists; the images are sorted by the SHA-256 of their names:"
            f" the first {val} are val, the next {test} test, the rest train"
        )
    else:
        raise UserError(
            f"no captions of {layout.name} in {root}: expected {', '.join(layout.captions)},"
            f" {layout.karpathy} in folders and zips{tree.error_hints()}; get it from {layout.download}"
        )
    remedy = f"expected {layout.images}{tree.error_hints()}; get it from {layout.download}"
    records = annotations.records(tree.find, remedy=remedy)
    return Source(layout.name, f"{layout.name}: {used}", records, tree.problems)


def read_captions(found: FoundFile, annotations: Annotations) -> None:
    """Read a captions file. Its first line determines the format; a file without a header has token rows."""
    path, lines = found[0], read_lines(found, annotations.problems)
    header = re.sub(r"[\s\"]", "", lines[0].lower()) if lines else ""
    parse = next((parse for start, parse in HEADERS.items() if header.startswith(start)), parse_token_row)
    not_images = set()
    for line in lines if parse is parse_token_row else lines[1:]:
        row = parse(line)
        if row is None:
            annotations.report(line[:80], f"not a caption line of {path}; skipped")
        elif row[0].lower().endswith(IMAGE_SUFFIXES):
            annotations.add(*row)
            if parse is parse_pipe_row and line.count("|") < 2:
                annotations.report(
                    f"{row[0]}#{row[1]}", "no bar between number and caption; read nevertheless"
                )
        elif row[0] not in not_images:  # Flickr8k.token.txt has 2258277193_586949ec62.jpg.1, five times
            not_images.add(row[0])
            annotations.report(row[0], "not an image name; skipped with its captions")


def parse_token_row(line: str) -> Row | None:
    """Parse `name.jpg#0<TAB>caption`. Like the other parsers, returns None for another kind of line."""
    key, tab, caption = line.partition("\t")
    name, mark, number = key.strip().rpartition("#")
    return (name, number, caption) if tab and mark and name else None


def parse_comma_row(line: str) -> Row | None:
    """Parse `name.jpg,caption`. The caption may be quoted and may have commas, quoted or not."""
    name, comma, caption = line.partition(",")
    return (unquote(name), None, unquote(caption)) if comma and name.strip() else None


def parse_numbered_comma_row(line: str) -> Row | None:
    """Parse `name.jpg,0,caption`."""
    fields = line.split(",", 2)
    return (unquote(fields[0]), fields[1].strip(), unquote(fields[2])) if len(fields) == 3 else None


def parse_pipe_row(line: str) -> Row | None:
    """Parse `name.jpg| 0| caption`, or without the second bar `2199199.jpg| 4   A dog runs across the grass .`,
    which occurs in Kaggle's file.
    """
    fields = line.split("|", 2)
    if len(fields) == 3:
        return fields[0].strip(), fields[1].strip(), fields[2]
    broken = re.fullmatch(r"\s*(\d+)\s+(\S.*)", fields[-1]) if len(fields) == 2 else None
    return (fields[0].strip(), broken[1], broken[2]) if broken else None


def unquote(field: str) -> str:
    """Strip white space, then a pair of double quotes, as CSV quotes a field."""
    field = field.strip()
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


HEADERS = {
    "image_name|comment_number|": parse_pipe_row,
    "image_name,comment_number,": parse_numbered_comma_row,
    "image,caption": parse_comma_row,
}
