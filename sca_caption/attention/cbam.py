"""Convolutional block attention module, CBAM (Woo et al. 2018, arXiv 1807.06521, section 3;
code: Jongchan/attention-module).
"""

from functools import reduce

import torch
from torch import Tensor, nn

from sca_caption.attention.common import BatchNorm, init_he, reduced_width
from sca_caption.runtime.errors import UserError, choice

# Global pooling functions (B, C, H, W) -> (B, C). "lp" is the 2-norm, "lse" is log-sum-exp.
POOLS = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "lp": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "lse": lambda x: torch.logsumexp(x, (2, 3)),
}


class CBAM(nn.Module):
    """Channel attention followed by spatial attention, both sigmoid gates: (B, C, H, W) -> (B, C, H, W).

    Channel attention (eq. 2): a shared MLP with hidden width max(1, C // reduction) is applied to the pooled vectors of
    all `pools`, and its outputs are summed. Spatial attention (eq. 3): a 7x7 convolution without bias over the maximum
    and mean of the channels, then batch norm, which is in the authors' code but not in the paper. `spatial=False`
    removes the spatial attention.

    Initialisation as in the authors' code: the weight of the spatial batch norm is zero, so the spatial gate is 1/2
    everywhere; biases are zero. Raises UserError for an unknown pool, empty `pools`, or a reduction below one.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        pools: tuple[str, ...] = ("avg", "max"),
        spatial: bool = True,
    ):
        super().__init__()
        if not pools:
            raise UserError(f"cbam: pools is empty; give one or more of: {', '.join(sorted(POOLS))}")
        self.pools = tuple(choice(pool, POOLS, "pool of cbam") for pool in pools)
        width = reduced_width(channels, reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels))
        for linear in (self.mlp[0], self.mlp[2]):
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.bias)
        self.spatial = SpatialGate() if spatial else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        scores = reduce(torch.add, (self.mlp(POOLS[pool](x)) for pool in self.pools))  # (B, C)
        return self.spatial(x * torch.sigmoid(scores)[:, :, None, None])


class SpatialGate(nn.Module):
    """Spatial attention (eq. 3): x * sigmoid(BN(conv7x7([max_c x, mean_c x]))), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = BatchNorm(1, momentum=0.01)
        init_he(self, "fan_out")
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)  # (B, 2, H, W)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))
