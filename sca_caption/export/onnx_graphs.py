"""The parts of a captioner as ONNX graphs: what runs once per image, and what runs once per word.

They are traced from `SCACNN.encode`, `start` and `step` themselves. Shapes: B images of S x S pixels, N partial captions,
P parents (see `models.sca_cnn.State`), W words, d LSTM size, k attention width; of a layer C channels and m = H * W
positions.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sca_caption.guidance.guide import Guide, TrainedGuide
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.models.sca_cnn import SCACNN, State
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import install_command

IMAGES, PARENTS, ROWS = (
    2,
    3,
    4,
)  # traced with: any different numbers above 1, which would be taken for a constant
LSTM_WEIGHTS = frozenset(
    {"of_word", "of_image", "model.lstm.weight_hh"}
)  # their names in the graph of `Step`


class Graph(NamedTuple):
    """The bytes of an ONNX file, and the names of its inputs and outputs."""

    file: bytes
    inputs: list[str]
    outputs: list[str]


class Trunk(nn.Module):
    """images uint8 (B, 3, S, S) -> V1 and the carried maps, keys and context if there are any, hidden and cell (B, d),
    and the predictions of guides."""

    def __init__(self, model: SCACNN, predictors: Sequence[TrainedGuide]):
        super().__init__()
        self.model, self.predictors = model, nn.ModuleList(predictors)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        encoded = self.model.encode(images)
        state = self.model.start(encoded)
        optional = (x for x in (state.keys, state.context) if x is not None)
        predictors = cast(Sequence[TrainedGuide], self.predictors)
        predictions = [each(state) for each in predictors]
        return *state.maps, *optional, state.hidden, state.cell, *predictions


class Step(nn.Module):
    """tokens, parent (N,), image (P,), hidden, cell (P, d), maps, keys, context -> logits (N, W), hidden and cell (N, d),
    what was attended."""

    def __init__(self, model: SCACNN):
        super().__init__()
        self.model = model
        size = model.config.embedding_size
        # In two matrices, as `start` makes them: an exporter leaves the splitting to every step.
        of_word, of_image = model.lstm.weight_ih.detach().split((size, model.lstm.input_size - size), 1)
        self.of_word: Tensor
        self.of_image: Tensor
        self.register_buffer("of_word", of_word.contiguous())
        self.register_buffer("of_image", of_image.contiguous())

    def forward(
        self,
        tokens: Tensor,
        parent: Tensor,
        image: Tensor,
        hidden: Tensor,
        cell: Tensor,
        maps: Sequence[Tensor],
        keys: Tensor | None,
        context: Tensor | None,
    ) -> tuple[Tensor, ...]:
        weights = self.of_word, self.of_image
        state = State(tuple(maps), keys, weights, image, hidden, cell, parent, context=context)
        logits, after = self.model.step(tokens, state)
        attended = [x for beta, alpha in after.attention for x in (alpha, beta) if x is not None]
        return logits, after.hidden, after.cell, *attended


def layers_of(model: SCACNN, size: int) -> list[dict]:
    """Of each attended layer its name, height, width and channels, and what is attended in it."""
    with torch.no_grad():
        maps = model.encode(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        found = []
        for i, name in enumerate(model.backbone.layers):
            maps = model.backbone.segment(i - 1, maps[0], maps[1:]) if i else maps
            if name not in model.attended:
                continue
            attend = list(model.attention.values())[i - model.unattended]
            _, channels, height, width = maps[0].shape
            sides = {"height": height, "width": width, "channels": channels}
            has = {"spatial": attend.spatial is not None, "channel": attend.channel is not None}
            found.append({"name": name} | sides | has)
    return found


def graphs_of(captioner: TorchCaptioner, guides: Sequence[Guide] = ()) -> dict[str, Graph]:
    """The graphs by name: trunk and step. Batch sizes are dynamic.

    Raises UserError if the packages that write ONNX are missing.
    """
    model, size = captioner.sca_cnn, captioner.transform.size
    predictions = {guide.prediction: captioner.trained[guide.name] for guide in guides if guide.prediction}
    pixels = torch.zeros(IMAGES, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        state = model.start(model.encode(pixels))
    images, parents, rows = (torch.export.Dim(name) for name in ("B", "P", "N"))
    names = [f"map_{i}" for i in range(len(state.maps))]
    optional = {name: getattr(state, name) for name in ("keys", "context")}
    present = [name for name, value in optional.items() if value is not None]
    attended = [
        f"{weights}_{i}"
        for i, attend in enumerate(model.attention.values())
        for weights, part in (("alpha", attend.spatial), ("beta", attend.channel))
        if part is not None
    ]
    # Different tensors, as one that comes twice would become one input.
    tokens, parent = (torch.zeros(ROWS, dtype=torch.long) for _ in range(2))
    image = torch.zeros(PARENTS, dtype=torch.long)
    hidden, cell = (torch.zeros(PARENTS, state.hidden.shape[1]) for _ in range(2))
    trunk = traced(
        Trunk(model, [*predictions.values()]),
        (pixels,),
        ({0: images},),
        ["images"],
        [*names, *present, "hidden", "cell", *predictions],
    )
    step = traced(
        Step(model),
        (tokens, parent, image, hidden, cell, list(state.maps), *optional.values()),
        (
            *[{0: rows}] * 2,
            *[{0: parents}] * 3,
            [{0: images}] * len(names),
            *({0: images} if name in present else None for name in optional),
        ),
        ["tokens", "parent", "image", "hidden", "cell", *names, *present],
        ["logits", "hidden_after", "cell_after", *attended],
    )
    return {"trunk": trunk, "step": step}


def traced(module: nn.Module, inputs: tuple, dynamic: tuple, names: list[str], outputs: list[str]) -> Graph:
    """The graph that `module` computes, which says nothing of where it was made."""
    try:
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UserError(
            f"writing ONNX needs {error.name}, which is not installed; {install_command('export')}"
        ) from error
    # While gradients are on, the plain formulas are taken.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # of the exporter, on its own dependencies
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamic_shapes=dynamic,
            input_names=names,
            output_names=outputs,
            dynamo=True,
            verbose=False,
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    remove_stack_traces(model)
    remove_unused_initializers(model.graph)
    del model.graph.value_info[:]
    return Graph(model.SerializeToString(), names, outputs)


def remove_unused_initializers(graph: Any) -> None:
    """Remove constants that no node of a graph or of its branches reads; onnxruntime warns of them."""
    used = {output.name for output in graph.output}
    stack = [graph]
    while stack:
        part = stack.pop()
        used.update(output.name for output in part.output)
        for node in part.node:
            used.update(node.input)
            stack.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def remove_stack_traces(part: Any) -> None:
    """Empty `metadata_props`, where torch.onnx keeps stack traces, of a message and of all messages in it."""
    if "metadata_props" in part.DESCRIPTOR.fields_by_name:
        part.ClearField("metadata_props")
    for field, value in part.ListFields():
        if field.message_type:
            for each in value if isinstance(value, Sequence) else [value]:
                remove_stack_traces(each)
