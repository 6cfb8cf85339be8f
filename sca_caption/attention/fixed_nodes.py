"""`attention.sca.channel_scores` in an exported graph, where no shape may depend on values.

`channel_scores` chooses the number of interpolation nodes from the range of the means. A graph has a fixed number of them
and a branch with the plain formula, which it takes if the range is too wide for the error bound.

Shapes as in `attention.sca`: B rows, C channels, k attention width; N nodes in two factors, N = Q * R.
"""

import math

import numpy as np
import torch
from torch import Tensor

CHANNELS_PER_NODE = 8  # with fewer, onnxruntime takes as long for the nodes as for the plain formula


def channel_scores_in_graph(
    means: Tensor, visual: Tensor, hidden: Tensor, score: Tensor, tolerance: float
) -> Tensor:
    """`channel_scores`: means (B, C), visual (k,), hidden (B, k), score (k,) -> (B, C)."""
    nodes = node_count(means.shape[1])
    if nodes < CHANNELS_PER_NODE:
        return plain_scores(means, visual, hidden, score)
    low, high = means.amin(1, keepdim=True), means.amax(1, keepdim=True)  # (B, 1)
    centre, half = (low + high) / 2, ((high - low) / 2).clamp_min(torch.finfo(means.dtype).tiny)
    steepness = half.max() * visual.abs().max()
    x, transform = (torch.from_numpy(each).to(means.dtype) for each in node_constants(nodes))

    operands = (means, centre, half, x, transform, visual, hidden, score)
    covered = steepness <= steepness_covered(nodes, tolerance)
    return torch.cond(covered, interpolated_scores, _plain_branch, operands)


def interpolated_scores(
    means: Tensor,
    centre: Tensor,
    half: Tensor,
    x: Tensor,
    transform: Tensor,
    visual: Tensor,
    hidden: Tensor,
    score: Tensor,
) -> Tensor:
    """Scores (B, C) from the values at nodes. centre, half (B, 1): range of means; x, transform: `node_constants`."""
    values = plain_scores(centre + half * x, visual, hidden, score)  # (B, N)
    return two_level_series(((means - centre) / half).clamp(-1, 1), values @ transform)


def _plain_branch(
    means: Tensor,
    centre: Tensor,
    half: Tensor,
    x: Tensor,
    transform: Tensor,
    visual: Tensor,
    hidden: Tensor,
    score: Tensor,
) -> Tensor:
    return plain_scores(means, visual, hidden, score)


def plain_scores(means: Tensor, visual: Tensor, hidden: Tensor, score: Tensor) -> Tensor:
    """The paper's formula through a (B, k, C) tensor, whose product with `score` is fast in onnxruntime."""
    return score @ torch.tanh(torch.addcmul(hidden[:, :, None], visual[:, None], means[:, None, :]))


def node_count(channels: int) -> int:
    """The largest power of two that is at most C / CHANNELS_PER_NODE; 0 if there is none."""
    most = channels // CHANNELS_PER_NODE
    return most and 1 << (most.bit_length() - 1)


def steepness_covered(nodes: int, tolerance: float) -> float:
    """The largest steepness for which `sca.chebyshev_nodes_needed` gives at most `nodes`."""
    return math.pi / 2 / math.sinh(-math.log(tolerance) / (0.75 * nodes))


def first_factor(nodes: int) -> int:
    """Q: the power of two next to the square root of N, a power of two."""
    return 1 << (nodes.bit_length() - 1) // 2


def node_constants(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The Chebyshev nodes (N,), and the matrix (N, N) from values at them to the coefficients of `two_level_series`."""
    angles = (np.arange(nodes) + 0.5) * np.pi / nodes
    Q = first_factor(nodes)
    inner = np.cos(np.outer(angles, np.arange(Q)))  # T_i at the nodes
    outer = np.cos(np.outer(angles, np.arange(0, nodes, Q)))  # T_jQ
    at_nodes = (inner[:, :, None] * outer[:, None, :]).reshape(nodes, nodes)  # coefficients -> values
    return np.cos(angles), np.linalg.inv(at_nodes).T.copy()


def two_level_series(x: Tensor, coefficients: Tensor) -> Tensor:
    """y = sum_ij c_ij T_i(x) T_j(T_Q(x)), i < Q, j < R: x (B, C) in [-1, 1], coefficients (B, N) -> (B, C).

    T_jQ(x) = T_j(T_Q(x)), and T_i T_jQ = (T_(jQ+i) + T_(jQ-i)) / 2, so these products span the polynomials of degree
    below N. They need Q + R terms per channel and one matrix product instead of the N terms of Clenshaw's recurrence.
    """
    Q = first_factor(coefficients.shape[1])
    inner = chebyshev_terms(x, Q)  # (B, Q, C)
    outer = chebyshev_terms(doubled(inner[:, Q // 2]), coefficients.shape[1] // Q)  # (B, R, C)
    return (coefficients.unflatten(1, (Q, -1)) @ outer * inner).sum(1)


def chebyshev_terms(x: Tensor, count: int) -> Tensor:
    """T_0(x) to T_(count-1)(x): (B, C) -> (B, count, C). count: a power of two, at least 2."""
    terms = torch.stack([torch.ones_like(x), x], 1)
    while (n := terms.shape[1]) < count:
        following = doubled(terms[:, n // 2 : n // 2 + 1])  # T_n
        mirrored = torch.cat([following, terms.flip(1)[:, :-1]], 1)  # T_n, ..., T_1
        terms = torch.cat([terms, 2 * following * terms - mirrored], 1)  # T_(n+i) = 2 T_n T_i - T_(n-i)
    return terms


def doubled(term: Tensor) -> Tensor:
    """T_2n of T_n."""
    return 2 * term * term - 1
