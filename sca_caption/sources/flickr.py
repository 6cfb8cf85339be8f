"""Flickr8k and Flickr30k: the official text files, Kaggle's, and Karpathy's JSON."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .captions import Gathered, hash_split
from .files import Tree, text_of
from .karpathy import read_karpathy
from .records import Source


@dataclass(frozen=True)
class Layout:
    """The file names of one of the two data sets, and the sizes of its usual validation and test splits."""

    name: str
    token: str  # "image.jpg#0<TAB>caption" lines
    kaggle: tuple[str, ...]  # tables with a header
    split_list: str  # one image name a line; {} is train, dev or test
    karpathy: str
    images: str  # the images' usual archive or folder, for messages
    val: int
    test: int
    where: str


FLICKR8K = Layout(
    name="flickr8k", token="Flickr8k.token.txt", kaggle=("captions.txt",), split_list="Flickr_8k.{}Images.txt",
    karpathy="dataset_flickr8k.json", images="Flickr8k_Dataset.zip or its folder", val=1000, test=1000,
    where="Kaggle's adityajn105/flickr8k, or the University of Illinois' Flickr8k_Dataset.zip and Flickr8k_text.zip; "
    "see data/README.md",
)
FLICKR30K = Layout(
    name="flickr30k", token="results_20130124.token", kaggle=("results.csv", "captions.txt"),
    split_list="Flickr_30k.{}Images.txt", karpathy="dataset_flickr30k.json", images="flickr30k_images",
    val=1014, test=1000,
    where="Kaggle's hsankesara/flickr-image-dataset, or the University of Illinois' request form; see data/README.md",
)
OTHERS = ("flickr8k", "flickr30k", "coco")


def read_flickr8k(root: Path) -> Source:
    """Return Flickr8k found under `root`; UserError lists what was looked for where something is lacking."""
    return read_flickr(FLICKR8K, root)


def read_flickr30k(root: Path) -> Source:
    """Return Flickr30k found under `root`; UserError lists what was looked for where something is lacking."""
    return read_flickr(FLICKR30K, root)


def read_flickr(layout: Layout, root: Path) -> Source:
    """Captions with split lists if there are both; else Karpathy's JSON; else captions with a split by hash."""
    tree = Tree(root, layout.name, tuple(name for name in OTHERS if name != layout.name))
    lists = {split: tree.find(layout.split_list.format(theirs))
             for split, theirs in (("train", "train"), ("val", "dev"), ("test", "test"))}
    found = next(filter(None, (tree.find(name) for name in (layout.token, *layout.kaggle))), None)
    karpathy = tree.find(layout.karpathy)
    gathered = Gathered(root, tree.problems)
    if found and all(lists.values()):
        read_captions(*found, gathered)
        used = f"{found[0]} with the official split lists {layout.split_list.format('{train,dev,test}')}"
        for split, (path, read) in lists.items():
            for name in text_of(read(), path, tree.problems).split():
                gathered.assign(name, split)
    elif karpathy:
        read_karpathy(*karpathy, gathered)
        used = f"{karpathy[0]} (Karpathy's captions and splits)"
    elif found:
        read_captions(*found, gathered)
        names = list(gathered.captions)
        val, test = min(layout.val, len(names) // 8), min(layout.test, len(names) // 8)
        for name, split in hash_split(names, val=val, test=test).items():
            gathered.assign(name, split)
        used = (f"{found[0]}; no official split found, so images are ordered by the SHA-256 of their names: "
                f"the first {val} are val, the next {test} test, the rest train")
    else:
        captions = ", ".join((layout.token, *layout.kaggle, layout.karpathy))
        raise UserError(
            f"no captions of {layout.name} under {root}: looked for {captions} (in folders at most 4 deep and in zips)"
            f"{also(tree)}; get it from {layout.where}"
        )
    records = gathered.records(tree.find)
    if gathered.all_missing(records):
        raise UserError(
            f"no images of {layout.name} under {root}: {used} lists {len(records)}, looked for {layout.images} "
            f"(in folders at most 4 deep and in zips){also(tree)}; get it from {layout.where}"
        )
    return Source(layout.name, f"{layout.name} from {used}", records, tree.problems)


def also(tree: Tree) -> str:
    """Return what else a message about a lacking file should say: damaged zips and archives left packed."""
    notes = [f"{path} is {reason}" for path, reason in tree.problems]
    notes += [f"{path} must be unpacked first" for path in tree.packed]
    return "".join(f"; {note}" for note in notes[:3])


def read_captions(path: str, read, gathered: Gathered) -> None:
    """Read one of the three text formats, told apart by the first line."""
    lines = text_of(read(), path, gathered.problems).splitlines()
    header = lines[0].lower().replace(" ", "") if lines else ""
    if header.startswith("image_name|"):
        parse, lines = pipe_row, lines[1:]
    elif header.startswith("image,caption"):
        parse, lines = comma_row, lines[1:]
    elif header.startswith("image_name,comment_number,comment"):
        parse, lines = numbered_comma_row, lines[1:]
    else:
        parse = token_row
    for line in lines:
        if not line.strip():
            continue
        row = parse(line)
        if row is None:
            gathered.problem(line[:80], f"not a caption line of {path}; left out")
        else:
            gathered.add(*row)


def token_row(line: str) -> tuple[str, str | None, str] | None:
    """`name.jpg#0<TAB>caption` -> (name, number, caption)."""
    key, tab, caption = line.partition("\t")
    name, mark, number = key.strip().rpartition("#")
    return (name, number, caption) if tab and mark and name else None


def unquote(field: str) -> str:
    field = field.strip()
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def comma_row(line: str) -> tuple[str, str | None, str] | None:
    """`name.jpg,caption`, the caption quoted or not, with commas or not. Rows are not numbered."""
    name, comma, caption = line.partition(",")
    return (unquote(name), None, unquote(caption)) if comma and name.strip() else None


def numbered_comma_row(line: str) -> tuple[str, str | None, str] | None:
    """`name.jpg,0,caption`."""
    fields = line.split(",", 2)
    return (unquote(fields[0]), fields[1].strip(), unquote(fields[2])) if len(fields) == 3 else None


def pipe_row(line: str) -> tuple[str, str | None, str] | None:
    """`name.jpg| 0| caption`; also Kaggle's broken `2199199.jpg| 4   A dog runs across the grass .`"""
    fields = line.split("|", 2)
    if len(fields) == 3:
        return fields[0].strip(), fields[1].strip(), unquote(fields[2])
    broken = re.fullmatch(r"\s*(\d+)\s+(.+)", fields[-1]) if len(fields) == 2 else None
    return (fields[0].strip(), broken[1], broken[2]) if broken else None
