"""MobileNetV2 without torchvision against torchvision's, traced and folded."""

import subprocess
import sys

import pytest
import torch

from sca_caption import checkpoint
from sca_caption.config import ModelConfig
from sca_caption.models.backbone import Backbone, attended_layers
from sca_caption.models.mobilenet_v2 import block_numbers
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.torchvision_compat import torchvision


def traced(layers, seed: int = 0) -> Backbone:
    """The traced network of torchvision, with random batch-norm statistics."""
    torch.manual_seed(seed)
    model = torchvision.models.mobilenet_v2()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return Backbone("mobilenet_v2", layers, model.state_dict())


@pytest.mark.parametrize(
    "layers",
    [
        attended_layers("mobilenet_v2", ["1"]),
        attended_layers("mobilenet_v2", ["2"]),
        attended_layers("mobilenet_v2", ["3"]),
        ("features.0", "features.3", "features.14"),
    ],
)
@torch.inference_mode()
def test_it_agrees_with_torchvision(layers):
    wanted, found = traced(layers), Backbone("mobilenet_v2", layers)
    assert type(found.network).__name__ == "MobileNetV2"  # not traced
    assert found.channels == wanted.channels and found.layers == wanted.layers
    names = [name for name, _ in wanted.named_parameters()]
    assert [name for name, _ in found.named_parameters()] == names  # a checkpoint of one loads into the other
    found.load_state_dict(wanted.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    maps, maps_ = found.trunk(images), wanted.trunk(images)
    for i in range(len(layers)):
        assert len(maps) == len(maps_) == 1
        assert torch.equal(maps[0], maps_[0]) and maps[0].stride() == maps_[0].stride()
        if i + 1 < len(layers):
            maps, maps_ = (b.segment(i, m[0] * 0.9, m[1:]) for b, m in ((found, maps), (wanted, maps_)))
    for backbone in (found, wanted):
        backbone.set_trainable(True, "features.3")
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in wanted.parameters()]


def test_it_is_initialised_as_in_torchvision():
    """The weights of each convolution have the same standard deviation; biases are zero."""
    torch.manual_seed(0)
    layers = attended_layers("mobilenet_v2", ["2"])
    found = dict(Backbone("mobilenet_v2", layers).named_parameters())
    wanted = Backbone("mobilenet_v2", layers, torchvision.models.mobilenet_v2().state_dict())
    for name, parameter in wanted.named_parameters():
        assert found[name].shape == parameter.shape
        if parameter.dim() == 1:
            assert found[name].abs().max() == 0
        elif parameter.numel() > 5000:
            assert found[name].std().item() == pytest.approx(parameter.std().item(), rel=0.1), name


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (("features.0", "features.18"), [0, 18]),
        (("features.17.conv.0", "features.18"), []),
        (("features.18", "features.17"), []),
        (("features.17", "features.17"), []),
        (("features.19",), []),
        (("classifier",), []),
    ],
)
def test_other_layers_are_left_to_tracing(layers, blocks):
    assert block_numbers(layers) == blocks


@pytest.mark.slow
def test_the_shipped_model_needs_no_torchvision():
    code = (
        "import sys; from sca_caption import checkpoint; checkpoint.load();"
        "print(*({'torchvision', 'torch._dynamo', 'sympy', 'h5py', 'spacy', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout.strip(), found.returncode) == ("", 0), found.stderr


@torch.inference_mode()
def test_a_checkpoint_of_a_traced_model_loads(tmp_path):
    from sca_caption.images import Transform
    from sca_caption.vocab import Vocabulary

    config = ModelConfig(
        layers=("features.17", "features.18"), attention_width=8, embedding_size=8, lstm_size=16
    )
    model = SCACNN(config, 6, torchvision.models.mobilenet_v2().state_dict()).eval()
    path = tmp_path / "best.pt"
    checkpoint.save(path, checkpoint.Checkpoint(model, Vocabulary(["a", "dog"]), Transform()))
    loaded = checkpoint.load(path).model
    pixels = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    assert type(loaded.backbone.network) is not type(model.backbone.network)
    assert torch.equal(loaded.encode(pixels)[0], model.encode(pixels)[0])
