"""Read model.json, the description in the folder of an exported model; its fields are documented in `onnx_folder`."""

from pathlib import Path
from typing import Any

from sca_caption.guidance import REMOVED
from sca_caption.runtime.errors import INVALID, UserError
from sca_caption.runtime.json_text import excerpt, parse_json
from sca_caption.vocab import SPECIALS

FORMAT_VERSION = 6
EARLIER_VERSIONS = (4, 5)  # read as well
DTYPES = ("float32", "int8")
GRAPHS = ("trunk", "step")
DESCRIPTION = "model.json"
FIELDS: dict[str, type] = {  # that reading it needs, with their types
    "words": list, "vocabulary_size": int, "transform": dict, "layers": list, "inputs": dict, "outputs": dict,
    "dtypes": list, "search": dict, "bad_endings": list, "conjunctions": list, "guides": list,
}  # fmt: skip
NEEDED = {"trunk": {"hidden", "cell"}, "step": {"logits", "hidden_after", "cell_after"}}  # outputs of graphs


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
        found = parse_json(path.read_text(encoding="utf-8"))
        version = found["format_version"]
        if version not in (*EARLIER_VERSIONS, FORMAT_VERSION):
            raise UserError(
                f"{path} has format {excerpt(version)}, this program reads {EARLIER_VERSIONS[0]} to {FORMAT_VERSION}; "
                "use the version of sca_caption that wrote it, or export again"
            )
        found = upgrade(found)
        check(found)
    except INVALID as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or no description of a model ({reason}); {again}") from error
    return found


def check(found: dict[str, Any]) -> None:
    """Raise ValueError or KeyError where a description does not have the fields that `onnx_folder` documents."""
    for name, kind in FIELDS.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise ValueError(f"{name} is {excerpt(found[name])}")
    for name in ("words", "dtypes"):
        if not all(isinstance(each, str) for each in found[name]):
            raise ValueError(f"{name} has values that are no text")
    words = len(found["words"])
    if not len(SPECIALS) < found["vocabulary_size"] <= words:
        raise ValueError(f"vocabulary_size is {found['vocabulary_size']} of {words} words")
    for name in ("bad_endings", "conjunctions"):
        if not all(type(each) is int and 0 <= each < words for each in found[name]):
            raise ValueError(f"{name} has ids of no words")
    for name in ("inputs", "outputs"):
        for graph, names in found[name].items():
            if not graph.isidentifier() or not all(isinstance(each, str) for each in names):
                raise ValueError(f"{name} has {graph}: {excerpt(names)}")
    for graph, names in NEEDED.items():
        if not names <= set(found["outputs"][graph]) or graph not in found["inputs"]:
            raise ValueError(f"outputs of {graph} are {excerpt(found['outputs'][graph])}")
    predicted = {None}.union(*found["outputs"].values())
    for guide in found["guides"]:
        if guide["name"] in REMOVED:
            continue
        if not isinstance(guide["name"], str) or guide["prediction"] not in predicted:
            raise ValueError(
                f"guide {excerpt(guide['name'])} has no graph that predicts {guide['prediction']}"
            )


def upgrade(described: dict[str, Any]) -> dict[str, Any]:
    """A description of format 4 to 6 in the current format.

    In format 4, each guide had a field of its own. The graphs of formats 4 and 5 have no input `parent`.
    """
    found = dict(described, format_version=FORMAT_VERSION)
    if described["format_version"] != 4:
        return found
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
