"""SCA-CNN's attention (Chen et al. 2017, arXiv 1611.05594, sections 3.2-3.4).

`ConditionedAttention` is the paper's: the captioner's LSTM state selects channels and positions. `SCA` is the same as a
block for classification networks, where the hidden state is replaced by the map's own average.

Shapes: B rows (partial captions, or images), C channels, m = H * W positions, d hidden size, k attention width.
The paper's last biases (b_i, b_i') are omitted: they add the same number to all scores of a softmax.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.attention.common import in_exported_graph, require_positive
from sca_caption.attention.fixed_nodes import channel_scores_in_graph
from sca_caption.runtime.errors import choice

MODES = ("S", "C", "S-C", "C-S")


class ChannelAttention(nn.Module):
    """Channel-wise attention: beta = softmax_C(W_i tanh(W_c (x) v + b_c + W_hc h)) (eqs. 7-8).

    v is the mean of each channel over the positions.
    """

    def __init__(self, channels: int, hidden_size: int, width: int):
        super().__init__()
        self.channels = channels
        self.visual = nn.Parameter(torch.empty(width))  # W_c
        self.hidden = nn.Linear(hidden_size, width)  # W_hc, b_c
        self.score = nn.Parameter(torch.empty(width))  # W_i
        nn.init.normal_(self.visual, std=0.5)
        nn.init.normal_(self.score, std=0.1 / math.sqrt(width))  # initial weights are near uniform

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """features (B, C, H, W), hidden (B, d) -> beta (B, C), each row summing to one."""
        return self.from_means(mean_over_positions(features), hidden)

    def from_means(self, means: Tensor, hidden: Tensor) -> Tensor:
        """Compute beta (B, C) from the channel means v (B, C) and hidden (B, d)."""
        return channel_scores(means, self.visual, self.hidden(hidden), self.score).softmax(1)


class SpatialAttention(nn.Module):
    """Spatial attention: alpha = softmax_m(W_i' tanh(V^T W_s + b_s + W_hs h)) (eqs. 5-6)."""

    def __init__(self, channels: int, hidden_size: int, width: int):
        super().__init__()
        self.visual = nn.Linear(channels, width)  # W_s, b_s
        self.hidden = nn.Linear(hidden_size, width, bias=False)  # W_hs
        self.score = nn.Parameter(torch.empty(width))  # W_i'
        nn.init.normal_(self.score, std=0.1 / math.sqrt(width))

    def keys(self, features: Tensor, beta: Tensor | None = None) -> Tensor:
        """Compute V^T W_s + b_s: features (B, C, H, W) -> (B, m, k). The result does not depend on the hidden state.

        If beta (B, C) is given, V * beta * C is used instead of V.
        """
        if beta is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            features = features if beta is None else scale_channels(features, beta)
            keys = F.conv2d(features, self.visual.weight[:, :, None, None], self.visual.bias)  # (B, k, H, W)
            return keys.flatten(2).transpose(1, 2)
        return ScaledKeys.apply(features, beta * beta.shape[1], self.visual.weight, self.visual.bias)

    def forward(self, keys: Tensor, hidden: Tensor) -> Tensor:
        """keys (B, m, k), hidden (B, d) -> alpha (B, m), each row summing to one."""
        return tanh_scores(keys + self.hidden(hidden).unsqueeze(1), self.score).softmax(1)


class ConditionedAttention(nn.Module):
    """Attention of one layer in one of the paper's modes: "S", "C", "S-C" or "C-S" (section 3.4).

    Raises UserError for an unknown mode.
    """

    def __init__(self, channels: int, hidden_size: int, width: int, mode: str = "C-S"):
        super().__init__()
        self.mode = choice(mode, MODES, "attention")
        self.channel = ChannelAttention(channels, hidden_size, width) if "C" in mode else None
        self.spatial = SpatialAttention(channels, hidden_size, width) if "S" in mode else None

    def prepare(self, features: Tensor) -> Tensor | None:
        """Compute what is needed once per image: the spatial keys (B, m, k) for modes S and S-C, else None."""
        return self.spatial.keys(features) if self.spatial is not None and self.mode != "C-S" else None

    def weights(
        self, features: Tensor, hidden: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the weights for features (B, C, H, W) and hidden (B, d).

        Returns beta (B, C) and alpha (B, m), each None if the mode does not have it. `keys` is `prepare(features)`.
        """
        beta: Tensor | None = None
        alpha: Tensor | None = None
        if self.channel is not None and self.mode != "S-C":
            beta = self.channel(features, hidden)
        if self.spatial is not None:
            if keys is None or beta is not None:
                keys = self.spatial.keys(features, beta)
            alpha = self.spatial(keys, hidden)
            if self.channel is not None and self.mode == "S-C":
                beta = self.channel(scale_positions(features, alpha), hidden)
        return beta, alpha

    def forward(
        self, features: Tensor, hidden: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the attended map X = V * beta * C * alpha * m, with V's shape and scale, then beta and alpha."""
        beta, alpha = self.weights(features, hidden, keys)
        return modulate(features, beta, alpha), beta, alpha


class ScaledKeys(torch.autograd.Function):
    """(features * scale)^T W + b: features (B, C, H, W), scale (B, C), W (k, C), b (k,) -> (B, m, k).

    The backward pass recomputes the scaled map, because storing one map per word would fill the memory in training.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(features, scale, weight)
        ctx.bias_dtype = bias.dtype
        scaled = (features * scale[:, :, None, None]).flatten(2).transpose(1, 2)  # (B, m, C)
        return torch.nn.functional.linear(scaled, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, scale, weight = ctx.saved_tensors
        positions = features.flatten(2).transpose(1, 2)  # (B, m, C)
        d_scaled = (grad @ weight.to(grad.dtype)).to(features.dtype)  # (B, m, C)
        d_features = (d_scaled * scale[:, None]).transpose(1, 2).reshape_as(features)
        d_scale = (d_scaled * positions).sum(1)
        scaled = (positions * scale[:, None]).flatten(0, 1)  # (B m, C)
        d_weight = grad.flatten(0, 1).to(scaled.dtype).T @ scaled
        d_bias = grad.sum((0, 1))
        return d_features, d_scale.to(scale.dtype), d_weight.to(weight.dtype), d_bias.to(ctx.bias_dtype)


class Modulate(torch.autograd.Function):
    """features * beta * alpha: (B, C, H, W), (B, C), (B, m) -> (B, C, H, W).

    Only the three inputs are stored for the backward pass; the intermediate products are not.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(features, beta, alpha)
        return features * beta[:, :, None, None] * alpha.view(len(alpha), 1, *features.shape[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, beta, alpha = ctx.saved_tensors
        alpha_map = alpha.view(len(alpha), 1, *features.shape[2:])
        product = (grad * features).flatten(2)  # (B, C, m)
        d_beta = torch.bmm(product, alpha.to(product.dtype)[:, :, None]).squeeze(2)
        d_alpha = torch.bmm(beta.to(product.dtype)[:, None], product).squeeze(1)
        d_features = grad * beta[:, :, None, None] * alpha_map if ctx.needs_input_grad[0] else None
        return d_features, d_beta.to(beta.dtype), d_alpha.to(alpha.dtype)


def mean_over_positions(features: Tensor) -> Tensor:
    """Global average pooling: (B, C, H, W) -> (B, C).

    A sum followed by a division: the backward pass of mean() would divide the whole map.
    """
    return features.flatten(2).sum(2) / features[0, 0].numel()


def scale_channels(features: Tensor, beta: Tensor) -> Tensor:
    """V * beta * C: (B, C, H, W), beta (B, C)."""
    return features * (beta * beta.shape[1])[:, :, None, None]


def scale_positions(features: Tensor, alpha: Tensor) -> Tensor:
    """V * alpha * m: (B, C, H, W), alpha (B, m)."""
    rows, _, height, width = features.shape
    return features * (alpha * alpha.shape[1]).view(rows, 1, height, width)


def modulate(features: Tensor, beta: Tensor | None, alpha: Tensor | None) -> Tensor:
    """V * beta * C * alpha * m, with a None weight left out.

    The factors C and m make uniform weights equal to one, so the layers above receive maps at the scale they were
    trained on.
    """
    recomputes = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if beta is not None and alpha is not None and recomputes:
        return Modulate.apply(features, beta * beta.shape[1], alpha * alpha.shape[1])
    if beta is not None:
        features = scale_channels(features, beta)
    if alpha is not None:
        features = scale_positions(features, alpha)
    return features


def pool_shared(features: Tensor, alpha: Tensor, image: Tensor) -> Tensor:
    """Average pooling of V * alpha * m for N rows, several of which may read the same image: (N, C).

    features (B, C, H, W), alpha (N, m), image (N,): the index into features per row. One matrix product per image,
    between the weights of its rows (padded to R, the largest number of rows per image) and its positions, replaces one
    copy of the map per row.
    """
    positions = features.flatten(2).transpose(1, 2)  # (B, m, C)
    if torch.compiler.is_compiling():  # also in export, where no shape may depend on values, as R does
        all_pairs = alpha @ positions  # (B, N, C)
        return all_pairs[image, torch.arange(alpha.shape[0], device=image.device)]
    order, counts = image.argsort(stable=True), torch.bincount(image, minlength=len(features))
    slot = torch.empty_like(image)  # number of each row among the rows of its image
    slot[order] = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image[order]]
    padded = alpha.new_zeros(len(features), int(counts.max()), alpha.shape[1])
    padded = padded.index_put((image, slot), alpha)  # (B, R, m)
    return torch.bmm(padded, positions)[image, slot]


def pool_modulated(features: Tensor, beta: Tensor | None, alpha: Tensor | None) -> Tensor:
    """Average pooling of `modulate(features, beta, alpha)` without computing the modulated map: (B, C)."""
    if alpha is None:
        pooled = mean_over_positions(features)
    else:
        pooled = torch.bmm(alpha.unsqueeze(1), features.flatten(2).transpose(1, 2)).squeeze(1)
    return pooled if beta is None else pooled * beta * beta.shape[1]


# ---- channel scores without the (B, C, k) tensor ---------------------------------------------------------------------


# Least max|w| * half-range that is interpolated, in units of the rounding error of tanh's argument.
NARROW = 3e5


def channel_scores(
    means: Tensor, visual: Tensor, hidden: Tensor, score: Tensor, tolerance: float = 1e-6
) -> Tensor:
    """Evaluate g(v) = sum_j score_j tanh(visual_j v + hidden_j) at every channel mean v (eq. 7).

    means (B, C), visual (k,), hidden (B, k), score (k,) -> (B, C).

    In one row, g is an analytic function of the single number v. It is evaluated at N Chebyshev nodes of the row's
    range [min v, max v] and interpolated, which takes N k evaluations of tanh instead of C k. The nearest pole of
    tanh(w v + u) has distance pi / (2 |w|) from the real line. With r = pi / (2 max|w| half-range) and
    rho = r + sqrt(1 + r^2), the error decreases at least as fast as rho^-N (Trefethen, Approximation Theory and
    Approximation Practice, theorem 8.2). N is chosen from this bound. The plain formula is used if N exceeds C / 2, and
    if the means of a row nearly agree.
    """
    if torch.is_autocast_enabled(
        means.device.type
    ):  # half precision is too coarse for the gradient's differences
        with torch.autocast(means.device.type, enabled=False):
            return channel_scores(means.float(), visual.float(), hidden.float(), score.float(), tolerance)
    if in_exported_graph():
        return channel_scores_in_graph(means, visual, hidden, score, tolerance)
    if torch.compiler.is_compiling():  # no shape may depend on values, as N does
        return plain_channel_scores(means, visual, hidden, score)
    with torch.no_grad():
        low, high = means.amin(1, keepdim=True), means.amax(1, keepdim=True)  # (B, 1)
        # 1 % wider than the range: otherwise rounding can put a channel outside, where `clamp` has no gradient.
        centre, half = (low + high) / 2, (high - low) / 2 * 1.01
        steepest = visual.abs().max()
        # In a narrow range the slope, a difference of g's values over the range, is rounding error.
        narrow = NARROW * torch.finfo(means.dtype).eps * (1 + centre.abs() * steepest)
        found = torch.stack([half.max() * steepest, (half * steepest < narrow).any().to(half)])
        steepness, is_narrow = found.tolist()  # at once, because a GPU waits for it
    nodes = chebyshev_nodes_needed(steepness, tolerance)
    if nodes > means.shape[1] // 2 or is_narrow:
        return plain_channel_scores(means, visual, hidden, score)
    angles = (torch.arange(nodes, dtype=torch.float64) + 0.5) * (math.pi / nodes)
    x = torch.cos(angles).to(means)  # (N,)
    values = plain_channel_scores(centre + half * x, visual, hidden, score)  # (B, N)
    # Discrete cosine transform: values at the nodes -> Chebyshev coefficients.
    transform = torch.cos(torch.arange(nodes, dtype=torch.float64)[:, None] * angles) * (2 / nodes)
    transform[0] /= 2
    coefficients = values @ transform.to(means).T  # (B, N)
    return ChebyshevSeries.apply(((means - centre) / half).clamp(-1, 1), coefficients)


def plain_channel_scores(means: Tensor, visual: Tensor, hidden: Tensor, score: Tensor) -> Tensor:
    """Compute `channel_scores` with the paper's formula, through a (B, C, k) tensor."""
    return tanh_scores(torch.addcmul(hidden[:, None, :], means[:, :, None], visual), score)


def tanh_scores(x: Tensor, score: Tensor) -> Tensor:
    """tanh(x) @ score: (..., k), (k,) -> (...). May overwrite x.

    Without gradients, tanh(x) is computed as 2 sigmoid(2 x) - 1, because torch's sigmoid is several times faster than its
    tanh on a CPU. The error is 2e-7 instead of 3e-8, which is too large for gradients.
    """
    if in_exported_graph():
        return score @ torch.tanh(x).mT  # a row times a matrix, which is fast in onnxruntime
    if torch.is_grad_enabled():
        return torch.tanh(x) @ score
    return x.mul_(2).sigmoid_() @ (2 * score) - score.sum()


def chebyshev_nodes_needed(steepness: float, tolerance: float) -> int:
    """Number of nodes for a relative error below `tolerance`. steepness: max|w| * half-range, see `channel_scores`."""
    ratio = math.pi / 2 / max(steepness, 1e-12)
    rho = ratio + math.sqrt(1 + ratio * ratio)
    # g is unbounded on the ellipse of rho itself; on the smaller one of rho^(3/4) a small constant bounds it.
    return max(8, math.ceil(-math.log(tolerance) / (0.75 * math.log(rho)))) if rho > 1.0001 else 10**9


class ChebyshevSeries(torch.autograd.Function):
    """y = sum_n coefficients_n T_n(x) for x in [-1, 1]: x (B, C), coefficients (B, N) -> (B, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor) -> Tensor:
        ctx.save_for_backward(x, coefficients)
        return clenshaw(x, coefficients)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, coefficients = ctx.saved_tensors
        # Coefficients of the derivative: d_{n-1} = d_{n+1} + 2 n c_n, with d_0 halved.
        derivative = [torch.zeros_like(coefficients[:, 0])] * 2
        for n in range(coefficients.shape[1] - 1, 0, -1):
            derivative.append(derivative[-2] + 2 * n * coefficients[:, n])
        slope = clenshaw(x, torch.stack([derivative[-1] / 2, *derivative[-2:1:-1]], 1))
        # sum_c grad_c T_n(x_c) for every n, by the recurrence T_{n+1} = 2 x T_n - T_{n-1}.
        twice, current, following = 2 * x, grad, grad * x
        sums = []
        for _ in range(coefficients.shape[1]):
            sums.append(current.sum(1))
            current, following = following, torch.addcmul(current, twice, following, value=-1).neg_()
        return grad * slope, torch.stack(sums, 1)


def clenshaw(x: Tensor, coefficients: Tensor) -> Tensor:
    """sum_n coefficients_n T_n(x): x (B, C), coefficients (B, N) -> (B, C), by Clenshaw's recurrence."""
    twice, b1, b2 = 2 * x, torch.zeros_like(x), torch.zeros_like(x)  # b_{n+1} and b_{n+2}
    for c in reversed(coefficients.unbind(1)[1:]):
        b1, b2 = torch.addcmul(c[:, None] - b2, twice, b1), b1
    return torch.addcmul(coefficients[:, :1] - b2, x, b1)


class SCA(nn.Module):
    """Block for classification networks: `ConditionedAttention` with the map's average (B, C) as the hidden state.

    mode: "C-S", "S-C", "C" or "S", the order of channel-wise and spatial attention. width: k, the attention width.

    Shapes: (B, C, H, W) -> (B, C, H, W). The initial weights are near uniform and are multiplied by their number, so the
    block starts near the identity. Raises UserError for an unknown mode and for a width below one.
    """

    def __init__(self, channels: int, *, mode: str = "C-S", width: int = 64):
        super().__init__()
        require_positive(width=width)
        self.attention = ConditionedAttention(channels, channels, width, mode)

    def forward(self, x: Tensor) -> Tensor:
        attended, _, _ = self.attention(x, mean_over_positions(x))
        return attended
