"""LeNet-5 (LeCun et al. 1998), for images of 32 pixels."""

from collections import OrderedDict

from torch import Tensor, nn


class LeNet(nn.Module):
    """(B, 3, H, W) -> (B, classes) logits: LeNet-5 (LeCun et al. 1998, figure 2), its layers' sizes as they were.

    Three colours in, ReLU for tanh, max-pooling for scaled averages, every map of conv2 reads all of conv1's, and a
    linear layer for the radial basis functions. At 32 x 32 pixels conv2 ends as 5 x 5 positions; other sizes, from
    16 x 16 up, are averaged to that.
    """

    def __init__(self, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 6, 5),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d(5)
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
