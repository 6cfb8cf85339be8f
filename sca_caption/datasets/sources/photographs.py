"""Keys that identify a photograph across data sets, which name the same photograph differently."""

import re

from sca_caption.datasets.sources.file_tree import IMAGE_SUFFIXES, normalize_name

COCO_STEM = re.compile(r"(?:coco_[a-z]+\d{4}_)?(\d{12})")  # COCO_train2014_000000000009, 000000000009
COCO_NUMBER = re.compile(r"\d{1,7}")  # 9, as tables write COCO's image ids
# 1000268201_693b08cb0e of Flickr8k, which Flickr30k calls 1000268201
FLICKR_STEM = re.compile(r"(?:flickr(?:8|30)k_(\d+)|(\d+)_[0-9a-f]{10}(?:_[a-z])?)")


def photograph_key(name: str | int) -> str:
    """Return a key that is the same for all names of a photograph.

    COCO: the image id, of 9, "9", "000000000009.jpg" and "COCO_train2014_000000000009.jpg". Flickr8k and Flickr30k:
    the number of the photograph on Flickr, because Flickr30k contains Flickr8k. Other names: the path in lower case.
    """
    path = normalize_name(str(name).strip().replace("\\", "/"))
    base = path.rpartition("/")[2]
    stem = next((base.removesuffix(suffix) for suffix in IMAGE_SUFFIXES if base.endswith(suffix)), base)
    if COCO_NUMBER.fullmatch(base):
        return f"coco {int(base)}"
    if coco := COCO_STEM.fullmatch(stem):
        return f"coco {int(coco[1])}"
    if flickr := FLICKR_STEM.fullmatch(stem):
        return f"{flickr[1] or flickr[2]}.jpg"
    return path


def without_folder(key: str) -> str:
    """Return a key without its folders, to find a photograph that another data set keeps in another folder."""
    return key.rpartition("/")[2]
