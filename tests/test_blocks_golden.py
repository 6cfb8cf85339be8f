"""Recorded outputs of every attention block, so that none changes what it computes unnoticed.

Each implementation was first run on vectors made with its authors' own code (input, parameters, output; evaluation
mode) and agreed within 1e-5; where batch norm matters, training mode was held against plain formulas. Only then were
these numbers recorded. Input and parameters are closed sequences, so no file is needed.

A new row: verify the block in that way, put empty lists, and record what the failing test shows.
"""

from typing import NamedTuple

import pytest
import torch

from sca_caption.attention import BLOCKS, build

CHANNELS = 16


class Case(NamedTuple):
    block: str
    options: dict[str, object]
    evaluated: list[float]  # as `numbers` gives them
    trained: list[float]


CASES = {
    "se": Case(
        "se",
        {"reduction": 4},
        [0.464443742, -0.260233451, -0.584549649, 70.1098044],
        [0.464443742, -0.260233451, -0.584549649, 70.1098044],
    ),
    "se without biases": Case(
        "se",
        {"reduction": 4, "bias": False},
        [0.416191515, -0.308387143, -0.45294801, 65.5132532],
        [0.416191515, -0.308387143, -0.45294801, 65.5132532],
    ),
    "sk": Case(
        "sk",
        {"groups": 4, "least": 8},
        [0.516193675, 0.462049489, 0.0130384553, 5.43626072],
        [1.45249113, 0, 0.12069262, 12.1895451],
    ),
    "bam": Case(
        "bam",
        {"reduction": 4},
        [1.25658193, -0.943623718, -1.34408244, 196.544691],
        [1.28632413, -0.925910378, -1.16434422, 194.239652],
    ),
    "bam as in the paper": Case(
        "bam",
        {"reduction": 4, "combine": "add", "dilation": 2},
        [1.51988758, -1.09128861, -1.53013425, 207.568424],
        [1.2724714, -0.845093255, -1.34848213, 188.654357],
    ),
    "cbam": Case(
        "cbam",
        {"reduction": 4},
        [0.207061606, -0.0838656622, -0.284003522, 30.857589],
        [0.286248768, -0.0672274447, -0.294762417, 33.5164715],
    ),
    "cbam with every pool": Case(
        "cbam",
        {"reduction": 4, "pools": ("avg", "max", "lp", "lse")},
        [0.130569266, -0.081015432, -0.334161625, 32.0496526],
        [0.181377028, -0.065971592, -0.355201756, 34.8914522],
    ),
    "cbam of channels": Case(
        "cbam",
        {"reduction": 4, "spatial": False},
        [0.462110737, -0.206474209, -0.67195148, 72.4748959],
        [0.462110737, -0.206474209, -0.67195148, 72.4748959],
    ),
    "coord": Case(
        "coord",
        {},
        [0.350398221, -0.0926352962, -0.324895001, 35.3608417],
        [0.344088875, -0.179771387, -0.164075716, 35.1945131],
    ),
}


def sequence(shape: torch.Size, phase: int) -> torch.Tensor:
    """sin(n^2 + phase) for n = 0, 1, ...: without the order that would hide a wrong axis."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(n * n + phase).reshape(shape)


def filled(case: Case) -> torch.nn.Module:
    """The block in double precision, every parameter and running statistic from a sequence of its own."""
    block = build(case.block, CHANNELS, **case.options).double()
    state = block.state_dict()
    for phase, (name, tensor) in enumerate(state.items()):
        if not tensor.is_floating_point():
            continue
        values = sequence(tensor.shape, phase)
        if tensor.dim() > 1:
            tensor.copy_(values / (tensor[0].numel() ** 0.5))
        elif name.endswith(("weight", "running_var")):  # batch norm's
            tensor.copy_(1 + 0.5 * values)
        else:
            tensor.copy_(0.5 * values)
    block.load_state_dict(state)
    return block


def numbers(block: torch.nn.Module) -> list[float]:
    """Three entries of the output for a fixed input, and its inner product with a sequence, which sees them all."""
    with torch.no_grad():
        output = block(sequence((2, CHANNELS, 5, 3), 1))
    entries = output.flatten()[[0, 217, -1]].tolist()
    return [*entries, (output * sequence(output.shape, 2)).sum().item()]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_block_computes_what_was_recorded(case):
    assert numbers(filled(case).eval()) == pytest.approx(case.evaluated, rel=1e-6, abs=1e-7)
    assert numbers(filled(case).train()) == pytest.approx(case.trained, rel=1e-6, abs=1e-7)


def test_every_block_is_recorded():
    assert {case.block for case in CASES.values()} == set(BLOCKS)
