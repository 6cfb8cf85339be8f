"""Image captioning with SCA-CNN: spatial and channel-wise attention in the layers of a CNN (arXiv 1611.05594).

`Captioner` captions from Python (see `api`); it is loaded when it is first asked for, because PyTorch takes its time.
"""

import importlib
import os
from typing import Any

# oneDNN generates code for every shape of a matrix, and keeps it for 1,024 of them by default. Searches and training on
# sentences have more: with captions that end at different words, the number of rows is another one at every step.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "ImageError", "Result", "UserError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("sca_caption.api"), name)
