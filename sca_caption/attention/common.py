"""What several blocks share: the width of a bottleneck, and batch norm that also takes a single value a channel."""

import torch
from torch import Tensor, nn

from sca_caption.runtime.errors import UserError


def reduced(channels: int, reduction: int, least: int = 1) -> int:
    """The width max(least, channels // reduction) of a bottleneck. Raises UserError for a number below one."""
    at_least_one(reduction=reduction, least=least)
    return max(least, channels // reduction)


def at_least_one(**options: int) -> None:
    """Raise UserError that names the first option below one."""
    for option, value in options.items():
        if value < 1:
            raise UserError(f"{option}={value}: give a whole number of at least 1")


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of (B, C) or (B, C, H, W) that can train on one value a channel, where PyTorch's raises ValueError.

    One value has no variance. It is normalised by the running statistics, which it leaves as they are: the last,
    smaller batch of an epoch must not end a run only because a block pools its map to 1 x 1.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # torch.batch_norm takes (B, C) as well

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


@torch.no_grad()
def init_he(module: nn.Module, mode: str = "fan_in") -> None:
    """He's normal initialisation (arXiv 1502.01852) of every convolution and linear layer; biases start at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                layer.bias.zero_()
