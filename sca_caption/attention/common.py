"""Shared parts of attention blocks: bottleneck widths, batch norm for single values, initialisation, export."""

from typing import Literal

import torch
from torch import Tensor, nn

from sca_caption.runtime.errors import UserError


def reduced_width(channels: int, reduction: int, least: int = 1) -> int:
    """Width of a bottleneck: max(least, channels // reduction). Raises UserError for a number below one."""
    require_positive(reduction=reduction, least=least)
    return max(least, channels // reduction)


def require_positive(**options: int) -> None:
    """Raise UserError that names the first option with a value below one."""
    for option, value in options.items():
        if value < 1:
            raise UserError(f"{option}={value}: must be a whole number of at least 1")


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of (B, C) or (B, C, H, W) that can train on a single value per channel.

    PyTorch's batch norm raises ValueError for it, because a single value has no variance. Here it is normalised by the
    running statistics, which it does not update. Blocks that pool a map to 1 x 1 can therefore train on a batch of one
    image, e.g. the last batch of an epoch.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # torch.batch_norm accepts (B, C) as well

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


@torch.no_grad()
def init_he(module: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Initialise all convolutions and linear layers by He et al. (2015, arXiv 1502.01852), normal; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                layer.bias.zero_()


def in_exported_graph() -> bool:
    """Whether torch.export traces the caller, as for ONNX; not under torch.compile."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
