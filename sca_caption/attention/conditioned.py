"""SCA-CNN's attention (`attention.sca`) as a block of a classifier, which has no LSTM to condition it."""

from torch import Tensor, nn

from sca_caption.attention.parts import at_least_one
from sca_caption.attention.sca import ConditionedAttention, mean_over_positions


class SCA(nn.Module):
    """`ConditionedAttention` whose hidden state is the map's own average, h = mean over positions of V (C numbers).

    mode: "C-S", "S-C", "C" or "S", the order of channel-wise and spatial attention; width: k, the attention's width.

    Shapes: (B, C, H, W) -> the same. At the start all weights are near uniform and, as they are rescaled by their
    number, the block is near the identity. Raises UserError for an unknown mode and a width below one.
    """

    def __init__(self, channels: int, *, mode: str = "C-S", width: int = 64):
        super().__init__()
        at_least_one(width=width)
        self.attention = ConditionedAttention(channels, channels, width, mode)

    def forward(self, x: Tensor) -> Tensor:
        attended, _, _ = self.attention(x, mean_over_positions(x))
        return attended
