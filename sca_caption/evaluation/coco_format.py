"""Predicted captions and reference captions in COCO's JSON formats: reading, checking, matching by image."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sca_caption.runtime.errors import UserError

MAX_LISTED = 3  # names in an error message


@dataclass(frozen=True)
class ReferenceImage:
    """An image of a data set with its reference captions."""

    image_id: Any  # None if the data set has no image ids
    file_name: str | None
    references: Sequence[str]


def read_predictions(path: Path) -> list[dict]:
    """Read a COCO results file, [{"image_id", "caption", optionally "file_name"}, ...], or the output of evaluate.py.

    Raises UserError if it is neither.
    """
    entries = read_json(path)
    if isinstance(entries, dict) and {"metrics", "images"} <= set(entries):
        entries = entries["images"]
    expected = '[{"image_id": 42, "caption": "a dog runs"}, ...]'
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a COCO results file: found {describe(entries)}; give {expected}")
    if not entries:
        raise UserError(f"{path} has no captions; make it with caption.py --output")
    for number, entry in enumerate(entries, 1):
        known = isinstance(entry, dict) and isinstance(entry.get("caption"), str)
        if not known or not isinstance(entry.get("image_id", entry.get("file_name")), int | str):
            raise UserError(f"{path}, entry {number}: found {str(entry)[:80]}; a results file is {expected}")
    return entries


def read_references(path: Path) -> list[ReferenceImage]:
    """Read a COCO captions file ("images" and "annotations") or {file name: [captions]}.

    Raises UserError if the file is neither.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        captions: dict[Any, list[str]] = {}
        try:
            names = {image["id"]: image.get("file_name") for image in content.get("images", [])}
            for annotation in content["annotations"]:
                captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not a COCO captions file: an entry lacks {error}; download it again"
            ) from error
        return [ReferenceImage(image_id, names.get(image_id), texts) for image_id, texts in captions.items()]
    if isinstance(content, dict) and content and all(is_caption_list(texts) for texts in content.values()):
        return [ReferenceImage(None, name, texts) for name, texts in content.items()]
    raise UserError(
        f'{path} has no reference captions: found {describe(content)}; give a COCO captions file ("images", '
        f'"annotations") or {{"photo.jpg": ["a dog runs", ...], ...}}'
    )


def match(
    predictions: Sequence[dict], images: Sequence[ReferenceImage], path: Path
) -> list[tuple[ReferenceImage, str]]:
    """Match predictions to images. Returns (image, predicted caption) pairs in the order of `images`.

    If both sides have file names, they are matched, with their folders if all names are known, otherwise without.
    Otherwise image ids are matched; caption.py numbers the photographs of a folder, so ids alone could match another
    image. Images without a prediction are left out. path: of the predictions, for error messages.

    Raises UserError for a prediction of an unknown image and for two predictions of the same image.
    """
    predicted: list[Any]
    known: list[Any]
    if all("file_name" in p for p in predictions) and all(image.file_name for image in images):
        predicted, known = [str(p["file_name"]) for p in predictions], [str(i.file_name) for i in images]
        if not set(predicted) <= set(known):
            predicted, known = ([Path(name).name for name in names] for names in (predicted, known))
        by = "file_name"
    else:
        predicted = [p.get("image_id") for p in predictions]
        known, by = [image.image_id for image in images], "image_id"
        if isinstance(predicted[0], str) != isinstance(known[0], str):  # "42" and 42 are the same image
            predicted, known = ([str(key) for key in keys] for keys in (predicted, known))
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
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; give a COCO-format file") from error


def is_caption_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


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
