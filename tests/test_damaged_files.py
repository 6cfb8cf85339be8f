"""Mutated files of every kind that is read: each opens and reads, or is refused in one line, and nothing else happens.

The mutations are drawn from a seed. SCA_CAPTION_MUTATIONS=5000 in the environment tries that many of each kind, and also
files in which single bytes have changed of data files, which HDF5's C library may not survive.
"""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from sca_caption import checkpoint
from sca_caption.benchmarks import mutations
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import SearchConfig
from sca_caption.datasets.sources.texts import Texts
from sca_caption.vocab import Vocabulary
from tests.helpers.dataset_trees import image
from tests.helpers.made_photos import SMALL, dataset, write
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import captioner

MUTATIONS = int(os.environ.get("SCA_CAPTION_MUTATIONS", "0"))
COUNT = MUTATIONS or 60  # of each kind
WORDS = ["a", "dog", "cat", "runs"]
Kind = tuple[mutations.Mutate, mutations.Read]


def checkpoint_file(folder: Path) -> Kind:
    path = folder / "best.pt"
    made = Checkpoint(
        captioner(SimpleNamespace(vocabulary=range(8))), Vocabulary(WORDS), SMALL, {"val": {"CIDEr": 1.0}}
    )
    checkpoint.save(path, made, "int8")
    return mutations.checkpoint_file(path)


def data_file(folder: Path) -> Kind:
    path = folder / "made.h5"
    write(dataset(6), path, texts=Texts("a.csv", ["a dog", "cats", "it"], [0, 0, 1], {}))
    return mutations.data_file(path, bytewise=MUTATIONS > 0)


def export_folder(folder: Path) -> Kind:
    pytest.importorskip("onnxruntime")
    about = {
        "format_version": 6, "words": ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS], "vocabulary_size": 8,
        "transform": {"size": 32, "mode": "crop"}, "layers": [{"name": "a"}], "dtypes": ["float32"],
        "inputs": {"trunk": ["images"], "step": ["tokens", "parent", "image", "hidden", "cell", "map_0"]},
        "outputs": {"trunk": ["map_0", "hidden", "cell"], "step": ["logits", "hidden_after", "cell_after"]},
        "search": vars(SearchConfig()), "bad_endings": [4], "conjunctions": [],
        "guides": [{"name": "confidence", "prediction": None, "slope": 2.0, "intercept": 1.0, "ratings": {}}],
    }  # fmt: skip
    for name in about["inputs"]:
        (folder / f"{name}.onnx").write_bytes(b"")
    (folder / "model.json").write_text(json.dumps(about))
    return mutations.export_folder(folder)


def caption_files(folder: Path) -> Kind:
    return mutations.caption_files(folder, image("a.jpg"))


class Session:
    """Stands for onnxruntime's; its graphs have all inputs and outputs."""

    def __init__(self, path, *_):
        self.inputs = ["images"] if path.stem == "trunk" else ["tokens", "image", "hidden", "cell", "map_0"]
        self.outputs = ["map_0", "hidden", "cell", "logits", "hidden_after", "cell_after"]

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self.inputs]

    def get_outputs(self):
        return [SimpleNamespace(name=name, shape=["N", 8]) for name in self.outputs]


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    "kind", [checkpoint_file, data_file, export_folder, mutations.results_files, caption_files]
)
def test_mutated_files_are_read_or_refused_in_one_line(kind, tmp_path, monkeypatch):
    if kind is export_folder:
        monkeypatch.setattr(pytest.importorskip("onnxruntime"), "InferenceSession", Session)
    mutate, read = kind(tmp_path)
    refused = 0
    for number in range(COUNT):
        mutate(random.Random(f"{kind.__name__} {number}"))
        try:
            refused += mutations.outcome(read) != "read"
        except Exception as error:
            raise AssertionError(f"mutation {number} of {kind.__name__}: {error!r}") from error
    assert refused
