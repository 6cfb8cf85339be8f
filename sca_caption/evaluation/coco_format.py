"""Predicted captions and reference captions in COCO's JSON formats: reading, checking, matching by image."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sca_caption.datasets.sources.coco_ids import plain_id
from sca_caption.runtime.errors import UserError, warn
from sca_caption.runtime.json_text import excerpt, parse_json
from sca_caption.runtime.programs import command

MAX_LISTED = 3  # names in an error message
# In a CSV, a byte of a file name that is not UTF-8, as the error handler "backslashreplace" writes it.
ESCAPED_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")


@dataclass(frozen=True)
class ReferenceImage:
    """An image of a data set with its reference captions."""

    image_id: Any  # None if the data set has no image ids
    file_name: str | None
    references: Sequence[str]


def read_predictions(path: Path) -> list[dict]:
    """Read the captions of a results file, [{"image_id", "caption", optionally "file_name"}, ...].

    The file is COCO's results format, the output of evaluate.py, or what caption.py writes as .jsonl or .csv, whose
    first caption per image counts. Raises UserError if it is none of these.
    """
    expected = '[{"image_id": 42, "caption": "a dog runs"}, ...]'
    readers = {".jsonl": read_json_lines, ".csv": read_csv}
    entries = readers.get(path.suffix.lower(), read_json)(path)
    if isinstance(entries, dict) and {"metrics", "images"} <= set(entries):
        entries = entries["images"]
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a COCO results file: found {describe(entries)}; give {expected}")
    if not entries:
        raise UserError(f"{path} has no captions; make it with {command('caption.py')} --output")
    for number, entry in enumerate(entries, 1):
        known = isinstance(entry, dict) and isinstance(entry.get("caption"), str)
        if not known or not isinstance(entry.get("image_id", entry.get("file_name")), int | str):
            raise UserError(
                f"{path}, entry {number}: found {excerpt(entry, 80)}; a results file is {expected}"
            )
    return entries


def read_json_lines(path: Path) -> list:
    """The values of JSON lines. Raises UserError as `read_json` does."""
    entries = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if line.strip():
            try:
                entries.append(parse_json(line))
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: not JSON ({error}); make it with {command('caption.py')} --output"
                ) from error
    return entries


def read_csv(path: Path) -> list[dict]:
    """The first row of each image of a table with the columns caption and image_id or file_name.

    Raises UserError for another table.
    """
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""))
        columns = set(rows.fieldnames or ())
        if "caption" not in columns or not columns & {"image_id", "file_name"}:
            raise UserError(
                f"{path} has no columns caption and image_id or file_name; found {shorten(sorted(columns))}; "
                f"make it with {command('caption.py')} --output"
            )
        entries: list[dict] = []
        for row in rows:
            entry = {
                name: row[name] for name in ("image_id", "file_name", "caption") if row.get(name) is not None
            }
            if "file_name" in entry:
                entry["file_name"] = ESCAPED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), entry["file_name"])
            last = entries[-1] if entries else {}
            if not entries or any(entry.get(name) != last.get(name) for name in ("image_id", "file_name")):
                entries.append(entry)
        return entries
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not a table in UTF-8 ({error}); make it with {command('caption.py')} --output"
        ) from error


def read_references(path: Path) -> list[ReferenceImage]:
    """Read a COCO captions file ("images" and "annotations") or {file name: [captions]}.

    Captions that are no text, such as null, are skipped with a warning. Raises UserError if the file is neither, and if
    no caption is left.
    """
    content = read_json(path)
    try:
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            names = {plain_id(image["id"]): image.get("file_name") for image in content.get("images", [])}
            captions: dict[Any, list] = {}
            for annotation in content["annotations"]:
                captions.setdefault(plain_id(annotation["image_id"]), []).append(annotation["caption"])
            given = [(image_id, names.get(image_id), texts) for image_id, texts in captions.items()]
        elif isinstance(content, dict) and all(isinstance(texts, list) for texts in content.values()):
            given = [(None, name, texts) for name, texts in content.items()]
        else:
            given = []
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a COCO captions file: an entry lacks {error}; download it again"
        ) from error
    images, skipped = [], []
    for image_id, name, texts in given:
        kept = [text for text in texts if is_caption(text)]
        skipped += [f"{excerpt(text)} of {name or image_id}" for text in texts if not is_caption(text)]
        if kept:
            images.append(ReferenceImage(image_id, name if isinstance(name, str) else None, kept))
    if not images:
        raise UserError(
            f'{path} has no reference captions: found {describe(content)}; give a COCO captions file ("images", '
            f'"annotations") or {{"photo.jpg": ["a dog runs", ...], ...}}'
        )
    if skipped:
        warn(f"{path}: {len(skipped)} references that are no text are skipped: {shorten(skipped)}")
    return images


def match(
    predictions: Sequence[dict], images: Sequence[ReferenceImage], path: Path
) -> list[tuple[ReferenceImage, str]]:
    """Match predictions to images. Returns (image, predicted caption) pairs in the order of `images`.

    If both sides have file names, they are matched, with their folders if all names are known, otherwise without.
    Otherwise image ids are matched, as numbers if they spell one ("000000000009" is 9). caption.py numbers the images of
    a folder, so ids alone could match another image. Images without a prediction are left out. path: of the predictions,
    for error messages.

    Raises UserError for a prediction of an unknown image and for two predictions of the same image.
    """
    predicted: list[Any]
    known: list[Any]
    if all(isinstance(p.get("file_name"), str) for p in predictions) and all(
        image.file_name for image in images
    ):
        predicted, known = [p["file_name"] for p in predictions], [i.file_name for i in images]
        if not set(predicted) <= set(known):
            predicted, known = ([Path(name).name for name in names] for names in (predicted, known))
        by = "file_name"
    else:
        predicted = [plain_id(p.get("image_id")) for p in predictions]
        known, by = [plain_id(image.image_id) for image in images], "image_id"
    repeated = duplicates(predicted)
    if repeated:
        raise UserError(f"{path} has several captions for {by} {shorten(repeated)}; keep one per image")
    expected, wanted = set(known), set(predicted)
    unknown = [key for key in predicted if key not in expected]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(predicted)} captions are of images without references, "
            f"{by} {shorten(unknown)}; give the references of the same images"
        )
    repeated = duplicates(key for key in known if key in wanted)
    if repeated:
        raise UserError(f"the references have several images of {by} {shorten(repeated)}; rename one of them")
    captions = dict(zip(predicted, (p["caption"] for p in predictions), strict=True))
    return [(image, captions[key]) for key, image in zip(known, images, strict=True) if key in captions]


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UserError if it cannot be read or is not JSON."""
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; give a COCO-format file") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error


def is_caption(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def describe(value: Any) -> str:
    """Describe the content of a JSON file, for error messages."""
    if isinstance(value, dict):
        return f"an object with {shorten(value) or 'no fields'}"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:40]


def duplicates(keys: Iterable) -> list:
    """The keys that occur more than once."""
    return [key for key, count in Counter(keys).items() if count > 1]


def shorten(names: Iterable) -> str:
    """The first MAX_LISTED names, for error messages."""
    names = [str(name) for name in names]
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
