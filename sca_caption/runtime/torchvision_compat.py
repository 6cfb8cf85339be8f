"""torchvision with any build of torch: `from sca_caption.runtime.torchvision_compat import torchvision`.

PyPI's torchvision wheel for Linux is built for CUDA. With a CPU-only torch, its compiled operators cannot be loaded, and
`import torchvision` fails because torchvision registers shape functions for two operators that do not exist. It is
enough to declare their schemas: classifiers, segmenters, transforms and data sets call no compiled operator, and
detectors call only non-maximum suppression, which is then `nms` below. Nothing is changed if both builds match.
"""

from importlib.metadata import version

import torch
from torch import Tensor

NMS_ROWS = 256  # boxes that are compared with all later ones at a time


def _declare_missing_operators() -> torch.library.Library | None:
    build = version("torchvision").partition("+")[2] or _build_in_wheel()
    if torch.version.cuda is not None or not build.startswith("cu"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _build_in_wheel() -> str:
    """The build tag in torchvision/version.py ("cu130", "cpu"), read without importing the package."""
    import importlib.util
    import re
    from pathlib import Path

    spec = importlib.util.find_spec("torchvision")  # finds the package without importing it
    assert spec and spec.origin, "torchvision is a dependency"
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = '[^'+]*\+?([^']*)'", text)
    return found.group(1) if found else ""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression as torchvision's compiled operator for CPUs computes it.

    Boxes (N, 4) as x1, y1, x2, y2 and scores (N,) -> indices (K,) of the kept boxes, highest score first. Boxes of equal
    scores keep their order. A box is kept unless its intersection over union with a kept one before it is above the
    threshold.
    """
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    kept = torch.ones(len(order), dtype=torch.bool)
    for start in range(0, len(order), NMS_ROWS):  # in parts, as all pairs of many boxes take much memory
        overlaps = box_iou(ranked[start : start + NMS_ROWS], ranked[start:]).double() > iou_threshold
        for row in range(len(overlaps)):
            if kept[start + row]:
                kept[start + row + 1 :] &= ~overlaps[row, row + 1 :]
    return order[kept]


_operators = _declare_missing_operators()  # torch unregisters the schemas when this object is deleted

import torchvision  # noqa: E402

if _operators is not None:
    _operators.impl("nms", nms, "CPU")
    # torchvision.ops.nms calls this to ask whether the compiled library was loaded.
    torchvision.ops.boxes._assert_has_ops = lambda: None

__all__ = ["torchvision"]
