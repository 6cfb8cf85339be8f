"""model.json, the description in the folder of an exported model: what the writer and the reader share."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sca_caption.decoding.lexical_constraints import MOST_GROUPS
from sca_caption.guidance.novel_objects import Lexicon, Limits
from sca_caption.guidance.object_nouns import Noun
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import Vocabulary

FORMAT_VERSION = 4
DTYPES = ("float32", "int8")
DESCRIPTION = "model.json"


def graph_path(folder: Path, name: str, dtype: str) -> Path:
    return (folder if dtype == "float32" else folder / dtype) / f"{name}.onnx"


def described(folder: Path) -> dict:
    """What model.json says. Raises UserError where there is none, or one of another format."""
    path = folder / DESCRIPTION
    again = f"python -m sca_caption export --output {folder} writes one"
    if not path.is_file():
        what = f"{folder} lacks {DESCRIPTION}" if folder.is_dir() else f"no folder {folder}"
        raise UserError(f"{what}, so it is no exported model; {again}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or no description of a model; {again}") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {version}, this program reads {FORMAT_VERSION}; use the version of sca_caption that "
            f"wrote it, or export again"
        )
    return found


def naming_of(lexicon: Lexicon) -> dict:
    """All that naming needs, for JSON; see `export`."""
    said = {word for group in lexicon.groups for word in group}
    agreement = [
        [after, [word for word in mask.nonzero().flatten().tolist() if word in said]]
        for after, mask in lexicon.agreement.items()
    ]
    nouns = [
        dataclasses.asdict(noun) | {"group": group}
        for noun, group in zip(lexicon.nouns, lexicon.groups, strict=True)
    ]
    no_compound = lexicon.no_compound.nonzero().flatten().tolist()
    from_constraints = {"most_groups": MOST_GROUPS}
    return vars(lexicon.limits) | from_constraints | {
        "nouns": nouns, "agreement": agreement, "no_compound": no_compound,
    }  # fmt: skip


def lexicon_of(description: dict, words: Vocabulary) -> Lexicon:
    """What `naming_of` wrote."""
    found = description["naming"]
    limits = Limits(**{f.name: found[f.name] for f in dataclasses.fields(Limits)})
    nouns = tuple(
        Noun(each["kind"], each["name"], each["plural"], tuple(each["forms"]), tuple(each["classes"]))
        for each in found["nouns"]
    )
    groups = [each["group"] for each in found["nouns"]]
    agreement = {after: mask_of(wrong, len(words)) for after, wrong in found["agreement"]}
    no_compound = mask_of(found["no_compound"], len(words))
    return Lexicon(nouns, words, description["known"], groups, agreement, no_compound, limits)


def mask_of(ids: Sequence[int], size: int) -> Tensor:
    """True at `ids`: (size,)."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(ids)] = True
    return mask
