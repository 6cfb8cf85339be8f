"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition") for 32 x 32 images."""

from collections import OrderedDict

from torch import Tensor, nn


class LeNet(nn.Module):
    """LeNet-5 with the layer sizes of the paper (figure 2): (B, 3, H, W) -> logits (B, classes).

    Differences from the paper: three input channels, ReLU instead of tanh, max-pooling instead of scaled average
    pooling, every map of conv2 reads all maps of conv1, and a linear layer instead of radial basis functions. With
    32 x 32 pixels, the last map has 5 x 5 positions; other sizes of at least 16 x 16 are average-pooled to 5 x 5.
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
