"""Non-local block (Wang et al. 2018, arXiv 1711.07971; code: facebookresearch/video-nonlocal-net)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca_caption.attention.common import BatchNorm, reduced_width
from sca_caption.runtime.errors import choice

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


class NonLocal(nn.Module):
    """z_i = BN(W y_i) + x_i, y_i = sum_j f(x_i, x_j) g(x_j) / C(x) over all positions i and j (eqs. 1 and 6).

    mode: the function f and its normaliser; theta, phi and g are 1x1 convolutions to C // reduction channels:
        embedded_gaussian   f = exp(theta_i . phi_j), normalised by its sum over j, i.e. a softmax (eq. 3)
        gaussian            f = exp(x_i . x_j), normalised by its sum over j (eq. 2)
        dot_product         f = theta_i . phi_j, divided by the number of positions j (eq. 4)
        concatenation       f = ReLU(w_f . [theta_i, phi_j]), divided by the number of positions j (eq. 5)
    scale: divide the exponents of the two Gaussian modes by the square root of the vectors' length, as the authors' code.
    sub_sample: phi and g read a 2x2 max-pooled map (section 3.3). As in the authors' code, pooling drops the last row and
        column of an odd map; a side of one pixel is not pooled.

    Shapes: (B, C, H, W) -> (B, C, H, W). The weight of the batch norm is initially zero, so the block starts as the
    identity. Raises UserError for an unknown mode and for a reduction below one.
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: str = "embedded_gaussian",
        scale: bool = True,
        sub_sample: bool = True,
        reduction: int = 2,
    ):
        super().__init__()
        self.mode = choice(mode, MODES, "mode of nonlocal")
        self.sub_sample = sub_sample
        inner = reduced_width(channels, reduction)
        self.scale = (channels if mode == "gaussian" else inner) ** -0.5 if scale else 1.0
        self.theta = nn.Identity() if mode == "gaussian" else nn.Conv2d(channels, inner, 1)
        self.phi = nn.Identity() if mode == "gaussian" else nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.joint = None
        if mode == "concatenation":
            self.joint = nn.Parameter(torch.empty(2, inner, 1))  # w_f, split into the parts for theta and phi
            nn.init.normal_(self.joint, std=1 / math.sqrt(2 * inner))
        self.out = nn.Conv2d(inner, channels, 1)  # W
        self.norm = BatchNorm(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        pooled = F.max_pool2d(x, (min(2, H), min(2, W))) if self.sub_sample else x
        theta = self.theta(x).flatten(2).mT  # (B, N, inner)
        phi = self.phi(pooled).flatten(2).mT  # (B, M, inner)
        g = self.g(pooled).flatten(2).mT  # (B, M, inner)
        y = self.attend(theta, phi, g).mT.unflatten(2, (H, W))  # (B, inner, H, W)
        return self.norm(self.out(y)) + x

    def attend(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """Compute y_i: theta (B, N, inner), phi and g (B, M, inner) -> (B, N, inner)."""
        if self.mode == "dot_product":
            return theta @ (phi.mT @ g) / g.shape[1]  # this order avoids an (N, M) matrix
        if self.mode == "concatenation":
            assert self.joint is not None
            w_theta, w_phi = self.joint
            return F.relu(theta @ w_theta + (phi @ w_phi).mT) @ g / g.shape[1]
        # One head: (B, 1, positions, inner).
        theta, phi, g = (vectors.unsqueeze(1) for vectors in (theta, phi, g))
        return F.scaled_dot_product_attention(theta, phi, g, scale=self.scale).squeeze(1)
