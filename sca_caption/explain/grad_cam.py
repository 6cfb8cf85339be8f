"""Grad-CAM heat maps of a classifier (Selvaraju et al. 2017, arXiv 1610.02391).

S is the side of the model's input in pixels, K the number of classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sca_caption.models.classifier import Classifier
from sca_caption.models.networks import gradcam_layer
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import save_figure, shorten_name
from sca_caption.runtime.programs import install_command

COLORMAP = "inferno"
# Opacity of the greatest heat over the photograph, which is drawn in grey so that colour shows only heat.
OPACITY = 0.75
SHOWN_CLASSES = 2  # the predicted class and the second one


def require_grad_cam() -> Any:
    """Import the grad-cam package. Raises UserError with the install command if it is missing."""
    from sca_caption.runtime.torchvision_compat import torchvision  # noqa: F401  before grad-cam imports torchvision

    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise UserError(
            f"--explain needs the grad-cam package ({error}): {install_command('explain')}"
        ) from error
    return pytorch_grad_cam


def grad_cam(model: Classifier, pixels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Compute the Grad-CAM heat map of each class: float32 (len(classes), S, S) in 0..1, for pixels uint8 (S, S, 3).

    Each map is scaled to its own range. A map without positive evidence for its class is all 0.
    Raises UserError if the grad-cam package is missing.
    """
    library = require_grad_cam()
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, S, S)
    inputs = model.normalize(images.to(model.mean.device))
    layer = gradcam_layer(model.network, model.config.backbone)
    with library.GradCAM(model.network.eval(), [layer]) as cam:
        # DenseNet applies an in-place ReLU next, which must not change the map that the library stores.
        hook = layer.register_forward_hook(lambda module, inputs, output: output.clone())
        try:
            return np.concatenate([cam(inputs, [ClassifierOutputTarget(int(k))]) for k in classes])
        finally:
            hook.remove()


def save_explanation(
    path: Path, model: Classifier, pixels: np.ndarray, logits: np.ndarray, name: str
) -> None:
    """Draw an image (S, S, 3) and the heat maps of the two classes with the greatest logits (K,).

    path: .png, .svg or .pdf. Raises UserError if the file cannot be written or the grad-cam package is missing.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    shown = np.argsort(-logits, kind="stable")[:SHOWN_CLASSES]
    probabilities = 100 * torch.from_numpy(logits).softmax(0).numpy()
    maps = grad_cam(model, pixels, shown.tolist())
    figure = Figure((3.2 * (1 + len(shown)) + 0.7, 4.0), layout="compressed")
    panels = figure.subplots(1, 1 + len(shown))
    grey = pixels @ (0.299, 0.587, 0.114)
    panels[0].imshow(pixels)
    panels[0].set_title(f"{shorten_name(name, 32)}\nas the model sees it", fontsize=10)
    for axes, k, values in zip(panels[1:], shown, maps, strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.imshow(values, cmap=COLORMAP, vmin=0, vmax=1, alpha=OPACITY * values)
        evidence = "" if values.any() else ", no evidence"
        axes.set_title(
            f"{shorten_name(model.config.classes[k], 32)}\n{probabilities[k]:.1f} %{evidence}", fontsize=10
        )
    for axes in panels:
        axes.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(cmap=COLORMAP), ax=panels, ticks=(0, 1), shrink=0.7, fraction=0.03, aspect=30
    )
    bar.ax.set_yticklabels(("least", "most"))
    figure.supxlabel(
        "Grad-CAM: evidence for the class at each position. Each map has its own scale.", fontsize=9
    )
    save_figure(figure, path, "--explain")
