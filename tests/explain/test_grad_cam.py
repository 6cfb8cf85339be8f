"""Grad-CAM: the heat is where the colour is, and is what the paper's equations give, for every kind of network."""

import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sca_caption.config import ClassifierConfig
from sca_caption.explain.grad_cam import grad_cam, save_explanation
from sca_caption.models.classifier import Classifier
from sca_caption.models.networks import gradcam_layer
from sca_caption.runtime.errors import UserError
from tests.helpers.colour_classifier import SIZE, colour_classifier


def patches() -> np.ndarray:
    """Black but for a red square at the top left and a blue one at the bottom right: (S, S, 3)."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[4:12, 4:12, 0] = 255
    pixels[20:28, 20:28, 2] = 255
    return pixels


def scaled(values: torch.Tensor) -> torch.Tensor:
    """To 0..1."""
    return (values - values.min()) / (values.max() - values.min() + 1e-7)


def test_heat_is_where_the_class_is():
    blue, green, red = grad_cam(colour_classifier(), patches(), [0, 1, 2])
    assert red.shape == (SIZE, SIZE) and red.dtype == np.float32
    half = SIZE // 2
    for values, there in ((red, np.s_[:half, :half]), (blue, np.s_[half:, half:])):
        assert values.min() == 0 and 0.9 < values.max() <= 1
        assert values[there].sum() > 0.9 * values.sum()
    assert not green.any()  # nowhere


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [
        ("resnet18", "cbam"),
        ("mobilenet_v2", ""),
        ("mobilenext", ""),
        ("densenet121", "se"),
        ("lenet", "bam"),
    ],
)
def test_heat_is_the_papers(backbone, attention):
    torch.manual_seed(0)
    config = ClassifierConfig(
        backbone=backbone, attention=attention, image_size=SIZE, classes=("a", "b", "c")
    )
    model = Classifier(config).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    maps = []  # A of equation 1

    def keep(module, inputs, output):
        maps.append(output)
        return output.clone()  # what follows may write to it

    hook = gradcam_layer(model.network, backbone).register_forward_hook(keep)
    logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    hook.remove()
    found_for = dict(zip((2, 0, 1), grad_cam(model, pixels, [2, 0, 1]), strict=True))
    assert any(found.max() > 0.9 for found in found_for.values())
    for k, found in found_for.items():
        (gradient,) = torch.autograd.grad(logits[0, k], maps[0], retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)  # equation 1
        wanted = F.relu((weights * maps[0]).sum(1, keepdim=True)).detach()  # equation 2
        wanted = F.interpolate(scaled(wanted), size=found.shape, mode="bilinear")
        np.testing.assert_allclose(found, scaled(wanted)[0, 0].numpy(), atol=1e-3)


def test_the_picture(tmp_path):
    model, path = colour_classifier(), tmp_path / "why.svg"
    logits = np.array([1.0, 0.0, 3.0], np.float32)
    save_explanation(path, model, patches(), logits, "two $patches$.png")
    # matplotlib writes each text as a comment beside its outlines
    comments = path.read_text(encoding="utf-8")
    shares = 100 * np.exp(logits) / np.exp(logits).sum()
    for text in ("two $patches$.png", "red", f"{shares[2]:.1f} %", "blue", f"{shares[0]:.1f} %", "Grad-CAM"):
        assert text in comments
    assert "green" not in comments
    panels = ElementTree.parse(path).findall(".//{*}image")
    assert len(panels) >= 3
    save_explanation(tmp_path / "why.PNG", model, patches(), logits, "patches")
    with Image.open(tmp_path / "why.PNG") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert matplotlib.pyplot.get_fignums() == []


def test_a_class_without_evidence_says_so(tmp_path):
    path = tmp_path / "why.svg"
    save_explanation(path, colour_classifier(), patches(), np.array([0.0, 2.0, 1.0], np.float32), "x")
    assert path.read_text(encoding="utf-8").count("no evidence") == 1


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(
        UserError, match=r"--explain needs the grad-cam package .*pip install -e '\.\[explain\]'"
    ):
        grad_cam(colour_classifier(), patches(), [0])
