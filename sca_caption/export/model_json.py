"""Read model.json, the description in the folder of an exported model; its fields are documented in `onnx_folder`."""

import json
from pathlib import Path
from typing import Any

from sca_caption.runtime.errors import UserError

FORMAT_VERSION = 5
EARLIER_VERSION = 4  # read as well
DTYPES = ("float32", "int8")
GRAPHS = ("trunk", "step")
DESCRIPTION = "model.json"


def graph_path(folder: Path, name: str, dtype: str) -> Path:
    return (folder if dtype == "float32" else folder / dtype) / f"{name}.onnx"


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of model.json, in the current format. Raises UserError if it is missing or of an unknown format."""
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
    if version == EARLIER_VERSION:
        return upgrade(found)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {version}, this program reads {EARLIER_VERSION} and {FORMAT_VERSION}; use the version of "
            "sca_caption that wrote it, or export again"
        )
    return found


def upgrade(described: dict[str, Any]) -> dict[str, Any]:
    """Format 4, where each guide had a field of its own, in the current format."""
    found = dict(described, format_version=FORMAT_VERSION)
    for name, earlier in (
        ("vocabulary_size", "known"),
        ("bad_endings", "never_last"),
        ("conjunctions", "joining"),
    ):
        found[name] = found.pop(earlier)
    naming, subjects, consensus, calibration = map(
        found.pop, ("naming", "subjects", "consensus", "calibration")
    )
    # Of guides that this version no longer has, the names.
    guides: list[dict[str, Any]] = [
        {"name": name} for name, given in (("objects", naming), ("presence", subjects)) if given
    ]
    if consensus:
        guides.append({"name": "consensus", "prediction": "expected", "idf": consensus["idf"]})
    if calibration:
        rated = calibration.get("consensus")
        ratings = {"consensus": rated} if rated else {}
        guides.append(
            {"name": "confidence", "prediction": None, "slope": calibration["slope"]}
            | {"intercept": calibration["intercept"], "ratings": ratings}
        )
    return found | {"guides": guides}
