"""Karpathy's `dataset_{flickr8k,flickr30k,coco}.json`: captions, and the splits that published results use.

    {"dataset": "coco", "images": [
        {"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895,
         "imgid": 0, "split": "test", "sentences": [
            {"raw": "A man ...", "tokens": ["a", "man", ...], "sentid": 770337}]}]}

Only COCO has `filepath` and `cocoid`. `raw` is read and not `tokens`, because metrics tokenize raw references.
"""

from sca_caption.datasets.sources.annotations import Annotations
from sca_caption.datasets.sources.coco_ids import LARGEST, plain_id
from sca_caption.datasets.sources.file_tree import FoundFile, read_text
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.json_text import parse_json

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
        for image in parse_json(read_text(found, annotations.problems), keep_needed_fields)["images"]:
            name, split = str(image["filename"]), image["split"]
            if split == "restval" and restval == "omit":
                omitted += 1
            elif split not in SPLIT_NAMES:
                annotations.report(name, f"unknown split {split!r}; skipped")
            else:
                annotations.captions.setdefault(name, {})
                for number, text in image["sentences"]:
                    annotations.add(name, number, text)
                annotations.assign(name, SPLIT_NAMES[split])
                image_id = plain_id(image.get("cocoid", image.get("imgid")))
                if isinstance(image_id, int) and abs(image_id) <= LARGEST:
                    annotations.image_ids[name] = image_id
                folders[name] = str(image.get("filepath") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not Karpathy's JSON ({error!r}); download it again") from error
    if omitted:
        annotations.report("restval", f"{omitted} images skipped by restval: omit")
    return folders
