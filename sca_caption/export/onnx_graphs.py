"""A captioner's run-once part, its word's turn and its classifier of objects, as ONNX graphs.

They are traced from `SCACNN.encode`, `start` and `step` themselves. Shapes: B images of S x S pixels, N partial captions,
W words, d LSTM size, k attention width; of a layer C channels and m = H * W positions.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.guidance.consensus import Consensus
from sca_caption.guidance.hallucination import Subjects
from sca_caption.guidance.novel_objects import Namer
from sca_caption.models.sca_cnn import SCACNN, State
from sca_caption.runtime.errors import UserError

IMAGES, ROWS = 2, 3  # traced with: any two numbers above 1, which would be taken for constant


class Graph(NamedTuple):
    """An ONNX file's bytes, and the names of what goes in and what comes out."""

    file: bytes
    inputs: list[str]
    outputs: list[str]


class Trunk(nn.Module):
    """images uint8 (B, 3, S, S) -> V1 and the carried maps, keys if there are any, hidden and cell (B, d), and where it
    is known what people agree on and speak of, the expected vector (B, W) and the subjects' shares (B, K), for which
    `seen` (B, C) may be needed, from `Nouns`."""

    def __init__(self, model: SCACNN, consensus: Consensus | None, subjects: Subjects | None):
        super().__init__()
        self.model, self.told = (
            model,
            nn.ModuleList(part for part in (consensus, subjects) if part is not None),
        )

    def forward(self, images: Tensor, seen: Tensor | None = None) -> tuple[Tensor, ...]:
        encoded = self.model.encode(images)
        state = self.model.start(encoded)
        keys = () if state.keys is None else (state.keys,)
        told = [part(encoded[0], seen) for part in self.told]
        return *state.maps, *keys, state.hidden, state.cell, *told


class Step(nn.Module):
    """tokens, image (N,), hidden, cell (N, d), maps, keys -> logits (N, W), hidden, cell and what was attended."""

    def __init__(self, model: SCACNN):
        super().__init__()
        self.model = model
        size = model.config.embedding_size
        # In two matrices, as `start` makes them: an exporter leaves the splitting to every step.
        of_word, of_image = model.lstm.weight_ih.detach().split((size, model.lstm.input_size - size), 1)
        self.register_buffer("of_word", of_word.contiguous())
        self.register_buffer("of_image", of_image.contiguous())

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        hidden: Tensor,
        cell: Tensor,
        maps: Sequence[Tensor],
        keys: Tensor | None,
    ) -> tuple[Tensor, ...]:
        state = State(tuple(maps), keys, (self.of_word, self.of_image), image, hidden, cell)
        logits, after = self.model.step(tokens, state)
        attended = [x for beta, alpha in after.attention for x in (alpha, beta) if x is not None]
        return logits, after.hidden, after.cell, *attended


class Nouns(nn.Module):
    """images uint8 (B, 3, S, S) -> probabilities (B, nouns), and the means that they were read from, `seen` (B, C).

    It resizes to ImageNet's size by two matrix products.
    """

    def __init__(self, model: SCACNN, namer: Namer, size: int):
        super().__init__()
        self.objects = namer.objects
        self.below = model.backbone.network.features[: self.objects.first]
        for name, value in (("members", namer.members), ("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, value)
        resized = size != self.objects.size and not self.objects.first
        self.register_buffer("resizing", resizing(size, self.objects.size) if resized else None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (images / 255 - self.mean) / self.std
        if self.resizing is not None:
            x = self.resizing @ x @ self.resizing.T
        seen = self.objects.pooled(self.below(x))
        return self.objects.classes(seen) @ self.members, seen


def resizing(size: int, to: int) -> Tensor:
    """The matrix (to, size) that resizes columns of pixels as `F.interpolate` does: bilinear, antialiased."""
    unit = torch.eye(size)[None, None]
    return F.interpolate(unit, (to, size), mode="bilinear", antialias=True)[0, 0].contiguous()


def layers_of(model: SCACNN, size: int) -> list[dict]:
    """Of each attended layer its name, height, width and channels, and what is attended in it."""
    with torch.no_grad():
        maps = model.encode(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        found = []
        for i, (name, attend) in enumerate(zip(model.backbone.layers, model.attention.values(), strict=True)):
            maps = model.backbone.segment(i - 1, maps[0], maps[1:]) if i else maps
            _, channels, height, width = maps[0].shape
            sides = {"height": height, "width": width, "channels": channels}
            has = {"spatial": attend.spatial is not None, "channel": attend.channel is not None}
            found.append({"name": name} | sides | has)
    return found


def graphs_of(
    model: SCACNN,
    namer: Namer | None,
    size: int,
    consensus: Consensus | None = None,
    subjects: Subjects | None = None,
) -> dict[str, Graph]:
    """The graphs by name: trunk, step, and objects where there is a namer. Batch sizes are dynamic.

    Raises UserError where the packages that write ONNX are missing.
    """
    speaking = namer.model if namer else model  # says the new words too
    with torch.no_grad():
        state = model.start(model.encode(torch.zeros(IMAGES, 3, size, size, dtype=torch.uint8)))
    images, rows = torch.export.Dim("B"), torch.export.Dim("N")
    names = [f"map_{i}" for i in range(len(state.maps))]
    keys = [] if state.keys is None else ["keys"]
    attended = [
        f"{weights}_{i}"
        for i, attend in enumerate(model.attention.values())
        for weights, part in (("alpha", attend.spatial), ("beta", attend.channel))
        if part is not None
    ]
    pixels = torch.zeros(IMAGES, 3, size, size, dtype=torch.uint8)
    # Different tensors, as one that comes twice would become one input.
    tokens, image = (torch.zeros(ROWS, dtype=torch.long) for _ in range(2))
    hidden, cell = (torch.zeros(ROWS, state.hidden.shape[1]) for _ in range(2))
    told = {"expected": consensus, "shares": subjects}
    told = {name: part for name, part in told.items() if part is not None}
    seen = [torch.zeros(IMAGES, part.channels[1]) for part in told.values() if part.reads_objects][:1]
    graphs = {
        "trunk": traced(
            Trunk(model, consensus, subjects),
            (pixels, *seen),
            ({0: images}, *[{0: images}] * len(seen)),
            ["images", *["seen"] * len(seen)],
            [*names, *keys, "hidden", "cell", *told],
        ),
        "step": traced(
            Step(speaking),
            (tokens, image, hidden, cell, list(state.maps), state.keys),
            (*[{0: rows}] * 4, [{0: images}] * len(names), {0: images} if keys else None),
            ["tokens", "image", "hidden", "cell", *names, *keys],
            ["logits", "hidden_after", "cell_after", *attended],
        ),
    }  # fmt: skip
    if namer:
        nouns = Nouns(model, namer, size)
        graphs["objects"] = traced(nouns, (pixels,), ({0: images},), ["images"], ["probabilities", "seen"])
    return graphs


def traced(module: nn.Module, inputs: tuple, dynamic: tuple, names: list[str], outputs: list[str]) -> Graph:
    """The graph that `module` computes, which says nothing of where it was made."""
    try:
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UserError(
            f"writing ONNX needs {error.name}, which is not installed; pip install 'sca-caption[export]'"
        ) from error
    # While gradients are on, the plain formulas are taken.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # of the exporter, on its own dependencies
        model = torch.onnx.export(
            module.eval(),
            inputs,
            dynamic_shapes=dynamic,
            input_names=names,
            output_names=outputs,
            dynamo=True,
            verbose=False,
            external_data=False,
        ).model_proto
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.initializer,
        *model.functions,
    ):
        if hasattr(part, "metadata_props"):  # stack traces
            del part.metadata_props[:]
    del graph.value_info[:]
    return Graph(model.SerializeToString(), names, outputs)
