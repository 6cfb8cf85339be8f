"""A captioner that was exported (see `export`), at work under onnxruntime.

The search is `decode.beam_search` and the naming of objects `naming.Lexicon`, as in PyTorch: only the graphs are run by
another library. Shapes as in `onnx_graphs`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sca_caption.config import BATCH_SIZE, SearchConfig
from sca_caption.decoding import beam_search
from sca_caption.export.model_json import described, graph_path, lexicon_of
from sca_caption.guidance.confidence import Calibration
from sca_caption.guidance.hallucination import Rule
from sca_caption.guidance.masking import Discreet
from sca_caption.images import Transform
from sca_caption.inference.captioning import Caption, CaptionPipeline
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS, Vocabulary


@dataclass
class OnnxState:
    """Where N partial captions stand: `maps` are what the trunk made of each image, `image` says which a row reads."""

    maps: dict[str, np.ndarray]  # by name of the graphs' inputs, a row an image
    image: Tensor  # (N,)
    hidden: Tensor  # (N, d)
    cell: Tensor  # (N, d)
    expected: Tensor | None = (
        None  # (B, W) what people are expected to say, a row an image, where that is known
    )
    shares: Tensor | None = (
        None  # (B, K) of people who would speak of each of the subjects, where that is known
    )
    probabilities: Tensor | None = None  # (B, nouns) of what is in the images, where that was looked for
    # Of the last step, one pair an attended layer: beta (N, C) or None, alpha (N, m) or None.
    attention: tuple[tuple[Tensor | None, Tensor | None], ...] = ()

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def select(self, rows: Tensor) -> "OnnxState":
        image, hidden, cell = (each[rows] for each in (self.image, self.hidden, self.cell))
        return replace(self, image=image, hidden=hidden, cell=cell, attention=())


@dataclass(frozen=True)
class Steps:
    """The step with the logits of the first `words` words only, or of all."""

    captioner: "OnnxCaptioner"
    words: int | None

    def step(self, tokens: Tensor, state: OnnxState) -> tuple[Tensor, OnnxState]:
        logits, after = self.captioner.step(tokens, state)
        return logits[:, : self.words], after


class OnnxCaptioner:
    """The graphs of an exported folder: `start`, with the nouns' probabilities, and `step`, as `decode` needs them.

    `step` gives the logits of all words, also those that only naming may say.
    """

    def __init__(self, description: dict, sessions: dict):
        self.description, self.sessions = description, sessions
        self.outputs = description["outputs"]
        self.layers = len(description["layers"])

    @classmethod
    def load(cls, folder: str | Path, dtype: str = "float32", threads: int = 0) -> "OnnxCaptioner":
        """dtype: "float32" or "int8"; threads: of each operator, 0: as many as there are cores.

        Raises UserError for a folder that is no export or lacks a part, and where onnxruntime is not installed.
        """
        folder = Path(folder)
        description = described(folder)
        names = list(description["inputs"])
        if dtype not in description["dtypes"]:
            raise UserError(
                f"{folder} has no {dtype} graphs; write them with python -m sca_caption export --dtype {dtype}"
            )
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "running ONNX graphs needs onnxruntime, which is not installed; pip install 'sca-caption[export]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Between two graphs the search runs in PyTorch, whose threads would wait for cores that onnxruntime's keep busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # what goes wrong is raised as well
        sessions = {}
        for name in names:
            path = graph_path(folder, name, dtype)
            if not path.is_file():
                raise UserError(
                    f"{folder} lacks {path.relative_to(folder)}; copy it whole, or export it again"
                )
            try:
                sessions[name] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime raises types of its own
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{path} cannot be read ({reason}); copy it or export it again") from error
        return cls(description, sessions)

    def start(self, images: Tensor, objects: bool = True) -> OnnxState:
        """Images uint8 (B, 3, S, S) -> the state before the first word, a row an image.

        objects: look for nouns, if the folder can; ranking may need to look all the same.
        """
        inputs = {"images": images.contiguous().numpy()}
        probabilities, ranked = None, "seen" in self.description["inputs"]["trunk"]
        if "objects" in self.sessions and (objects or ranked):
            found = self._run("objects", inputs)
            probabilities = torch.from_numpy(found["probabilities"])
            inputs |= {"seen": found["seen"]} if ranked else {}
        found = self._run("trunk", inputs)
        hidden, cell = (torch.from_numpy(found.pop(name)) for name in ("hidden", "cell"))
        told = [
            torch.from_numpy(found.pop(name)) if name in found else None for name in ("expected", "shares")
        ]
        return OnnxState(found, torch.arange(len(hidden)), hidden, cell, *told, probabilities)

    def step(self, tokens: Tensor, state: OnnxState) -> tuple[Tensor, OnnxState]:
        """One word further: tokens (N,) are the words before -> logits (N, W), and the state after."""
        rows = {"tokens": tokens, "image": state.image, "hidden": state.hidden, "cell": state.cell}
        found = self._run("step", state.maps | {name: value.numpy() for name, value in rows.items()})
        found = {name: torch.from_numpy(value) for name, value in found.items()}
        attention = tuple((found.get(f"beta_{i}"), found.get(f"alpha_{i}")) for i in range(self.layers))
        after = replace(state, hidden=found["hidden_after"], cell=found["cell_after"], attention=attention)
        return found["logits"], after

    def _run(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = self.outputs[graph]
        return dict(zip(names, self.sessions[graph].run(names, inputs), strict=True))


class OnnxCaptionPipeline(CaptionPipeline):
    """An exported folder in the place of a checkpoint: `caption_batch` and `stream` as CaptionPipeline's, on the CPU.

    Args: as `OnnxCaptioner.load` and `CaptionPipeline` take them; search: by default that of the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str = "float32",
        threads: int = 0,
        search: SearchConfig | None = None,
        batch_size: int = BATCH_SIZE,
        mentions: Sequence[str] = (),
        objects: bool = True,
    ):
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: must be at least 1")
        self.model = OnnxCaptioner.load(folder, dtype, threads)
        self.models, self.namer, self.drawing = [self.model], None, None
        about = self.model.description
        self.device, self.batch_size = torch.device("cpu"), batch_size
        self.words = Vocabulary(about["words"][len(SPECIALS) :])
        self.vocabulary = Vocabulary(about["words"][len(SPECIALS) : about["known"]])
        self.transform = Transform.from_dict(about["transform"])
        self.idf = about["consensus"]["idf"] if about["consensus"] else None
        self._set(search or SearchConfig(**about["search"]), mentions)
        self.calibration = Calibration(**about["calibration"]) if about["calibration"] else None
        self.lexicon = lexicon_of(about, self.words) if objects and about["naming"] else None
        rules = about["subjects"] if objects else None
        self.rules = rules and [Rule(tuple(each["words"]), each["least"], each["main"]) for each in rules]

    def _settings_of(self, search: SearchConfig) -> dict[str, Any]:
        """As `settings_of`, with the words that the folder names."""
        about, settings = self.model.description, dict(vars(search))
        del settings["rerank_weight"]
        settings["never_last"] = about["never_last"] if settings.pop("remove_bad_endings") else ()
        if search.block_ngrams and about["joining"]:
            settings["joining"] = about["joining"]
        return settings

    def trace_batch(self, batch: Tensor) -> NoReturn:
        """Raises UserError: what was attended stands in the states of `OnnxCaptioner.step` instead."""
        raise UserError(
            "attention is not drawn of an exported model; give the checkpoint that it was made from"
        )

    @torch.inference_mode()
    def _search(
        self, batch: Tensor, mentions: Sequence[Sequence[Collection[int]]] | None = None
    ) -> tuple[list[tuple[Caption, ...]], OnnxState]:
        """The captions, and where the captioner stood before their first words."""
        state = self.model.start(batch, self.lexicon is not None)
        mentions = [self.mentions] * len(state) if mentions is None else mentions
        known = Steps(self.model, len(self.vocabulary))
        silent = self.silent(state.shares, mentions) if self.rules else None
        model = known if silent is None else Discreet(known, silent)
        found = beam_search.beam_search(model, state, mentions=mentions, **self.settings)
        ranking = self.ranking(state.expected)
        found = ranking.of_all(found, mentions) if ranking else found
        if self.lexicon:
            found = self.lexicon.mention(
                Steps(self.model, None),
                found,
                state,
                state.probabilities,
                mentions,
                ranking,
                silent,
                **self.settings,
            )
        captions = [tuple(map(self._caption, hypotheses[: self.search.num_captions])) for hypotheses in found]
        return captions, state
