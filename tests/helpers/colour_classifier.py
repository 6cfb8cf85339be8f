"""A LeNet with weights set by hand that tells blue, green and red pictures apart, and data for it."""

from pathlib import Path

import torch
from PIL import Image

from sca_caption import checkpoint
from sca_caption.config import ClassifierConfig
from sca_caption.images import Transform
from sca_caption.models.classifier import Classifier

CLASSES = ("blue", "green", "red")
SIZE = 32


def colour_classifier(classes: tuple[str, ...] = CLASSES) -> Classifier:
    """Each class's logit is how much of one colour the picture has: a third each, averaged over the picture."""
    model = Classifier(ClassifierConfig(backbone="lenet", image_size=SIZE, classes=classes)).eval()
    network = model.network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for output, colour in enumerate((2, 1, 0)):  # blue, green, red of RGB
            network.features.conv1.weight[output, colour, 2, 2] = 1
            network.features.conv2.weight[output, output, 2, 2] = 1
            network.classifier[0].weight[output].view(16, 25)[output] = 1 / 25
            network.classifier[2].weight[output, output] = 1
            network.classifier[4].weight[output, output] = 1
    return model


def save_classifier(
    path: Path,
    data: dict | None = None,
    classes: tuple[str, ...] = CLASSES,
    history: list[dict] | None = None,
) -> Path:
    """Its checkpoint. data: what it was trained on. history: its epochs, as last.pt has them."""
    metrics = {"top-1": 90.0} | ({"data": data} if data else {})
    training = {"history": history} if history else {}
    made = checkpoint.Checkpoint(colour_classifier(classes), None, Transform(SIZE, "crop"), metrics, training)
    checkpoint.save(path, made)
    return path


def save_picture(path: Path, colour: str | tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "lime" if colour == "green" else colour).save(path)
    return path
