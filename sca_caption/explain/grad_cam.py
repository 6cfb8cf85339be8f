"""Where in a photograph a classifier saw what it says: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

S is the side of the image that the model sees, K the number of classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sca_caption.models.classifier import Classifier
from sca_caption.models.networks import gradcam_layer
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import save_figure, shorten_name

COLOURS = "inferno"
OPACITY = (
    0.75  # of the greatest heat over the photograph, which is grey there so that colour means heat alone
)
SHOWN = 2  # classes whose heat is drawn: the one predicted, and the runner-up


def require_grad_cam():
    """The library, or a UserError that says how to get it."""
    from sca_caption.runtime.torchvision_compat import torchvision  # noqa: F401  the library would import it bare

    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise UserError(
            f"--explain needs the grad-cam package ({error}): pip install 'sca-caption[explain]'"
        ) from error
    return pytorch_grad_cam


def heat(model: Classifier, pixels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """How much each place of an image speaks for each of some classes: float32 (len(classes), S, S), 0 to 1.

    pixels: uint8 (S, S, 3). Every map is scaled to its own range; one without any evidence for its class is all 0.
    Raises UserError where the grad-cam package is missing.
    """
    library = require_grad_cam()
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, S, S)
    inputs = model.normalise(images.to(model.mean.device))
    layer = gradcam_layer(model.network, model.config.backbone)
    with library.GradCAM(model.network.eval(), [layer]) as cam:
        # DenseNet goes on with a ReLU in place, which must not write into the map that the library has kept.
        copying = layer.register_forward_hook(lambda module, inputs, output: output.clone())
        try:
            return np.concatenate([cam(inputs, [ClassifierOutputTarget(int(k))]) for k in classes])
        finally:
            copying.remove()


def save_explanation(
    path: Path, model: Classifier, pixels: np.ndarray, logits: np.ndarray, name: str
) -> None:
    """Draw an image (S, S, 3) beside the heat of the class that logits (K,) predict, and of the runner-up.

    Written to `path`, .png, .svg or .pdf. Raises UserError where that fails, or grad-cam is missing.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    shown = np.argsort(-logits, kind="stable")[:SHOWN]
    probabilities = 100 * torch.from_numpy(logits).softmax(0).numpy()
    maps = heat(model, pixels, shown)
    figure = Figure((3.2 * (1 + len(shown)) + 0.7, 4.0), layout="compressed")
    panels = figure.subplots(1, 1 + len(shown))
    grey = pixels @ (0.299, 0.587, 0.114)
    panels[0].imshow(pixels)
    panels[0].set_title(f"{shorten_name(name, 32)}\nas the model sees it", fontsize=10)
    for axes, k, values in zip(panels[1:], shown, maps, strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.imshow(values, cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY * values)
        evidence = "" if values.any() else ", no place speaks for it"
        axes.set_title(
            f"{shorten_name(model.config.classes[k], 32)}\n{probabilities[k]:.1f} %{evidence}", fontsize=10
        )
    for axes in panels:
        axes.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOURS), ax=panels, ticks=(0, 1), shrink=0.7, fraction=0.03, aspect=30
    )
    bar.ax.set_yticklabels(("least", "most"))
    figure.supxlabel("Grad-CAM: which places speak for the class. Each map has its own scale.", fontsize=9)
    save_figure(figure, path, "--explain")
