"""The data file: one self-describing HDF5 file for a dataset. This is its schema and its reader; store_writer.py makes it.

n images, M captions, S the transform's size, L the longest caption. Rows of images/ and captions/ are in the same order;
the captions of one image stand together.

    attributes            format="sca_caption", format_version=1, complete=True (written last)
                          source         one line: the dataset and the layout that was read
                          vocabulary     JSON list of the words, without the specials (ids 0 to 3: pad, bos, eos, unk)
                          min_count      a word is in the vocabulary when train has it at least this often
                          tokenizer      what split the captions into words
                          transform      JSON of images.Transform: how the images were brought to size
                          encoding       jpeg, raw or features
                          skipped        JSON list of [item, reason]: all that was left out
    images/file_name      (n,) UTF-8
    images/image_id       (n,) int64, the dataset's own number; the row where it has none
    images/split          (n,) uint8: 0 train, 1 val, 2 test
    images/data           jpeg: (bytes,) uint8, the JPEG files one after the other
    images/offsets        jpeg: (n + 1,) int64; image i is data[offsets[i]:offsets[i + 1]]
    images/pixels         raw: (n, S, S, 3) uint8
    features/0, 1, ...    features: (n, ...) float16, what the trunk returned, one dataset for each tensor;
                          attribute features_of: JSON that describes the trunk
    captions/tokens       (M, L) uint16 or uint32 word ids, without bos and eos, filled with pad (0)
    captions/length       (M,) int32, words in each
    captions/image        (M,) int32, row of its image, ascending
    captions/text         (M,) UTF-8, the raw reference, white space collapsed
"""

import functools
import json
import os
from pathlib import Path

import h5py
import numpy as np

from sca_caption.errors import UserError, choice
from sca_caption.images import ImageError, Transform, load
from sca_caption.vocab import Vocabulary

FORMAT, VERSION = "sca_caption", 1
SPLITS = ("train", "val", "test")
ENCODINGS = ("jpeg", "raw", "features")


class CaptionData:
    """Images with captions, read from a data file.

    Pickles, and opens the file anew in every process, so it may be made before workers are forked or spawned; any
    number of processes read at once. Raises UserError for a file that is missing, damaged, incomplete or of another
    version.
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
            self.features_of = json.loads(file["features"].attrs["features_of"]) if "features" in file else None
        except (KeyError, ValueError, OSError) as error:
            raise self._unreadable(f"lacks what its format promises ({error})") from error
        finally:
            self.close()

    def __len__(self) -> int:
        return len(self.splits)

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
            raise UserError(f"{self.path} holds {self.encoding}, not JPEG images; preprocess with --encoding jpeg")
        start, stop = self._offsets[index], self._offsets[index + 1]
        return self._images["data"][start:stop].tobytes()

    def features(self, index: int) -> tuple[np.ndarray, ...]:
        """What the trunk returned for image `index`: float16 arrays without the batch dimension."""
        if self.encoding != "features":
            raise UserError(f"{self.path} holds {self.encoding} images, no features; preprocess with --encoding features")
        features = self._file()["features"]
        return tuple(features[str(k)][index] for k in range(len(features)))

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
        return [text.decode("utf-8", "surrogateescape") for text in texts]

    def file_name(self, index: int) -> str:
        return self._images["file_name"][index].decode("utf-8", "surrogateescape")

    def image_id(self, index: int) -> int:
        return int(self._images["image_id"][index])

    def close(self) -> None:
        """Close the file in this process; the next read opens it again."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None
        self.__dict__.pop("_images", None)

    def __getstate__(self) -> dict:
        cached = {"_images", "_offsets", "_tokens", "_lengths", "_first_caption"}
        return {name: value for name, value in self.__dict__.items() if name not in cached} | {"_handle": None}

    def _file(self) -> h5py.File:
        """The file as opened by this process: a handle taken through a fork would be shared with the parent."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), self._open()
        return self._handle[1]

    def _open(self) -> h5py.File:
        if not self.path.exists():
            raise UserError(f"no data file {self.path}; make it with: python preprocess.py --dataset {self.path.stem}")
        try:
            file = h5py.File(self.path, "r", locking=False)  # it is never written in place, and some disks lack locks
        except OSError as error:
            if h5py.is_hdf5(self.path):
                raise self._unreadable("is damaged or cut short") from error
            raise self._unreadable("is not an HDF5 file") from error
        found = file.attrs.get("format"), file.attrs.get("format_version"), bool(file.attrs.get("complete", False))
        if found == (FORMAT, VERSION, True):
            return file
        file.close()
        if found[0] != FORMAT:
            raise self._unreadable(f"is an HDF5 file, but not one of {FORMAT}")
        if found[1] != VERSION:
            raise self._unreadable(f"has format version {found[1]}, and this program reads version {VERSION}")
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
