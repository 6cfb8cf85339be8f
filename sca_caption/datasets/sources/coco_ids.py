"""Lists of COCO's photographs with their splits: a CSV with the columns id and split. One list is packaged.

id,split
9,train
25,val
"""

import csv
from importlib import resources
from pathlib import Path
from typing import Any

from sca_caption.datasets.sources.file_tree import DiskFile, read_lines
from sca_caption.datasets.sources.records import SPLITS
from sca_caption.runtime.errors import UserError

LARGEST = 2**63 - 1  # id that a data file holds
EVERYDAY = "everyday"  # stands for the packaged list
EXPECTED = f"expected a CSV with the columns id and split, or {EVERYDAY} for the packaged list"


def plain_id(image_id: Any) -> Any:
    """The number that an image id spells: "000000000009" and 9 are the same image. Other ids stay as they are."""
    digits = image_id.strip() if isinstance(image_id, str) else ""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else image_id


def read_ids(ids: str | Path) -> tuple[dict[int, str], str]:
    """Read a list of COCO's image ids. Returns the split per id, and the name of the list.

    ids: a CSV file, or EVERYDAY for the packaged list. Raises UserError if it is missing or not such a list.
    """
    if str(ids) == EVERYDAY:
        text = (resources.files("sca_caption.datasets") / "everyday_ids.csv").read_text("utf-8")
        lines, name = text.splitlines(), EVERYDAY
    else:
        path = Path(ids)
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"--ids {path} {found}; {EXPECTED}")
        lines, name = read_lines((str(path), DiskFile(str(path))), []), str(path)
    rows = csv.DictReader(lines, skipinitialspace=True)
    if not {"id", "split"} <= set(rows.fieldnames or ()):
        raise UserError(f"--ids {name} begins with {lines[0][:50] if lines else ''!r}; {EXPECTED}")
    splits: dict[int, str] = {}
    for number, row in enumerate(rows, 2):
        image_id, split = (row["id"] or "").strip(), (row["split"] or "").strip()
        if not (image_id.isascii() and image_id.isdigit()):
            raise UserError(
                f"--ids {name}, row {number}: id {image_id!r} is not a number; write COCO's image id"
            )
        if split not in SPLITS:
            raise UserError(f"--ids {name}, row {number}: split {split!r}; write one of: {', '.join(SPLITS)}")
        if splits.setdefault(int(image_id), split) != split:
            raise UserError(
                f"--ids {name}, row {number}: id {image_id} is in {splits[int(image_id)]} and in {split}; "
                "list it once"
            )
    if not splits:
        raise UserError(f"--ids {name} lists no photographs; add rows of id and split")
    return splits, Path(name).name
