"""Multi-head self-attention over the positions of a map (Vaswani et al. 2017, arXiv 1706.03762, section 3.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

from sca_caption.runtime.errors import UserError

HEAD_CHANNELS = 64


class SelfAttention(nn.Module):
    """out = x + W_o concat_heads(softmax(q_i . k_j / sqrt(d)) v_j) over positions i and j, d = C / heads.

    There is no positional encoding, so the block is equivariant to permutations of the positions. By default there is
    one head per 64 channels; if that number does not divide the channels, the next smaller divisor is used.

    Shapes: (B, C, H, W) -> (B, C, H, W). W_o is initially zero, so the block starts as the identity.
    Raises UserError if the number of heads does not divide the number of channels.
    """

    def __init__(self, channels: int, *, heads: int | None = None):
        super().__init__()
        if heads is None:
            limit = max(1, channels // HEAD_CHANNELS)
            heads = max(count for count in range(1, limit + 1) if channels % count == 0)
        if heads < 1 or channels % heads:
            raise UserError(
                f"self_attention: heads={heads} with {channels} channels; must be a divisor of {channels}"
            )
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).reshape(B, 3, self.heads, C // self.heads, H * W).mT  # (B, 3, heads, N, d)
        attended = F.scaled_dot_product_attention(*qkv.unbind(1))  # (B, heads, N, d)
        return x + self.out(attended.mT.reshape(B, C, H, W))
