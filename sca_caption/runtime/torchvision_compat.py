"""torchvision with any build of torch: `from sca_caption.runtime.torchvision_compat import torchvision`.

PyPI's torchvision wheel for Linux is built for CUDA. With a CPU-only torch, its compiled operators cannot be loaded, and
`import torchvision` fails because torchvision registers shape functions for two operators that do not exist. Models,
transforms and data sets never call these operators, so it is enough to declare their schemas. Nothing is declared if
both builds match.
"""

from importlib.metadata import version

import torch


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


_operators = _declare_missing_operators()  # torch unregisters the schemas when this object is deleted

import torchvision  # noqa: E402

__all__ = ["torchvision"]
