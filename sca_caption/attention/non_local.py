"""Non-local block (Wang et al. 2018, arXiv 1711.07971; code: facebookresearch/video-nonlocal-net)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca_caption.attention.common import BatchNorm, reduced
from sca_caption.runtime.errors import choice

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


class NonLocal(nn.Module):
    """z_i = BN(W y_i) + x_i with y_i = sum_j f(x_i, x_j) g(x_j) / C(x) (eqs. 1 and 6), i and j over all positions.

    mode: f and its normaliser C, with theta, phi and g 1x1 convolutions to C / reduction channels:
        embedded_gaussian   exp(theta_i . phi_j), its sum over j (eq. 3): a softmax
        gaussian            exp(x_i . x_j), its sum over j (eq. 2)
        dot_product         theta_i . phi_j, N positions (eq. 4)
        concatenation       ReLU(w_f . [theta_i, phi_j]), N positions (eq. 5)
    scale: divide the exponents by the square root of the vectors' length (the two Gaussian modes), as the authors' code.
    sub_sample: phi and g read a 2x2 max-pooled map (section 3.3); N is then the number of pooled positions. Like the
        authors' pooling it drops an odd map's last row and column; a side of one pixel is left as it is.

    Shapes: (B, C, H, W) -> the same. The batch norm's weight starts at zero: at the start the block is the identity.
    Raises UserError for an unknown mode and a reduction below one.
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
        inner = reduced(channels, reduction)
        self.scale = (channels if mode == "gaussian" else inner) ** -0.5 if scale else 1.0
        self.theta = nn.Identity() if mode == "gaussian" else nn.Conv2d(channels, inner, 1)
        self.phi = nn.Identity() if mode == "gaussian" else nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.joint = None
        if mode == "concatenation":
            self.joint = nn.Parameter(torch.empty(2, inner, 1))  # w_f: its part for theta, its part for phi
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
        """sum_j f(theta_i, phi_j) g_j / C: theta (B, N, inner), phi and g (B, M, inner) -> (B, N, inner)."""
        if self.mode == "dot_product":
            return theta @ (phi.mT @ g) / g.shape[1]  # this order makes no (N, M) matrix
        if self.mode == "concatenation":
            for_theta, for_phi = self.joint
            return F.relu(theta @ for_theta + (phi @ for_phi).mT) @ g / g.shape[1]
        theta, phi, g = (
            vectors.unsqueeze(1) for vectors in (theta, phi, g)
        )  # one head: (B, 1, positions, inner)
        return F.scaled_dot_product_attention(theta, phi, g, scale=self.scale).squeeze(1)
