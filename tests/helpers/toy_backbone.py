"""A CNN that is built and run in milliseconds, instead of torchvision's."""

import pytest
from torch import nn

from sca_caption.models import backbone as backbones
from sca_caption.models import pretrained


class Block(nn.Module):
    """With a shortcut past its first half, as ResNet's."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.relu, self.out = nn.ReLU(), nn.Tanh()

    def forward(self, x):
        return self.out(x + self.second(self.relu(self.first(x))))


class Toy(nn.Module):
    """32 x 32 pixels become maps of 12 channels and 4 x 4 positions, in `low`, `block.relu` and `block`."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.low = nn.Conv2d(3, 12, 8, stride=8), nn.BatchNorm2d(12), nn.ReLU()
        self.block, self.head = Block(12), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.block(self.low(self.norm(self.stem(x)))).mean((2, 3)))


@pytest.fixture
def toy(monkeypatch):
    """Lets --backbone toy name it."""
    build, names = backbones._build, pretrained.backbone_names
    monkeypatch.setattr(backbones, "_build", lambda name: Toy() if name == "toy" else build(name))
    monkeypatch.setattr(pretrained, "backbone_names", lambda: ["toy", *names()])
