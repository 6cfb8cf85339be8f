"""An exported captioner under onnxruntime, as `CaptionPipeline` uses one. Search and guides are those of PyTorch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sca_caption import config
from sca_caption.config import SearchConfig
from sca_caption.export.model_json import DESCRIPTION, GRAPHS, graph_path, read_description
from sca_caption.guidance import GUIDES, removed_guides, require_known_guides, warn_of_removed
from sca_caption.guidance.guide import Guide
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import INVALID, UserError
from sca_caption.runtime.programs import install_command
from sca_caption.vocab import SPECIALS, Vocabulary


@dataclass
class OnnxState:
    """The state of N partial captions. Captions that share their words so far share one of P parents (see `SCACNN`)."""

    maps: dict[str, Tensor]  # one row per image, by name of the step graph's inputs
    image: Tensor  # (P,) rows of maps
    hidden: Tensor  # (P, d)
    cell: Tensor  # (P, d)
    parent: Tensor | None = None  # (N,) rows of hidden; None means that each caption is its own parent
    # Of the last step, one pair per attended layer: beta (N, C) or None, alpha (N, m) or None.
    attention: tuple[tuple[Tensor | None, Tensor | None], ...] = ()

    def __len__(self) -> int:
        return len(self.hidden if self.parent is None else self.parent)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def select(self, rows: Tensor) -> "OnnxState":
        parents, parent = (rows if self.parent is None else self.parent[rows]).unique(return_inverse=True)
        image, hidden, cell = (each[parents] for each in (self.image, self.hidden, self.cell))
        return replace(self, image=image, hidden=hidden, cell=cell, parent=parent, attention=())

    def spread(self) -> "OnnxState":
        """The state in which each caption is its own parent."""
        if self.parent is None:
            return self
        image, hidden, cell = (each[self.parent] for each in (self.image, self.hidden, self.cell))
        return replace(self, image=image, hidden=hidden, cell=cell, parent=None)


class OnnxCaptioner:
    """The graphs of an exported folder. Attributes as of `inference.torch_captioner.TorchCaptioner`, on the CPU."""

    def __init__(self, description: Mapping[str, Any], sessions: Mapping[str, Any]):
        self.description, self.sessions = description, sessions
        # Guides of earlier versions added words at the end, of which the graphs still compute logits.
        self.vocabulary = Vocabulary(description["words"][len(SPECIALS) : description["vocabulary_size"]])
        self.transform = Transform.from_dict(description["transform"])
        self.device = torch.device("cpu")
        self.survives_fork = False  # onnxruntime's threads are gone
        self.networks: list[SCACNN] = []
        self.layers = len(description["layers"])

    @classmethod
    def load(cls, folder: str | Path, dtype: str = "float32", threads: int = 0) -> "OnnxCaptioner":
        """dtype: "float32" or "int8". threads: per operator; 0: as many as there are cores.

        Raises UserError for a folder that is no export or lacks a part, and if onnxruntime is not installed.
        """
        folder = Path(folder)
        description = read_description(folder)
        if dtype not in description["dtypes"]:
            raise UserError(
                f"{folder} has no {dtype} graphs; write them with python -m sca_caption export --dtype {dtype}"
            )
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"running ONNX graphs needs onnxruntime, which is not installed; {install_command('export')}"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Between two graphs the search runs in PyTorch, whose threads would wait for cores that onnxruntime's keep busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors are raised as well
        sessions = {}
        for name in GRAPHS:
            path = graph_path(folder, name, dtype)
            if not path.is_file():
                raise UserError(
                    f"{folder} lacks {path.relative_to(folder)}; copy it whole, or export it again"
                )
            try:
                sessions[name] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
                check_graph(name, sessions[name], description)
            except Exception as error:  # onnxruntime raises types of its own
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{path} cannot be read ({reason}); copy it or export it again") from error
        try:
            captioner = cls(description, sessions)
            captioner.guides(quiet=True)
            captioner.search  # noqa: B018 (raises UserError for wrong settings)
        except INVALID as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder / DESCRIPTION} does not describe a model ({reason}); copy it whole, or export it again"
            ) from error
        return captioner

    def guides(self, quiet: bool = False) -> list[Guide]:
        """The guides that model.json describes, in the order in which they act. Raises UserError for unknown ones.

        Warns of guides that are left out (see `guidance.removed_guides`) unless `quiet`.
        """
        described = {each["name"]: each for each in self.description["guides"]}
        require_known_guides(DESCRIPTION, described)
        removed = removed_guides(described, reads_features=len(self.description["inputs"]["trunk"]) > 1)
        if not quiet:
            warn_of_removed(DESCRIPTION, removed)
        return [
            kind.from_json(described[name], self.vocabulary)
            for name, kind in GUIDES.items()
            if name in described and name not in removed
        ]

    @property
    def search(self) -> SearchConfig:
        """The folder's default settings."""
        return config.from_dict(SearchConfig, self.description["search"])

    @property
    def sca_cnn(self) -> SCACNN:
        """Raises UserError: attention of an exported model is only in the states that `step` returns."""
        raise UserError(
            "attention is not drawn of an exported model; give the checkpoint that it was made from"
        )

    def start(self, batch: Tensor, guides: Sequence[Guide]) -> tuple[OnnxState, dict[str, Tensor]]:
        """The state before the first word, one row per image, and the predictions of guides by name.

        batch: images uint8 (B, 3, S, S).
        """
        given = {"images": batch}
        for each in self.sessions["trunk"].get_inputs()[1:]:  # features that guides of earlier versions read
            given[each.name] = torch.zeros(len(batch), each.shape[1])
        values = self._run("trunk", given, len(batch))
        names = self.description["inputs"]["step"]
        maps = {name: values[name] for name in names if name in values and name not in ("hidden", "cell")}
        predictions = {guide.name: values[guide.prediction] for guide in guides if guide.prediction}
        return OnnxState(maps, torch.arange(len(batch)), values["hidden"], values["cell"]), predictions

    def step(self, tokens: Tensor, state: OnnxState) -> tuple[Tensor, OnnxState]:
        """Previous words (N,) -> logits of all words (N, W), and the state after them."""
        if "parent" in self.description["inputs"]["step"]:
            parent = torch.arange(len(state)) if state.parent is None else state.parent
            rows = {"tokens": tokens, "parent": parent}
        else:  # a graph of an earlier version
            state, rows = state.spread(), {"tokens": tokens}
        parents = {"image": state.image, "hidden": state.hidden, "cell": state.cell}
        found = self._run("step", state.maps | rows | parents, len(tokens))
        logits = found["logits"][:, : len(self.vocabulary)]
        attention = tuple((found.get(f"beta_{i}"), found.get(f"alpha_{i}")) for i in range(self.layers))
        image = state.image if state.parent is None else state.image[state.parent]
        return logits, OnnxState(
            state.maps, image, found["hidden_after"], found["cell_after"], attention=attention
        )

    def _run(self, graph: str, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The outputs of a graph, of `rows` rows each. onnxruntime reads and writes the tensors' own memory."""
        session = self.sessions[graph]
        wanted = self.description["outputs"][graph]
        shapes = {each.name: (rows, *each.shape[1:]) for each in session.get_outputs() if each.name in wanted}
        outputs = {name: torch.empty(shape) for name, shape in shapes.items()}
        given = {name: value.contiguous() for name, value in inputs.items()}
        binding = session.io_binding()
        for bind, tensors in ((binding.bind_input, given), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(name, "cpu", 0, tensor.numpy().dtype, tuple(tensor.shape), tensor.data_ptr())
        session.run_with_iobinding(binding)
        return outputs


def check_graph(name: str, session: Any, description: Mapping[str, Any]) -> None:
    """Raise ValueError if a graph's inputs and outputs are not those that model.json names."""
    given, found = set(description["inputs"][name]), {each.name for each in session.get_inputs()}
    if given != found:
        raise ValueError(f"its inputs are {sorted(found)}, {DESCRIPTION} says {sorted(given)}")
    shapes = {each.name: each.shape for each in session.get_outputs()}
    lacking = set(description["outputs"].get(name, ())) - set(shapes)
    if lacking:
        raise ValueError(f"it has no outputs {sorted(lacking)}")
    unknown = [name for name, shape in shapes.items() if not all(isinstance(size, int) for size in shape[1:])]
    if unknown:
        raise ValueError(f"outputs {sorted(unknown)} have no known width")
    words = len(description["words"])
    if name == "step" and shapes["logits"][-1] != words:
        raise ValueError(f"its logits are of {shapes['logits'][-1]} words, {DESCRIPTION} has {words}")


def load_pipeline(
    folder: str | Path,
    *,
    dtype: str = "float32",
    threads: int = 0,
    search: SearchConfig | None = None,
    **options: Any,
) -> CaptionPipeline:
    """The pipeline of an exported folder, on the CPU.

    dtype, threads: as for `OnnxCaptioner.load`. search: default: the folder's. options: as for `CaptionPipeline`.
    """
    model = OnnxCaptioner.load(folder, dtype, threads)
    return CaptionPipeline(model, model.guides(), search=search or model.search, **options)
