"""Mutated files of every kind that is read: each opens and reads, or is refused in one line, and nothing else happens.

The mutations are drawn from a seed. SCA_CAPTION_MUTATIONS=5000 in the environment tries that many of each kind, and also
files in which single bytes have changed of data files, which HDF5's C library may not survive.
"""

import contextlib
import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import SearchConfig
from sca_caption.datasets.hdf5_reader import SPLITS, CaptionDataset
from sca_caption.datasets.sources import find
from sca_caption.datasets.sources.texts import Texts
from sca_caption.evaluation.coco_format import match, read_predictions, read_references
from sca_caption.export import onnx_captioner
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import Vocabulary
from tests.helpers.dataset_trees import image
from tests.helpers.made_photos import SMALL, dataset, write
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import captioner

MUTATIONS = int(os.environ.get("SCA_CAPTION_MUTATIONS", "0"))
COUNT = MUTATIONS or 60  # of each kind
WORDS = ["a", "dog", "cat", "runs"]
ODD: list[Any] = [
    None, True, -1, 0, 3, 10**9, 10**30, 1e308, float("nan"), "", "a", "../x", "x" * 999, "\ud800", "\0", [], {}, [[]],
    [None], ["a", 1], {"a": 1},
]  # fmt: skip


# ---- mutations -------------------------------------------------------------------------------------------------------


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*path, key))


def mutated_json(value: Any, draw: random.Random) -> Any:
    """A copy in which one value is replaced, left out or repeated."""
    *path, last = ("whole", *draw.choice([*nodes(value)]))
    whole: Any = {"whole": copy.deepcopy(value)}
    holder = whole
    for key in path:
        holder = holder[key]
    way = draw.randrange(4)
    if way == 0 and path:
        del holder[last]
    elif way == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
    else:
        holder[last] = draw.choice(ODD)
    return whole["whole"]


def mutated_text(value: Any, draw: random.Random) -> bytes:
    """JSON of a mutated value, which may be damaged beyond that."""
    if not draw.randrange(12):
        return b'{"a": ' * 50_000
    text = json.dumps(mutated_json(value, draw)).encode()
    return text if draw.randrange(4) else mutated_bytes(text, draw)


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """A copy that is cut short, or in which bytes are changed, left out or repeated."""
    place, length = draw.randrange(len(data)), draw.choice((1, 1, 4, 100))
    if not draw.randrange(3):
        return data[:place]
    middle = draw.choice((b"", draw.randbytes(length), data[place : place + length] * 2))
    return data[:place] + middle + data[place + length :]


def mutated_array(values: np.ndarray, draw: random.Random) -> np.ndarray:
    """Values of another number, order, type or shape."""
    if values.dtype == object:
        return draw.choice((values[:-1], np.arange(len(values)), values[:, None], values[::-1]))
    ways: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a[:-1], lambda a: a[::-1], lambda a: a.astype(float), lambda a: a[:, None], lambda a: a.astype("S3"),
        lambda a: a[:0], lambda a: np.concatenate([a, a]), lambda a: a.astype("i8") - 3, lambda a: a.astype("u1"),
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == draw.randrange(a.size), a.dtype.type(2**7), a),
    ]  # fmt: skip
    return draw.choice(ways)(values)


# ---- kinds of files: from a folder, a function that writes a mutated file and one that reads it ---------------------

Kind = tuple[Callable[[random.Random], None], Callable[[], Any]]


def checkpoint_file(folder: Path) -> Kind:
    path = folder / "best.pt"
    made = Checkpoint(
        captioner(SimpleNamespace(vocabulary=range(8))), Vocabulary(WORDS), SMALL, {"val": {"CIDEr": 1.0}}
    )
    checkpoint.save(path, made, "int8")
    whole, tensors = path.read_bytes(), load_file(path)
    with checkpoint.safe_open(path, "pt") as file:
        text = json.loads(file.metadata()["sca_caption"])

    def spoil(draw: random.Random) -> None:
        if not draw.randrange(5):
            path.write_bytes(mutated_bytes(whole, draw))
            return
        changed, about = dict(tensors), json.dumps(text).encode()
        if draw.randrange(3):
            about = mutated_text(text, draw)
        else:
            name = draw.choice([*changed])
            value = changed.pop(name)
            ways = [
                value[:1],
                value.flatten(),
                value.to(torch.int8),
                value[None],
                value.repeat(2, *[1] * (value.dim() - 1)),
            ]
            if draw.randrange(6):
                changed[name] = draw.choice(ways).contiguous()
        save_file(changed, path, {"sca_caption": about.decode("utf-8", "replace")})

    return spoil, lambda: checkpoint.load(path)


def data_file(folder: Path) -> Kind:
    path = folder / "made.h5"
    write(dataset(6), path, texts=Texts("a.csv", ["a dog", "cats", "it"], [0, 0, 1], {}))
    whole = path.read_bytes()
    places = [
        "images/file_name",
        "images/image_id",
        "images/split",
        "images/data",
        "images/offsets",
        "captions/tokens",
    ]
    places += [
        "captions/length",
        "captions/image",
        "captions/text",
        "texts/tokens",
        "texts/length",
        "texts/group",
    ]

    def spoil(draw: random.Random) -> None:
        path.write_bytes(whole)
        if not draw.randrange(6):
            bytewise = MUTATIONS and draw.randrange(2)
            path.write_bytes(mutated_bytes(whole, draw) if bytewise else whole[: draw.randrange(len(whole))])
            return
        with h5py.File(path, "r+") as file:
            if draw.randrange(3):
                name = draw.choice(places)
                values = file[name][:]
                del file[name]
                if draw.randrange(8):
                    file[name] = mutated_array(values, draw)
            else:
                name = draw.choice([*file.attrs])
                value = file.attrs[name]
                with contextlib.suppress(
                    TypeError, ValueError, OverflowError, UnicodeEncodeError
                ):  # of h5py's writer
                    is_json = isinstance(value, str) and value.startswith(("[", "{"))
                    file.attrs[name] = mutated_text(json.loads(value), draw) if is_json else draw.choice(ODD)

    def read() -> None:
        data = CaptionDataset(path)
        data.skipped, data.description  # noqa: B018
        for split in SPLITS:
            for index in data.indices(split):
                data.captions(index), data.references(index), data.file_name(index), data.image_id(index)
                data.image(index)
        for group in range(data.text_groups):
            data.text_captions(group)

    return spoil, read


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

    def spoil(draw: random.Random) -> None:
        (folder / "model.json").write_bytes(mutated_text(about, draw))

    return spoil, lambda: onnx_captioner.OnnxCaptioner.load(folder)


def references(folder: Path) -> Kind:
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "caption": "a dog"} for i in range(3)],
    }
    given, results = folder / "references.json", [{"image_id": i, "caption": "a cat"} for i in range(3)]
    names = [f"out{ending}" for ending in (".json", ".jsonl", ".csv")]

    def spoil(draw: random.Random) -> None:
        spoilt = draw.randrange(3)
        by_name = {"0.jpg": ["a dog", "it"], "1.jpg": ["a cat"], "2.jpg": ["two"]}
        value = draw.choice((coco, by_name))
        given.write_bytes(mutated_text(value, draw) if spoilt < 2 else json.dumps(value).encode())
        lines = b"\n".join(
            mutated_text(each, draw) if not draw.randrange(3) else json.dumps(each).encode()
            for each in results
        )
        table = b'image_id,file_name,caption\n1,1.jpg,a cat\n2,2.jpg,"two"\n'
        for name, text in zip(
            names, (mutated_text(results, draw), lines, mutated_bytes(table, draw)), strict=True
        ):
            (folder / name).write_bytes(text if spoilt else json.dumps(results).encode())

    def read() -> None:
        refused = None
        for name in names:
            try:
                match(read_predictions(folder / name), read_references(given), given)
            except UserError as error:
                refused = error
        if refused:
            raise refused

    return spoil, read


def captions_files(folder: Path) -> Kind:
    """COCO's captions, Karpathy's file and a table of JSON lines."""
    names = ["000000000001.jpg", "000000000002.jpg"]
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names, 1)],
        "annotations": [{"id": i, "image_id": 1 + i % 2, "caption": "a dog"} for i in range(4)],
    }
    sentences = [{"raw": "a dog", "tokens": ["a", "dog"], "sentid": 1}]
    karpathy = {
        "images": [
            {"filename": name, "filepath": "train2017", "cocoid": i, "split": "train", "sentences": sentences}
            for i, name in enumerate(names, 1)
        ]
    }
    rows = [{"image": name, "captions": ["a dog", "it"], "split": "train"} for name in names]
    for each in ("coco", "karpathy"):
        (folder / each / "train2017").mkdir(parents=True)
        for name in names:
            (folder / each / "train2017" / name).write_bytes(image(name))
    (folder / names[0]).write_bytes(image(names[0]))

    def spoil(draw: random.Random) -> None:
        (folder / "coco" / "captions_train2017.json").write_bytes(mutated_text(coco, draw))
        (folder / "karpathy" / "dataset_coco.json").write_bytes(mutated_text(karpathy, draw))
        (folder / "mine.jsonl").write_bytes(b"\n".join(mutated_text(row, draw) for row in rows))

    def read() -> None:
        refused = None
        for name, root in (("coco", "coco"), ("coco", "karpathy"), ("csv", "mine.jsonl")):
            try:
                source = find(name, folder / root)
                assert all(isinstance(text, str) for record in source.records for text in record.captions)
                np.array(
                    [record.image_id for record in source.records if record.image_id is not None], np.int64
                )
            except UserError as error:
                refused = error
        if refused:
            raise refused

    return spoil, read


# ---- the test --------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("kind", [checkpoint_file, data_file, export_folder, references, captions_files])
def test_mutated_files_are_read_or_refused_in_one_line(kind, tmp_path, monkeypatch, capsys):
    if kind is export_folder:
        monkeypatch.setattr(pytest.importorskip("onnxruntime"), "InferenceSession", Session)
    spoil, read = kind(tmp_path)
    refused = 0
    for number in range(COUNT):
        spoil(random.Random(f"{kind.__name__} {number}"))
        try:
            read()
        except UserError as error:
            refused += 1
            assert str(error) and "\n" not in str(error), f"mutation {number}: {error}"
        except Exception as error:
            raise AssertionError(f"mutation {number} of {kind.__name__}: {error!r}") from error
    assert refused
