"""Networks without numbers or with batch norms that change results, images for them, and attention added by hooks."""

import torch
from torch import Tensor, nn

from sca_caption.models.networks import build_network
from sca_caption.runtime.torchvision_compat import torchvision


def on_meta(name: str, *args, **options) -> nn.Module:
    """A network with shapes and no numbers: made in milliseconds."""
    with torch.device("meta"):
        return build_network(name, *args, **options)


def theirs_on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, **options)


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    """Batch norms that do something, in evaluation mode."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def shapes(model: nn.Module) -> dict[str, tuple]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def pictures(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_near(found: torch.Tensor, wanted: torch.Tensor, layer: str) -> None:
    assert found.shape == wanted.shape, layer
    assert wanted.std() > 0, layer
    assert ((found - wanted).abs().max() / wanted.abs().max()).item() < 1e-4, layer


def factors(maps: torch.Tensor, index: int) -> torch.Tensor:
    """A made attention for layer `index`: factors of both signs, another for every channel and position."""
    return torch.randn(maps.shape[1:], generator=torch.Generator().manual_seed(index))


def attend(model: nn.Module, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Change what torchvision's own network computes: each layer's output is multiplied by its `factors`.

    Returns the dict that then fills with the outputs before the multiplication. A name such as relu_1 is the
    second call of the module relu.
    """
    seen = {}

    def hook_for(index: int, layer: str, call: int):
        calls = 0

        def hook(module, inputs, output):
            nonlocal calls
            calls += 1
            if calls - 1 == call:
                seen[layer] = output.clone()
                return output * factors(output, index)
            return None

        return hook

    for index, layer in enumerate(layers):
        module, _, call = layer.partition("_") if "relu_" in layer else (layer, "", "0")
        submodule = model.get_submodule(module)
        if hasattr(submodule, "inplace"):
            submodule.inplace = False
        submodule.register_forward_hook(hook_for(index, layer, int(call)))
    return seen
