"""Karpathy's `dataset_{flickr8k,flickr30k,coco}.json`: captions, and the splits that published results use.

    {"dataset": "coco", "images": [
        {"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895,
         "imgid": 0, "split": "test", "sentences": [
            {"raw": "A man ...", "tokens": ["a", "man", ...], "sentid": 770337}]}]}

Only COCO has `filepath` and `cocoid`. `raw` is read and not `tokens`, because metrics tokenize raw references.
"""

import json

from sca_caption.datasets.sources.annotations import Annotations
from sca_caption.datasets.sources.file_tree import FoundFile, read_text
from sca_caption.runtime.errors import UserError

SPLIT_NAMES = {"train": "train", "val": "val", "test": "test", "restval": "train"}


def keep_needed_fields(entry: dict) -> dict | tuple:
    """Reduce a sentence to (sentence id, raw text) while it is parsed: COCO's 616,767 token lists take 0.7 GB."""
    if "raw" in entry or "tokens" in entry:
        return entry.get("sentid"), entry.get("raw") or " ".join(entry.get("tokens", ()))
    return entry


def read_karpathy(found: FoundFile, annotations: Annotations, *, restval: str = "train") -> dict[str, str]:
    """Add the captions and splits of the file to `annotations`. Returns the folder per image name, "" if unknown.

    restval: "train" adds the 30,504 validation images of COCO outside val and test to train, as published results
    do; "omit" skips them. Raises UserError if the file is not Karpathy's JSON.
    """
    path, folders, omitted = found[0], {}, 0
    try:
        for image in json.loads(read_text(found, annotations.problems), object_hook=keep_needed_fields)[
            "images"
        ]:
            name, split = image["filename"], image["split"]
            if split == "restval" and restval == "omit":
                omitted += 1
            elif split not in SPLIT_NAMES:
                annotations.report(name, f"unknown split {split!r}; skipped")
            else:
                annotations.captions.setdefault(name, {})
                for number, text in image["sentences"]:
                    annotations.add(name, number, text)
                annotations.assign(name, SPLIT_NAMES[split])
                annotations.image_ids[name] = image.get("cocoid", image.get("imgid"))
                folders[name] = image.get("filepath", "")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not Karpathy's JSON ({error!r}); download it again") from error
    if omitted:
        annotations.report("restval", f"{omitted} images skipped by restval: omit")
    return folders
