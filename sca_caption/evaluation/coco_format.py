"""Captions and reference captions in COCO's JSON formats, read, checked and brought together."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sca_caption.runtime.errors import UserError

SHOWN = 3  # names that a message lists


@dataclass(frozen=True)
class ReferenceImage:
    """An image of a dataset with the captions that people wrote of it."""

    image_id: Any  # None where the dataset has no numbers
    file_name: str | None
    references: Sequence[str]


def read_predictions(path: Path) -> list[dict]:
    """A results file, [{"image_id", "caption", perhaps "file_name"}, ...], or evaluate.py's output.

    Raises UserError.
    """
    entries = read_json(path)
    if isinstance(entries, dict) and {"metrics", "images"} <= set(entries):
        entries = entries["images"]
    expected = '[{"image_id": 42, "caption": "a dog runs"}, ...]'
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a COCO results file: {expected}; found {kind_of(entries)}")
    if not entries:
        raise UserError(f"{path} has no captions in it; make it with caption.py --output")
    for number, entry in enumerate(entries, 1):
        known = isinstance(entry, dict) and isinstance(entry.get("caption"), str)
        if not known or not isinstance(entry.get("image_id", entry.get("file_name")), int | str):
            raise UserError(f"{path}, entry {number}: found {str(entry)[:80]}; a results file is {expected}")
    return entries


def read_references(path: Path) -> list[ReferenceImage]:
    """COCO's captions file ("images" and "annotations"), or {file name: [captions]}. Raises UserError."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        captions: dict[Any, list[str]] = {}
        try:
            names = {image["id"]: image.get("file_name") for image in content.get("images", [])}
            for annotation in content["annotations"]:
                captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a COCO captions file: an entry lacks {error}") from error
        return [ReferenceImage(image_id, names.get(image_id), texts) for image_id, texts in captions.items()]
    if isinstance(content, dict) and content and all(is_texts(texts) for texts in content.values()):
        return [ReferenceImage(None, name, texts) for name, texts in content.items()]
    raise UserError(
        f'{path} holds no reference captions: found {kind_of(content)}; give a COCO captions file ("images", '
        f'"annotations") or {{"photo.jpg": ["a dog runs", ...], ...}}'
    )


def match(
    predictions: Sequence[dict], images: Sequence[ReferenceImage], path: Path
) -> list[tuple[ReferenceImage, str]]:
    """(image, predicted caption) of every prediction, in the order of `images`.

    Where both sides have file names those decide (a number made up for one of a folder's photographs could be
    another image's), whole if they are all known, else without their folders; otherwise image_id does. Images
    without a prediction are left out. Raises UserError, with `path` of the predictions, for a prediction of
    an unknown image and for two of one image.
    """
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
    twice = repeated(predicted)
    if twice:
        raise UserError(f"{path} has several captions for {by} {listed(twice)}; keep one for each image")
    expected, wanted = set(known), set(predicted)
    unknown = [key for key in predicted if key not in expected]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(predicted)} captions are of images without references, "
            f"{by} {listed(unknown)}; take the references of the same images"
        )
    twice = repeated(key for key in known if key in wanted)
    if twice:
        raise UserError(f"the references have several images of {by} {listed(twice)}; rename one of them")
    captions = dict(zip(predicted, (p["caption"] for p in predictions), strict=True))
    return [(image, captions[key]) for key, image in zip(known, images, strict=True) if key in captions]


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; give a COCO-format file") from error


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def kind_of(value: Any) -> str:
    """What a JSON file turned out to hold, for messages."""
    if isinstance(value, dict):
        return f"an object with {listed(value) or 'nothing'}"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:40]


def repeated(keys: Iterable) -> list:
    return [key for key, count in Counter(keys).items() if count > 1]


def listed(names: Iterable) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
