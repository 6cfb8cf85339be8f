"""Karpathy's `dataset_{flickr8k,flickr30k,coco}.json`: captions, tokens and the splits the field reports on."""

import json
from collections.abc import Callable

from ..errors import UserError
from .captions import Gathered
from .files import text_of

SPLIT_NAMES = {"train": "train", "val": "val", "test": "test", "restval": "train"}


def read_karpathy(path: str, read: Callable[[], bytes], gathered: Gathered, *, restval: str = "train") -> None:
    """Add the file's images. `restval` is "train" (folded into it, as the field does) or "omit"."""
    try:
        images = json.loads(text_of(read(), path, gathered.problems))["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not Karpathy's JSON ({error!r}); download it again") from error
    omitted = 0
    for image in images:
        name, split = image["filename"], image["split"]
        if split == "restval" and restval == "omit":
            omitted += 1
            continue
        if split not in SPLIT_NAMES:
            gathered.problem(name, f"unknown split {split!r}; left out")
            continue
        for sentence in image["sentences"]:
            raw = sentence.get("raw") or " ".join(sentence.get("tokens", ()))
            number = sentence.get("sentid")
            gathered.add(name, None if number is None else str(number), raw)
        gathered.assign(name, SPLIT_NAMES[split])
        gathered.image_ids[name] = image.get("cocoid", image.get("imgid"))
        if image.get("filepath"):
            gathered.paths[name] = f"{image['filepath']}/{name}"
    if omitted:
        gathered.problem("restval", f"{omitted} images left out, as asked")
