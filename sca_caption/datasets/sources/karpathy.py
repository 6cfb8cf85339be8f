"""Karpathy's `dataset_{flickr8k,flickr30k,coco}.json`: captions, and the splits the field reports on.

    {"dataset": "coco", "images": [
        {"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895,
         "imgid": 0, "split": "test", "sentences": [
            {"raw": "A man ...", "tokens": ["a", "man", ...], "sentid": 770337}]}]}

`filepath` and `cocoid` are COCO's alone. The raw sentences are read: references are scored as written.
"""

import json

from sca_caption.datasets.sources.annotations import Gathered
from sca_caption.datasets.sources.file_tree import Found, text_of
from sca_caption.runtime.errors import UserError

SPLIT_NAMES = {"train": "train", "val": "val", "test": "test", "restval": "train"}


def sentence(entry: dict) -> dict | tuple:
    """Shrink a sentence to (number, raw text) as it is parsed: COCO's 616,767 token lists take 0.7 GB."""
    if "raw" in entry or "tokens" in entry:
        return entry.get("sentid"), entry.get("raw") or " ".join(entry.get("tokens", ()))
    return entry


def read_karpathy(found: Found, gathered: Gathered, *, restval: str = "train") -> dict[str, str]:
    """Add the file's images and return image name -> folder (COCO's). `restval`, the 30,504 images of COCO's
    validation that are in neither val nor test, go to "train", as the field does, or "omit"."""
    path, folders, omitted = found[0], {}, 0
    try:
        for image in json.loads(text_of(found, gathered.problems), object_hook=sentence)["images"]:
            name, split = image["filename"], image["split"]
            if split == "restval" and restval == "omit":
                omitted += 1
            elif split not in SPLIT_NAMES:
                gathered.problem(name, f"unknown split {split!r}; left out")
            else:
                gathered.captions.setdefault(name, {})
                for number, text in image["sentences"]:
                    gathered.add(name, number, text)
                gathered.assign(name, SPLIT_NAMES[split])
                gathered.image_ids[name] = image.get("cocoid", image.get("imgid"))
                folders[name] = image.get("filepath", "")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not Karpathy's JSON ({error!r}); get it again") from error
    if omitted:
        gathered.problem("restval", f"{omitted} images left out, as asked")
    return folders
