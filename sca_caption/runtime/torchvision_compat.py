"""Import torchvision from here: `from sca_caption.runtime.torchvision_compat import torchvision`.

PyPI's torchvision wheel for Linux is built for CUDA. Beside a CPU-only torch its compiled operators cannot load, and
`import torchvision` then fails because torchvision registers shape functions for two operators that do not exist.
Declaring their schemas is enough for models, transforms and datasets, which never call them. With a matching pair of
builds nothing is declared here.
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
    """The build tag that torchvision/version.py holds ("cu130", "cpu"); the package itself cannot be imported yet."""
    import importlib.util
    import re
    from pathlib import Path

    spec = importlib.util.find_spec("torchvision")  # finds the package without running it
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = '[^'+]*\+?([^']*)'", text)
    return found.group(1) if found else ""


_operators = _declare_missing_operators()  # torch forgets the schemas when this reference goes

import torchvision  # noqa: E402

__all__ = ["torchvision"]
