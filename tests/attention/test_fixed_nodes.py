"""Channel scores of exported graphs: the polynomials against cosines, and the graph against the plain formula."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sca_caption.attention import fixed_nodes
from sca_caption.attention.sca import channel_scores, chebyshev_nodes_needed, plain_channel_scores


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("count", [2, 4, 16])
def test_terms_are_cosines_of_multiples(count):
    x = draw(2, 50)
    wanted = torch.cos(torch.arange(count)[:, None] * torch.acos(x)[:, None, :])
    assert_close(fixed_nodes.chebyshev_terms(x, count), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("nodes", [8, 32, 128])
def test_the_series_interpolates_polynomials_exactly(nodes):
    """Every polynomial of degree below N is its own interpolation, so the values at any x are known."""
    at_nodes, transform = map(torch.from_numpy, fixed_nodes.node_constants(nodes))
    x = draw(1, 200)
    for degree in (0, 1, nodes // 2, nodes - 1):
        values = torch.cos(degree * torch.acos(at_nodes))[None]
        wanted = torch.cos(degree * torch.acos(x))
        assert_close(fixed_nodes.two_level_series(x, values @ transform), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("nodes", [16, 64, 256])
def test_the_covered_steepness_is_where_one_more_node_would_be_needed(nodes):
    covered = fixed_nodes.steepness_covered(nodes, 1e-6)
    assert chebyshev_nodes_needed(covered * (1 - 1e-9), 1e-6) == nodes
    assert chebyshev_nodes_needed(covered * (1 + 1e-9), 1e-6) == nodes + 1


@pytest.mark.parametrize("channels, nodes", [(7, 0), (8, 1), (352, 32), (512, 64), (2048, 256)])
def test_the_number_of_nodes(channels, nodes):
    assert fixed_nodes.node_count(channels) == nodes


def test_the_error_bound_holds_up_to_the_covered_steepness():
    """A single unit, whose bend is at different positions of the range."""
    nodes, tolerance = 64, 1e-6
    covered = fixed_nodes.steepness_covered(nodes, tolerance)
    x, transform = map(torch.from_numpy, fixed_nodes.node_constants(nodes))
    means = torch.linspace(-1, 1, 1001, dtype=torch.float64)[None]
    centre, half, one = means.new_zeros(1, 1), means.new_ones(1, 1), means.new_ones(1)
    for bend in np.linspace(-1.2, 1.2, 9):
        hidden = means.new_tensor([[bend * covered]])
        found = fixed_nodes.interpolated_scores(means, centre, half, x, transform, one * covered, hidden, one)
        assert (found - torch.tanh(covered * (means + bend))).abs().max() < 2 * tolerance


class Scores(nn.Module):
    def __init__(self, visual: torch.Tensor, score: torch.Tensor):
        super().__init__()
        self.visual, self.score = nn.Parameter(visual), nn.Parameter(score)

    def forward(self, means: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return channel_scores(means, self.visual, hidden, self.score)


@pytest.mark.slow
def test_an_exported_graph_computes_the_plain_formula():
    """With ranges in which it interpolates, wider ones, and equal means."""
    pytest.importorskip("onnxscript", reason="writing ONNX needs onnx and onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="running a graph needs onnxruntime")
    channels, width = 512, 32
    visual, score = draw(width).float(), draw(2, width)[1].float() / math.sqrt(width)
    rows = {0: torch.export.Dim("B")}
    given = (torch.zeros(2, channels), torch.zeros(2, width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own dependencies
        graph = torch.onnx.export(Scores(visual, score), given, dynamic_shapes=(rows, rows), verbose=False)
    (choice,) = (node for node in graph.model_proto.graph.node if node.op_type == "If")
    sizes = [len(branch.g.node) for branch in choice.attribute]
    assert sizes[0] != sizes[1], "two formulas"
    session = onnxruntime.InferenceSession(graph.model_proto.SerializeToString())
    covered = fixed_nodes.steepness_covered(fixed_nodes.node_count(channels), 1e-6)
    for steepness in (0.0, 0.3, 0.9 * covered, 1.1 * covered, 10 * covered):
        means = 3 + draw(4, channels).float() * steepness / visual.abs().max()
        hidden = 3 * draw(4, width).float()
        names = [each.name for each in session.get_inputs()]
        (found,) = session.run(None, dict(zip(names, (means.numpy(), hidden.numpy()), strict=True)))
        wanted = plain_channel_scores(*(each.double() for each in (means, visual, hidden, score)))
        error = (torch.from_numpy(found).double() - wanted).abs().max() / score.abs().sum()
        assert error < 2e-6, f"steepness {steepness}"
