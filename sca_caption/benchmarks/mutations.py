"""Mutated files of every kind that is read, drawn from a seed: each must be read, or refused with a UserError.

Each function that ends in `_file`, `_files` or `_folder` takes what to mutate and returns two functions: one writes a
mutated file, the other reads it as the programs do.
"""

import contextlib
import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sca_caption import checkpoint
from sca_caption.datasets.hdf5_reader import SPLITS, CaptionDataset
from sca_caption.datasets.sources import find
from sca_caption.evaluation.coco_format import match, read_predictions, read_references
from sca_caption.export.onnx_captioner import OnnxCaptioner
from sca_caption.runtime.errors import UserError

Mutate = Callable[[random.Random], None]
Read = Callable[[], None]
ODD: list[Any] = [
    None, True, -1, 0, 3, 10**9, 10**30, 1e308, float("nan"), "", "a", "../x", "x" * 999, "\ud800", "\0", [], {}, [[]],
    [None], ["a", 1], {"a": 1},
]  # fmt: skip


def outcome(read: Read) -> str:
    """What became of reading a mutated file: "read", or the message of the UserError.

    Raises any other error, and AssertionError for a message that is not one line.
    """
    try:
        read()
    except UserError as error:
        message = str(error)
        assert message and "\n" not in message, f"not one line: {message!r}"
        return message
    return "read"


# ---- mutations -------------------------------------------------------------------------------------------------------


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
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


def mutated_bytes(data: bytes, draw: random.Random, within: int | None = None) -> bytes:
    """A copy that is cut short, or in which bytes are changed, left out or repeated. within: first bytes to mutate."""
    place, length = draw.randrange(min(len(data), within or len(data))), draw.choice((1, 1, 4, 100))
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


# ---- kinds of files --------------------------------------------------------------------------------------------------


def checkpoint_file(path: Path) -> tuple[Mutate, Read]:
    """Mutate an existing checkpoint: its bytes, its description or one of its tensors."""
    whole, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, "pt") as file:
        text = json.loads(file.metadata()["sca_caption"])

    def mutate(draw: random.Random) -> None:
        if not draw.randrange(5):
            path.write_bytes(mutated_bytes(whole, draw))
            return
        changed, about = dict(tensors), json.dumps(text).encode()
        if draw.randrange(3):
            about = mutated_text(text, draw)
        else:
            name = draw.choice([*changed])
            value = changed.pop(name)
            repeats = [2] + [1] * (value.dim() - 1)
            ways = [value[:1], value.flatten(), value.to(torch.int8), value[None], value.repeat(repeats)]
            if draw.randrange(6):
                changed[name] = draw.choice(ways).contiguous()
        save_file(changed, path, {"sca_caption": about.decode("utf-8", "replace")})

    def read() -> None:
        checkpoint.load(path)

    return mutate, read


def data_file(path: Path, bytewise: bool = False) -> tuple[Mutate, Read]:
    """Mutate an existing data file: its length, its data sets and its attributes.

    bytewise: change single bytes too, which HDF5's C library may not survive.
    """
    whole = path.read_bytes()
    with h5py.File(path) as file:
        places = [f"{group}/{name}" for group in file for name in file[group]]

    def mutate(draw: random.Random) -> None:
        path.write_bytes(whole)
        if not draw.randrange(6):
            cut = whole[: draw.randrange(len(whole))]
            path.write_bytes(mutated_bytes(whole, draw) if bytewise and draw.randrange(2) else cut)
            return
        with h5py.File(path, "r+") as file:
            if draw.randrange(3):
                name = draw.choice(places)
                values = file[name][:]
                del file[name]
                if draw.randrange(8):
                    file[name] = mutated_array(values, draw)
                return
            name = draw.choice([*file.attrs])
            value = file.attrs[name]
            # What h5py's writer raises.
            with contextlib.suppress(TypeError, ValueError, OverflowError, UnicodeEncodeError):
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

    return mutate, read


def export_folder(folder: Path) -> tuple[Mutate, Read]:
    """Mutate the model.json of an existing export."""
    path = folder / "model.json"
    about = json.loads(path.read_bytes())

    def mutate(draw: random.Random) -> None:
        path.write_bytes(mutated_text(about, draw))

    def read() -> None:
        OnnxCaptioner.load(folder)

    return mutate, read


def results_files(folder: Path) -> tuple[Mutate, Read]:
    """References and predictions as JSON, JSON Lines and CSV, made here."""
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "caption": "a dog"} for i in range(3)],
    }
    by_name = {"0.jpg": ["a dog", "it"], "1.jpg": ["a cat"], "2.jpg": ["two"]}
    given, results = folder / "references.json", [{"image_id": i, "caption": "a cat"} for i in range(3)]
    names = [f"out{ending}" for ending in (".json", ".jsonl", ".csv")]

    def mutate(draw: random.Random) -> None:
        which = draw.randrange(3)
        value = draw.choice((coco, by_name))
        given.write_bytes(mutated_text(value, draw) if which < 2 else json.dumps(value).encode())
        lines = b"\n".join(
            json.dumps(each).encode() if draw.randrange(3) else mutated_text(each, draw) for each in results
        )
        table = b'image_id,file_name,caption\n1,1.jpg,a cat\n2,2.jpg,"two"\n'
        texts = (mutated_text(results, draw), lines, mutated_bytes(table, draw))
        for name, text in zip(names, texts, strict=True):
            (folder / name).write_bytes(text if which else json.dumps(results).encode())

    def check(name: str) -> None:
        match(read_predictions(folder / name), read_references(given), given)

    return mutate, _each([partial(check, name) for name in names])


def caption_files(folder: Path, image: bytes) -> tuple[Mutate, Read]:
    """COCO's captions, Karpathy's file and a table of JSON Lines, made here, of photographs with the bytes `image`."""
    names = ["000000000001.jpg", "000000000002.jpg"]
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names, 1)],
        "annotations": [{"id": i, "image_id": 1 + i % 2, "caption": "a dog"} for i in range(4)],
    }
    sentences = [{"raw": "a dog", "tokens": ["a", "dog"], "sentid": 1}]
    about = {"filepath": "train2017", "split": "train", "sentences": sentences}
    karpathy = {"images": [{"filename": name, "cocoid": i, **about} for i, name in enumerate(names, 1)]}
    rows = [{"image": name, "captions": ["a dog", "it"], "split": "train"} for name in names]
    for each in ("coco", "karpathy"):
        (folder / each / "train2017").mkdir(parents=True)
        for name in names:
            (folder / each / "train2017" / name).write_bytes(image)
    (folder / names[0]).write_bytes(image)

    def mutate(draw: random.Random) -> None:
        (folder / "coco" / "captions_train2017.json").write_bytes(mutated_text(coco, draw))
        (folder / "karpathy" / "dataset_coco.json").write_bytes(mutated_text(karpathy, draw))
        (folder / "mine.jsonl").write_bytes(b"\n".join(mutated_text(row, draw) for row in rows))

    def check(dataset: str, root: str) -> None:
        source = find(dataset, folder / root)
        assert all(isinstance(text, str) for record in source.records for text in record.captions)
        np.array([record.image_id for record in source.records if record.image_id is not None], np.int64)

    sources = (("coco", "coco"), ("coco", "karpathy"), ("csv", "mine.jsonl"))
    return mutate, _each([partial(check, *source) for source in sources])


def _each(reads: Sequence[Read]) -> Read:
    """Call all of `reads`. Raises the last UserError after that."""

    def read() -> None:
        refused = None
        for each in reads:
            try:
                each()
            except UserError as error:
                refused = error
        if refused:
            raise refused

    return read
