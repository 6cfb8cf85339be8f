"""The data file: one self-describing HDF5 file for a dataset. Schema and reader; store_writer.py makes it.

n images, M captions, S the transform's size, L the longest caption.

    attributes            format="sca_caption", format_version=1, complete=True (written last)
                          source         one line: the dataset and the layout that was read
                          vocabulary     JSON list of the words from id 4 on (0 to 3: pad, bos, eos, unk)
                          min_count      a word is in the vocabulary when train has it so often; 0: another file's
                          tokenizer      what split the captions into words
                          transform      JSON of images.Transform: how the images were brought to size
                          encoding       jpeg, raw or features
                          skipped        JSON list of [item, reason]: all that was left out
    images/file_name      (n,) UTF-8
    images/image_id       (n,) int64, the dataset's own number; the row where it has none
    images/split          (n,) uint8: 0 train, 1 val, 2 test
    images/data           jpeg: (bytes,) uint8, the JPEG files one after the other; what came as an upright RGB JPEG
                          of size S x S, and in few bytes, is that file itself, others are compressed once
    images/offsets        jpeg: (n + 1,) int64; image i is data[offsets[i]:offsets[i + 1]]
    images/pixels         raw: (n, S, S, 3) uint8
    features/0, 1, ...    features: (n, ...) float16, what the trunk returned, one dataset for each tensor;
                          attribute features_of: JSON that describes the trunk
    captions/tokens       (M, L) uint16 or uint32 word ids, without bos and eos, filled with pad (0)
    captions/length       (M,) int32, words in each
    captions/image        (M,) int32, row of its image, ascending: the captions of an image stand together
    captions/text         (M,) UTF-8, the raw reference, white space collapsed
"""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from sca_caption.images import ImageError, Transform, load
from sca_caption.runtime.errors import UserError, choice
from sca_caption.vocab import Vocabulary

FORMAT, VERSION = "sca_caption", 1
SPLITS = ("train", "val", "test")
ENCODINGS = ("jpeg", "raw", "features")


class CaptionDataset:
    """Images with captions, read from a data file.

    Pickles, and opens the file anew in every process, so it may be made before workers are forked or spawned;
    any number of processes read at once. Raises UserError for a file that is missing, damaged, incomplete or
    of another version.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._handle: tuple[int, h5py.File] | None = None  # with the process that opened it
        file = self._file()
        try:
            attributes = dict(file.attrs)
            self.vocabulary = Vocabulary(json.loads(attributes["vocabulary"]))
            self.transform = Transform.from_dict(json.loads(attributes["transform"]))
            self.encoding = str(attributes["encoding"])
            self.source = str(attributes["source"])
            self.tokenizer = str(attributes["tokenizer"])
            self.min_count = int(attributes["min_count"])
            self.splits = file["images/split"][:]  # (n,) uint8
            self.features_of = None  # or, for encoding "features", a dict that describes the trunk
            if self.encoding == "features":
                self.features_of = json.loads(file["features"].attrs["features_of"])
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise self._unreadable(f"lacks what its format promises ({error})") from error
        finally:
            self.close()

    def __len__(self) -> int:
        return len(self.splits)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(item, reason) of all that preprocessing left out or noted."""
        return [(item, reason) for item, reason in json.loads(self._file().attrs["skipped"])]

    @property
    def description(self) -> str:
        """One line for logs."""
        counts = ", ".join(f"{name} {len(self.indices(name))}" for name in SPLITS)
        size = self.transform.size
        return (
            f"{self.path}: {len(self)} images ({counts}), {size}x{size} {self.encoding}, "
            f"{len(self.vocabulary)} words; {self.source}"
        )

    def indices(self, split: str) -> np.ndarray:
        """Rows of the images of a split, ascending."""
        return np.flatnonzero(self.splits == SPLITS.index(choice(split, SPLITS, "split")))

    def image(self, index: int) -> np.ndarray:
        """Image `index` at model size: uint8 (S, S, 3). Raises ImageError where it cannot be decoded."""
        if self.encoding == "raw":
            return self._images["pixels"][index]
        try:
            return load(self.jpeg(index), self.transform)
        except ImageError as error:
            raise ImageError(f"{self.path}, image {self.file_name(index)}", error.reason) from error

    def jpeg(self, index: int) -> bytes:
        """Image `index` as the bytes of a JPEG file of model size."""
        if self.encoding != "jpeg":
            raise UserError(f"{self.path} holds {self.encoding}, not JPEG; preprocess with --encoding jpeg")
        start, stop = self._offsets[index], self._offsets[index + 1]
        return self._images["data"][start:stop].tobytes()

    def features(self, index: int) -> tuple[np.ndarray, ...]:
        """What the trunk returned for image `index`: float16 arrays without the batch dimension."""
        if self.encoding != "features":
            raise UserError(f"{self.path} holds {self.encoding} images; preprocess with --encoding features")
        features = self._file()["features"]
        return tuple(features[str(k)][index] for k in range(len(features)))

    def require_features_of(self, backbone: str, layers: Sequence[str], attention: str = "") -> None:
        """Raise UserError where stored features are not those of this trunk; images fit every model."""
        if self.encoding == "features" and attention:
            raise UserError(
                f"{self.path} holds features of a CNN without attention blocks, the model has {attention} in it; "
                f"preprocess with --encoding jpeg"
            )
        wanted = {"backbone": backbone, "layers": list(layers)}
        if self.encoding == "features" and {name: self.features_of.get(name) for name in wanted} != wanted:
            found = (
                f"{self.features_of.get('backbone')} cut at {' '.join(self.features_of.get('layers', []))}"
            )
            raise UserError(
                f"{self.path} holds features of {found}, the model has {backbone} cut at {' '.join(layers)}; "
                f"preprocess for this model, or with --encoding jpeg"
            )

    def captions(self, index: int) -> list[list[int]]:
        """Word ids of each caption of image `index`, without BOS and EOS."""
        rows = self._caption_rows(index)
        return [
            tokens[:length].tolist()
            for tokens, length in zip(self._tokens[rows], self._lengths[rows], strict=True)
        ]

    def references(self, index: int) -> list[str]:
        """The captions of image `index` as they were written."""
        texts = self._file()["captions/text"][self._caption_rows(index)]
        return [text.decode() for text in texts]

    def file_name(self, index: int) -> str:
        return self._images["file_name"][index].decode("utf-8", "surrogateescape")

    def image_id(self, index: int) -> int:
        return int(self._images["image_id"][index])

    def close(self) -> None:
        """Close the file in this process; the next read opens it again."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def __getstate__(self) -> dict:
        cached = {"_offsets", "_tokens", "_lengths", "_first_caption"}
        return {name: value for name, value in vars(self).items() if name not in cached} | {"_handle": None}

    def _file(self) -> h5py.File:
        """The file as opened by this process; a handle that came through a fork is the parent's."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), self._open()
        return self._handle[1]

    def _open(self) -> h5py.File:
        if not self.path.exists():
            command = f"python preprocess.py --dataset {self.path.stem}"
            if self.path != Path("data", f"{self.path.stem}.h5"):
                command = f"python preprocess.py --dataset NAME --output {self.path}"
            raise UserError(f"no data file {self.path}; make it with: {command}")
        try:
            file = h5py.File(self.path, "r", locking=False)  # never written in place; some disks lack locks
        except OSError as error:
            if h5py.is_hdf5(self.path):
                raise self._unreadable("is damaged or cut short") from error
            raise self._unreadable("is not an HDF5 file") from error
        kind, version, complete = (file.attrs.get(name) for name in ("format", "format_version", "complete"))
        if kind == FORMAT and version == VERSION and complete:
            return file
        file.close()
        if kind != FORMAT:
            raise self._unreadable(f"is an HDF5 file, but not one of {FORMAT}")
        if version != VERSION:
            raise self._unreadable(f"has format version {version}, and this program reads version {VERSION}")
        raise self._unreadable("is incomplete: its making was interrupted")

    def _unreadable(self, what: str) -> UserError:
        return UserError(f"data file {self.path} {what}; make it again with preprocess.py")

    @property
    def _images(self) -> h5py.Group:
        return self._file()["images"]

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        return self._images["offsets"][:]

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        return self._file()["captions/tokens"][:]

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return self._file()["captions/length"][:]

    @functools.cached_property
    def _first_caption(self) -> np.ndarray:
        """(n + 1,): the captions of image i are rows first[i] to first[i + 1]."""
        return np.searchsorted(self._file()["captions/image"][:], np.arange(len(self) + 1))

    def _caption_rows(self, index: int) -> slice:
        return slice(int(self._first_caption[index]), int(self._first_caption[index + 1]))
