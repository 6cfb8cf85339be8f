"""Self-attention over the positions of a map: multi-head scaled dot products (Vaswani et al. 2017, arXiv 1706.03762)."""

from torch import Tensor, nn
from torch.nn import functional as F

from sca_caption.runtime.errors import UserError

HEAD_CHANNELS = 64


class SelfAttention(nn.Module):
    """out = x + W_o [softmax(q_i . k_j / sqrt(d)) v_j for each head], i and j over positions, d = C / heads.

    Positions have no encoding: permuting them permutes the output. heads=None is one head for every 64 channels, or the
    nearest smaller number that divides them.

    Shapes: (B, C, H, W) -> the same. W_o starts at zero: at the start the block is the identity.
    Raises UserError for a number of heads that does not divide the channels.
    """

    def __init__(self, channels: int, *, heads: int | None = None):
        super().__init__()
        if heads is None:
            most = max(1, channels // HEAD_CHANNELS)
            heads = max(count for count in range(1, most + 1) if channels % count == 0)
        if heads < 1 or channels % heads:
            raise UserError(f"self_attention: heads={heads} with {channels} channels; give a divisor of them")
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).reshape(B, 3, self.heads, C // self.heads, H * W).mT  # (B, 3, heads, N, d)
        attended = F.scaled_dot_product_attention(*qkv.unbind(1))  # (B, heads, N, d)
        return x + self.out(attended.mT.reshape(B, C, H, W))
