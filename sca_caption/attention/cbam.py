"""Convolutional block attention (Woo et al. 2018, arXiv 1807.06521, section 3; code: Jongchan/attention-module)."""

import torch
from torch import Tensor, nn

from sca_caption.attention.common import BatchNorm, init_he, reduced
from sca_caption.runtime.errors import UserError, choice

# Each pools a map (B, C, H, W) to (B, C). "lp" is the 2-norm, "lse" the logarithm of the sum of exponentials.
POOLS = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "lp": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "lse": lambda x: torch.logsumexp(x, (2, 3)),
}


class CBAM(nn.Module):
    """Channel, then spatial attention, each a sigmoid gate: (B, C, H, W) -> (B, C, H, W).

    Channel (eq. 2): one MLP on every pooled vector of `pools`, summed. Spatial (eq. 3): a 7x7 convolution without bias
    over [max, mean] of the channels, then batch norm (the code's; the paper names none). `spatial=False` leaves the
    second out. The hidden width is max(1, C // reduction).

    Starts as the authors' code: the spatial batch norm's weight is zero, so that the spatial gate opens from a constant
    one half; biases are zero. Raises UserError for an unknown pool, none at all, or a reduction below one.
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
        width = reduced(channels, reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels))
        for linear in (self.mlp[0], self.mlp[2]):
            nn.init.zeros_(linear.bias)
        self.spatial = SpatialGate() if spatial else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        scores = sum(self.mlp(POOLS[pool](x)) for pool in self.pools)  # (B, C)
        return self.spatial(x * torch.sigmoid(scores)[:, :, None, None])


class SpatialGate(nn.Module):
    """x * sigmoid(BN(conv7x7([max_c x, mean_c x]))): (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = BatchNorm(1, momentum=0.01)
        init_he(self, "fan_out")
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)  # (B, 2, H, W)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))
