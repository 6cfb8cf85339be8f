"""Every attention block as an ONNX graph with dynamic batch and size, from two pixels."""

import warnings

import pytest
import torch
from torch.testing import assert_close

from tests.helpers.lively_blocks import CASES, CHANNELS, DEFAULTS, case_name, lively, picture

pytestmark = pytest.mark.slow

pytest.importorskip("onnxscript", reason="ONNX export needs onnx and onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="running a graph needs onnxruntime")

MORE_VARIANTS = (  # options that change the graph and not only its numbers
    "cbam pools=('avg', 'max', 'lp', 'lse') reduction=4",
    "nonlocal mode=concatenation",
)
ANY_BATCH_AND_SIZE = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}


@pytest.mark.parametrize(
    "case", DEFAULTS + [case for case in CASES if case_name(case) in MORE_VARIANTS], ids=case_name
)
def test_an_onnx_graph_computes_the_same(case):
    block = lively(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own dependencies
        graph = torch.onnx.export(
            block, (picture(2, CHANNELS, 6, 8),), dynamic_shapes=(ANY_BATCH_AND_SIZE,), verbose=False
        )
    session = onnxruntime.InferenceSession(
        graph.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (name,) = (node.name for node in session.get_inputs())
    for shape in [(2, CHANNELS, 6, 8), (1, CHANNELS, 7, 5), (3, CHANNELS, 2, 9)]:
        x = picture(*shape)
        (output,) = session.run(None, {name: x.numpy()})
        assert_close(torch.from_numpy(output), block(x).detach(), rtol=1e-4, atol=1e-4)


def test_the_variants_exist():
    assert set(MORE_VARIANTS) <= {case_name(case) for case in CASES}
