"""ONNX graphs with their large weights in int8, a quarter of the bytes.

Matrices are multiplied in int8: what they multiply is quantised as it comes, with one scale for the whole of it. The
weights of convolutions are only kept in int8, with a scale for each output channel, and are float32 again once the graph
is loaded: a product in int8 would add its rounding up through some fifty layers. Vectors, depthwise convolutions and
what is small stay as they are.
"""

import tempfile
from pathlib import Path

import numpy as np

from sca_caption.errors import UserError

LARGE = 4096  # elements from which on a weight is stored as int8


def quantize(source: Path, target: Path) -> None:
    """Write the graph in `source` to `target`, with int8 in it. Raises UserError where a package is missing."""
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UserError(
            f"int8 needs {error.name}, which is not installed; pip install 'sca-caption[export]'"
        ) from error

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        prepared, multiplied = Path(scratch, "prepared.onnx"), Path(scratch, "multiplied.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        large = {x.name for x in graph.initializer if len(x.dims) == 2 and np.prod(x.dims) >= LARGE}
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Gather")]
        quantize_dynamic(
            prepared,
            multiplied,
            op_types_to_quantize=["MatMul", "Gather"],
            nodes_to_exclude=[node.name for node in products if large.isdisjoint(node.input)],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(multiplied)
    keep_convolutions(model.graph)
    target.write_bytes(model.SerializeToString())


def keep_convolutions(graph) -> None:
    """Replace the large weights of convolutions by int8 ones and what makes them float32 again."""
    from onnx import helper, numpy_helper

    weights = {x.name: x for x in graph.initializer}
    nodes = []
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or np.prod(weight.dims) < LARGE or weight.dims[1] == 1:
            continue
        values = numpy_helper.to_array(weight)  # (O, I, h, w)
        scale = np.abs(values).max((1, 2, 3)) / 127
        scale[scale == 0] = 1
        name, parts = weight.name, (f"{weight.name}_quantized", f"{weight.name}_scale")
        whole = np.rint(values / scale[:, None, None, None]).astype(np.int8)
        graph.initializer.remove(weights.pop(name))
        for part, value in zip(parts, (whole, scale), strict=True):
            graph.initializer.append(numpy_helper.from_array(value, part))
        nodes.append(helper.make_node("DequantizeLinear", parts, [name], name=f"{name}_restored", axis=0))
    everything = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(everything)
