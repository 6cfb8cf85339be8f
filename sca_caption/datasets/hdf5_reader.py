"""Schema and reader of the data file, one self-describing HDF5 file per data set. hdf5_writer.py writes it.

n images, M captions, image size S of the transform, L words in the longest caption; N texts (captions without
images), T words in the longest text.

    attributes            format="sca_caption", format_version=1, complete=True (written last)
                          source         one line: the data set and the files that were read
                          vocabulary     JSON list of the words from id 4 on (0 to 3: pad, bos, eos, unk)
                          min_count      least count in train of a word of the vocabulary; 0: another file's vocabulary
                          tokenizer      name of the tokenizer of the captions
                          transform      JSON of images.Transform: how the images were resized
                          encoding       jpeg, raw or features
                          skipped        JSON list of [item, reason]: everything that was skipped
    images/file_name      (n,) UTF-8
    images/image_id       (n,) int64, the data set's image id; the row number if it has none
    images/split          (n,) uint8: 0 train, 1 val, 2 test
    images/data           jpeg: (bytes,) uint8, the JPEG files one after the other; an upright RGB JPEG of S x S
                          pixels and few bytes is stored unchanged, other images are compressed once
    images/offsets        jpeg: (n + 1,) int64; image i is data[offsets[i]:offsets[i + 1]]
    images/pixels         raw: (n, S, S, 3) uint8
    features/0, 1, ...    features: (n, ...) float16, the outputs of the backbone, one dataset per tensor;
                          attribute features_of: JSON that describes the backbone
    captions/tokens       (M, L) uint16 or uint32 word ids, without bos and eos, padded with pad (0)
    captions/length       (M,) int32, number of words
    captions/image        (M,) int32, row of the image, ascending, so the captions of an image are consecutive
    captions/text         (M,) UTF-8, the raw reference, each run of white space one space
    texts/tokens          optional, like texts/length and texts/group: (N, T) word ids as in captions/tokens
    texts/length          (N,) int32, number of words
    texts/group           (N,) int32, ascending from 0 without gaps; the captions of a photograph have the same group
                          attributes of texts: source, the names of the files; min_count, the least count in the
                          texts of a further word of the vocabulary; 0: another file's vocabulary
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sca_caption.datasets.hdf5_schema import check_attributes, check_datasets, check_self_contained
from sca_caption.images import ImageError, Transform, load
from sca_caption.runtime.errors import UserError, choice, did_you_mean
from sca_caption.runtime.json_text import parse_json
from sca_caption.runtime.programs import command, program_name
from sca_caption.vocab import Vocabulary

FORMAT, VERSION = "sca_caption", 1
SPLITS = ("train", "val", "test")
ENCODINGS = ("jpeg", "raw", "features")
DAMAGED = (OSError, RuntimeError, MemoryError)  # what h5py raises where it cannot read


class CaptionDataset:
    """Images with captions, read from a data file.

    Can be pickled. Each process opens the file for itself, so a dataset may be created before workers are forked or
    spawned, and several processes can read at the same time. Raises UserError if the file is missing, damaged,
    incomplete or of another version, and if it takes values from other files. A damaged value that only shows when it is
    read raises UserError then.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._handle: tuple[int, h5py.File] | None = None  # id of the process that opened it, and the file
        file = self._file()
        try:
            check_self_contained(file)
            attributes = dict(file.attrs)
            words, self.encoding = parse_json(attributes["vocabulary"]), str(attributes["encoding"])
            check_attributes(words, self.encoding, ENCODINGS)
            self.vocabulary = Vocabulary(words)
            self.transform = Transform.from_dict(parse_json(attributes["transform"]))
            check_datasets(file, self.encoding, self.transform.size, len(SPLITS))
            self.source = str(attributes["source"])
            self.tokenizer = str(attributes["tokenizer"])
            self.min_count = int(attributes["min_count"])
            self.splits = file["images/split"][:]  # (n,) uint8
            # Number of groups of texts, captions without images; 0 in a file without texts.
            self.text_groups = int(file["texts/group"][-1]) + 1 if "texts" in file else 0
            self.features_of: dict[str, Any] = {}  # describes the backbone, for the encoding "features"
            if self.encoding == "features":
                self.features_of = dict(parse_json(file["features"].attrs["features_of"]) or {})
        except (*DAMAGED, AttributeError, LookupError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise self._unreadable(f"does not have the fields of its format ({reason})") from error
        finally:
            self.close()

    def __len__(self) -> int:
        return len(self.splits)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(item, reason) of everything that preprocessing skipped or noted."""
        try:
            return [(str(item), str(reason)) for item, reason in parse_json(self._file().attrs["skipped"])]
        except (*DAMAGED, KeyError, ValueError, TypeError) as error:
            raise self._unreadable("does not have the field skipped of its format") from error

    @property
    def description(self) -> str:
        """One line for logs: path, numbers of images, size, encoding, vocabulary and source."""
        counts = ", ".join(f"{name} {len(self.indices(name))}" for name in SPLITS)
        size = self.transform.size
        return (
            f"{self.path}: {len(self)} images ({counts}), {size}x{size} {self.encoding}, "
            f"{len(self.vocabulary)} words; {self.source}"
        )

    def indices(self, split: str) -> np.ndarray:
        """Row numbers of the images of a split, ascending. Raises UserError for an unknown split."""
        return np.flatnonzero(self.splits == SPLITS.index(choice(split, SPLITS, "split")))

    def image(self, index: int) -> np.ndarray:
        """Image `index` at model size: uint8 (S, S, 3). Raises ImageError if it cannot be decoded."""
        if self.encoding == "raw":
            return self._read("images/pixels", index)
        try:
            return load(self.jpeg(index), self.transform)
        except ImageError as error:
            raise ImageError(f"{self.path}, image {self.file_name(index)}", error.reason) from error

    def jpeg(self, index: int) -> bytes:
        """The JPEG file of image `index`, of model size. Raises UserError if the encoding is not "jpeg"."""
        if self.encoding != "jpeg":
            raise UserError(
                f"{self.path} has the encoding {self.encoding}, not JPEG; preprocess with --encoding jpeg"
            )
        start, stop = self._offsets[index], self._offsets[index + 1]
        return self._read("images/data", slice(start, stop)).tobytes()

    def features(self, index: int) -> tuple[np.ndarray, ...]:
        """The backbone's outputs for image `index`: float16 arrays without batch dimension.

        Raises UserError if the encoding is not "features".
        """
        if self.encoding != "features":
            raise UserError(f"{self.path} has {self.encoding} images; preprocess with --encoding features")
        return tuple(self._read(f"features/{k}", index) for k in range(len(self._file()["features"])))

    def require_features_of(self, backbone: str, layers: Sequence[str], attention: str = "") -> None:
        """Raise UserError if the file has features of another backbone. Images are suitable for every model."""
        if self.encoding == "features" and attention:
            raise UserError(
                f"{self.path} has features of a backbone without attention blocks, the model has {attention} blocks; "
                f"preprocess with --encoding jpeg"
            )
        wanted = {"backbone": backbone, "layers": list(layers)}
        if self.encoding == "features" and {name: self.features_of.get(name) for name in wanted} != wanted:
            found = (
                f"{self.features_of.get('backbone')} cut at {' '.join(self.features_of.get('layers', []))}"
            )
            raise UserError(
                f"{self.path} has features of {found}, the model has {backbone} cut at {' '.join(layers)}; "
                f"preprocess with the model's --backbone and --layers, or with --encoding jpeg"
            )

    def captions(self, index: int) -> list[list[int]]:
        """Word ids per caption of image `index`, without bos and eos."""
        rows = self._caption_rows(index)
        return [
            tokens[:length].tolist()
            for tokens, length in zip(self._tokens[rows], self._lengths[rows], strict=True)
        ]

    def text_captions(self, group: int) -> list[list[int]]:
        """Word ids per caption of group `group` of the texts, 0 to text_groups - 1, without bos and eos."""
        if not 0 <= group < self.text_groups:
            raise IndexError(f"group {group} of {self.text_groups} groups of texts in {self.path}")
        rows = slice(int(self._first_text[group]), int(self._first_text[group + 1]))
        return [
            tokens[:length].tolist()
            for tokens, length in zip(self._text_tokens[rows], self._text_lengths[rows], strict=True)
        ]

    def references(self, index: int) -> list[str]:
        """The raw captions of image `index`."""
        texts = self._read("captions/text", self._caption_rows(index))
        return [text.decode("utf-8", "replace") for text in texts]

    def file_name(self, index: int) -> str:
        return self._read("images/file_name", index).decode("utf-8", "surrogateescape")

    def image_id(self, index: int) -> int:
        return int(self._read("images/image_id", index))

    def close(self) -> None:
        """Close the file in this process. The next read opens it again."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def __getstate__(self) -> dict:
        cached = {"_offsets", "_tokens", "_lengths", "_first_caption"}
        cached |= {"_text_tokens", "_text_lengths", "_first_text"}
        return {name: value for name, value in vars(self).items() if name not in cached} | {"_handle": None}

    def _file(self) -> h5py.File:
        """The file, opened by this process. A handle that was inherited by a fork belongs to the parent."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), self._open()
        return self._handle[1]

    def _open(self) -> h5py.File:
        if not self.path.exists():
            make = f"{command('preprocess.py')} --dataset {self.path.stem}"
            if self.path != Path("data", f"{self.path.stem}.h5"):
                make = f"{command('preprocess.py')} --dataset NAME --output {self.path}"
            from sca_caption.datasets.sources import SOURCES  # which imports the readers of all data sets

            names = [*SOURCES, *(path.stem for path in self.path.parent.glob("*.h5"))]
            near = did_you_mean(self.path.stem, names) if self.path.stem not in SOURCES else ""
            raise UserError(f"no data file {self.path}{near or f'; make it with: {make}'}")
        try:
            # Without a lock: files are replaced and never changed, and some file systems have no locks.
            file = h5py.File(self.path, "r", locking=False)
        except PermissionError as error:
            raise UserError(
                f"no permission to read {self.path}; change it, or give another data file"
            ) from error
        except OSError as error:
            if h5py.is_hdf5(self.path):
                raise self._unreadable("is damaged or cut short") from error
            raise self._unreadable("is not an HDF5 file") from error
        try:
            kind, version, complete = (
                np.asarray(file.attrs.get(name)).tolist() for name in ("format", "format_version", "complete")
            )
        except (*DAMAGED, ValueError, TypeError) as error:
            file.close()
            raise self._unreadable("is damaged or cut short") from error
        if kind == FORMAT and version == VERSION and complete:
            return file
        file.close()
        if kind != FORMAT:
            raise self._unreadable(f"is an HDF5 file, but not of format {FORMAT}")
        if version != VERSION:
            raise self._unreadable(f"has format version {version}, and this program reads version {VERSION}")
        raise self._unreadable("is incomplete, because preprocessing was interrupted")

    def _unreadable(self, reason: str) -> UserError:
        return UserError(
            f"data file {self.path} {reason}; make it again with {program_name('preprocess.py')}"
        )

    def _read(self, name: str, rows: int | slice = slice(None)) -> Any:
        """Rows of a dataset. Raises UserError if they are damaged."""
        try:
            return self._file()[name][rows]
        except DAMAGED as error:
            raise self._unreadable(f"is damaged in {name}") from error

    def _read_tokens(self, name: str) -> np.ndarray:
        """Word ids (captions, words). Raises UserError for an id that the vocabulary does not have."""
        tokens = self._read(name)
        if tokens.size and tokens.max() >= len(self.vocabulary):
            raise self._unreadable(f"is damaged in {name}: {tokens.max()} is no word of its vocabulary")
        return tokens

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        return self._read("images/offsets")

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        return self._read_tokens("captions/tokens")

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return self._read("captions/length")

    @functools.cached_property
    def _first_caption(self) -> np.ndarray:
        """(n + 1,): the captions of image i are rows [first[i], first[i + 1])."""
        return np.searchsorted(self._read("captions/image"), np.arange(len(self) + 1))

    @functools.cached_property
    def _text_tokens(self) -> np.ndarray:
        return self._read_tokens("texts/tokens")

    @functools.cached_property
    def _text_lengths(self) -> np.ndarray:
        return self._read("texts/length")

    @functools.cached_property
    def _first_text(self) -> np.ndarray:
        """(text_groups + 1,): the captions of group g are rows [first[g], first[g + 1])."""
        return np.searchsorted(self._read("texts/group"), np.arange(self.text_groups + 1))

    def _caption_rows(self, index: int) -> slice:
        return slice(int(self._first_caption[index]), int(self._first_caption[index + 1]))
