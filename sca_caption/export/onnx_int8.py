"""ONNX graphs with int8 matrices and float16 convolutions, as in int8 checkpoints (see `models.quantization`).

Matrices have one scale per output. Those of the LSTM multiply in int8: each step rounds their inputs to 8 bits with a
scale of its own (dynamic quantization). They have 7 bits, because sums of products overflow on processors without VNNI
otherwise. All other weights are float32 again once the graph is loaded: int8 products of convolutions would be faster,
but change the encoder's maps too much, and those of the last matrices change captions more than they save time. Vectors
and small tensors stay as they are.
"""

import tempfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from sca_caption.models.quantization import MIN_INT8_SIZE
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import install_command

# Per operator: the index of the weight among the inputs, and the axis of the weight that indexes outputs.
WEIGHT_INPUTS = {"Conv": (1, 0), "MatMul": (1, 1), "Gather": (0, 0)}


def quantize(source: Path, target: Path, multiplied: Set[str] = frozenset()) -> None:
    """Write the graph in `source` to `target`, with int8 in it. multiplied: names of matrices that multiply in int8.

    Raises UserError where a package is missing.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
        from onnxruntime.quantization import QuantType, quantize_dynamic, shape_inference
    except ImportError as error:
        raise UserError(
            f"int8 needs {error.name}, which is not installed; {install_command('export')}"
        ) from error

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        prepared = Path(scratch, "prepared.onnx")
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = [
            node.name for node in onnx.load(prepared).graph.node if not multiplied.isdisjoint(node.input)
        ]
        if nodes:
            quantize_dynamic(
                prepared,
                prepared,
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],  # which it makes of Gemm
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        model = onnx.load(prepared)
    graph = model.graph
    weights = {x.name: x for x in graph.initializer}
    restored = []
    for node in graph.node:
        place, axis = place_of(node)
        weight = weights.get(node.input[place]) if place is not None else None
        if weight is None or np.prod(weight.dims) < MIN_INT8_SIZE or len(weight.dims) < 2:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        graph.initializer.remove(weights.pop(name))
        if values.ndim != 2:
            half = numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
            graph.initializer.append(half)
            restored.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
            continue
        scale = np.abs(values).max(tuple(i for i in range(values.ndim) if i != axis), keepdims=True) / 127
        scale[scale == 0] = 1
        parts = (f"{name}_quantized", f"{name}_scale")
        for part, value in zip(
            parts, (np.rint(values / scale).astype(np.int8), scale.flatten()), strict=True
        ):
            graph.initializer.append(numpy_helper.from_array(value, part))
        restored.append(
            helper.make_node("DequantizeLinear", parts, [name], name=f"{name}_restored", axis=axis)
        )
    everything = [*restored, *graph.node]
    del graph.node[:]
    graph.node.extend(everything)
    target.write_bytes(model.SerializeToString())


def place_of(node: Any) -> tuple[int | None, int]:
    """The entry of WEIGHT_INPUTS for a node; (None, 0) for nodes without a weight."""
    if node.op_type == "Gemm":
        return 1, 0 if any(x.name == "transB" and x.i for x in node.attribute) else 1
    return WEIGHT_INPUTS.get(node.op_type, (None, 0))
