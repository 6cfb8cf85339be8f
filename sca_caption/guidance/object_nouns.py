"""Everyday nouns for ImageNet's classes: which words say what is in a picture, and which classes each noun stands for.

The table is nouns.txt, beside this file; it says itself how it is to be read.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sca_caption.runtime.errors import UserError

TABLE = Path(__file__).with_name("object_nouns.txt")
CLASSES = 1000


@dataclass(frozen=True)
class Noun:
    """`forms` are all that mention it, `name` and `plural` among them; `classes` are numbers in ImageNet's order.

    `kind` is the heading that it stands under.
    """

    kind: str
    name: str
    plural: str | None
    forms: tuple[str, ...]
    classes: tuple[int, ...]

    @cached_property
    def _pattern(self) -> re.Pattern:
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, self.forms))})(?![\w-])")

    def is_in(self, caption: str) -> bool:
        """Whether a lower-cased caption has one of the forms, as whole words."""
        return self._pattern.search(caption) is not None


def read_nouns(path: Path = TABLE, classes: int = CLASSES) -> tuple[Noun, ...]:
    """The table's nouns, in its order. Raises UserError for a line that is not as the table says."""
    nouns: list[Noun] = []
    kind = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            kind = line.strip(" []")
            continue
        try:
            name, others, ranges = (part.strip() for part in line.split("|"))
            listed = [form.strip() for form in others.split(",")] if others else []
            found = [index for part in ranges.split() for index in _numbers(part)]
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: {line!r} is not noun | forms | classes; e.g. cat | cats, kitten | 281-285"
            ) from error
        plural = listed[0] if listed and listed[0] != "-" else None
        forms = dict.fromkeys(form for form in (name, *listed) if form != "-")
        if not name or "" in forms or not found or len(set(found)) < len(found) or max(found) >= classes:
            raise UserError(
                f"{path}, line {number}: {line!r} needs a noun, and different classes from 0 to {classes - 1}"
            )
        if name in {noun.name for noun in nouns}:
            raise UserError(f"{path}, line {number}: {name!r} has a line already; put its classes there")
        nouns.append(Noun(kind, name, plural, tuple(forms), tuple(found)))
    return tuple(nouns)


def _numbers(part: str) -> range:
    """ "281-285" -> 281, ..., 285; "281" -> 281."""
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)
