"""Recorded outputs of every attention block, which detect any change of its numerics.

Each implementation was first run on vectors made with its authors' own code (input, parameters, output; evaluation
mode) and agreed within 1e-5; blocks with batch norm were also compared with plain formulas in training mode. Only then
were these numbers recorded. Input and parameters are closed-form sequences, so no file is needed.

To add a row, verify the block in the same way, use empty lists, and record the values that the failing test shows.
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
    "csham": Case(
        "csham",
        {},
        [0.163160113, -0.152253576, -0.202864115, 30.4134659],
        [0.147857717, -0.216427528, -0.181227504, 33.4627472],
    ),
    "csham with relu": Case(
        "csham",
        {"relu": True},
        [0.255415512, -0.199691939, -0.271499853, 40.8102724],
        [0.318477202, -0.282576119, -0.231111195, 46.7687893],
    ),
    "csham alternate": Case(
        "csham",
        {"connection": "alternate"},
        [0.0265891391, -0.0300334512, -0.0380925902, 5.79223564],
        [0.0395953701, -0.0679738214, -0.0363018703, 8.89875008],
    ),
    "ccwh": Case(
        "ccwh",
        {},
        [0.848867807, -0.691649793, -0.9313617, 136.742494],
        [0.848867807, -0.691649793, -0.9313617, 136.742494],
    ),
    "self_attention": Case(
        "self_attention",
        {"heads": 4},
        [0.824325881, -0.970867908, -0.397506815, 126.352142],
        [0.824325881, -0.970867908, -0.397506815, 126.352142],
    ),
    "nonlocal": Case(
        "nonlocal",
        {},
        [2.44188147, 0.676080165, -0.746330296, 133.512456],
        [1.93124708, -0.0231504275, -1.64962731, 118.600236],
    ),
    "nonlocal as in many ports": Case(
        "nonlocal",
        {"scale": False, "sub_sample": False},
        [3.10084744, 0.332403895, -0.855955774, 127.833801],
        [2.07264903, 0.282431246, -2.03771178, 109.626217],
    ),
    "nonlocal gaussian": Case(
        "nonlocal",
        {"mode": "gaussian"},
        [0.398887585, -1.11162579, -0.323035861, 121.59743],
        [-0.523471451, -1.61565481, -2.05019454, 145.223369],
    ),
    "nonlocal dot_product": Case(
        "nonlocal",
        {"mode": "dot_product"},
        [1.97042137, 0.223137539, -1.06330345, 134.544923],
        [-1.80197325, -0.634740037, -0.0743643293, 120.377187],
    ),
    "nonlocal concatenation": Case(
        "nonlocal",
        {"mode": "concatenation"},
        [1.97187363, -0.910977653, 0.405248113, 109.440852],
        [-0.405725953, 1.52188739, 2.62198723, 125.65293],
    ),
    "danet_position": Case(
        "danet_position",
        {},
        [0.662834866, -0.351722604, -1.37479936, 132.828915],
        [0.662834866, -0.351722604, -1.37479936, 132.828915],
    ),
    "danet_channel": Case(
        "danet_channel",
        {},
        [0.00407367089, -0.550526001, -0.413318411, 89.9969336],
        [0.00407367089, -0.550526001, -0.413318411, 89.9969336],
    ),
    "danet": Case(
        "danet",
        {},
        [2.70909701, 2.18712988, 0.91293002, -2.26893478],
        [2.78134698, 1.78050113, 0.0135949898, -4.67230889],
    ),
    "sca": Case(
        "sca",
        {"width": 8},
        [0.690584141, -0.753207355, -0.729057147, 132.512082],
        [0.690584141, -0.753207355, -0.729057147, 132.512082],
    ),
    "sca spatial first": Case(
        "sca",
        {"mode": "S-C", "width": 8},
        [0.678013419, -0.785006878, -0.785968221, 132.39779],
        [0.678013419, -0.785006878, -0.785968221, 132.39779],
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
        elif name.endswith(
            ("weight", "running_var", "gamma")
        ):  # batch norm's, and a residual branch's factor
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
