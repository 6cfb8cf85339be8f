"""Several data files as one data set, for training one captioner on all of them."""

import bisect
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS, Vocabulary


class Mixture:
    """Data files one after the other, with the interface of `CaptionDataset`: rows of all images, and one vocabulary.

    The vocabulary has the words of the first file, then those that the others add. The name of a file (without .h5) is
    the name of its style, see `SCACNN`; a single file has no style.

    Attributes:
        parts: the rows of each file.
        styles: names of the styles; empty for a single file.

    Raises UserError for files with different image transforms or encodings, and for two of the same name.
    """

    def __init__(self, files: Sequence[CaptionDataset]):
        self.files = list(files)
        first, *others = self.files
        names = [file.path.stem for file in files]
        self.styles = tuple(names) if len(names) > 1 else ()
        if len(set(names)) < len(names):
            raise UserError(f"two data files are named {max(names, key=names.count)}; rename one")
        for other in others:
            for what in ("transform", "encoding"):
                if getattr(other, what) != getattr(first, what):
                    raise UserError(
                        f"{other.path} has another {what} than {first.path} ({getattr(other, what)}, "
                        f"{getattr(first, what)}); preprocess both alike"
                    )
        self.path, self.transform, self.encoding = first.path, first.transform, first.encoding
        self.vocabulary = first.vocabulary
        if others:
            words = [word for file in files for word in file.vocabulary.words[len(SPECIALS) :]]
            self.vocabulary = Vocabulary(list(dict.fromkeys(words)))
        self._ids = [np.array(self.vocabulary.encode(file.vocabulary.words), np.int64) for file in files]
        for ids in self._ids:
            ids[: len(SPECIALS)] = range(len(SPECIALS))
        ends = list(accumulate(map(len, files)))
        self.parts = [range(end - len(file), end) for end, file in zip(ends, files, strict=True)]
        self._text_ends = list(accumulate(file.text_groups for file in files))

    def __len__(self) -> int:
        return self.parts[-1].stop

    def indices(self, split: str) -> np.ndarray:
        """Rows of the images in a split."""
        return np.concatenate(
            [file.indices(split) + part.start for file, part in zip(self.files, self.parts, strict=True)]
        )

    def style(self, index: int) -> int:
        """Number of the file that image `index` is from."""
        return bisect.bisect_right([part.stop for part in self.parts], index)

    def image(self, index: int) -> np.ndarray:
        file, row = self._locate(index)
        return file.image(row)

    def features(self, index: int) -> tuple[np.ndarray, ...]:
        file, row = self._locate(index)
        return file.features(row)

    def captions(self, index: int) -> list[list[int]]:
        """Word ids per caption of image `index`, without bos and eos."""
        file, row = self._locate(index)
        ids = self._ids[self.style(index)]
        return [ids[caption].tolist() for caption in file.captions(row)]

    def references(self, index: int) -> list[str]:
        """The raw captions of image `index`."""
        file, row = self._locate(index)
        return file.references(row)

    def file_name(self, index: int) -> str:
        file, row = self._locate(index)
        return file.file_name(row)

    def require_features_of(self, backbone: str, layers: Sequence[str], attention: str = "") -> None:
        """Raise UserError for stored features of another CNN."""
        for file in self.files:
            file.require_features_of(backbone, layers, attention)

    @property
    def text_groups(self) -> int:
        """How many photographs have captions here without being here themselves."""
        return self._text_ends[-1]

    def text_style(self, group: int) -> int:
        """Number of the file that the captions of text group `group` are from."""
        return bisect.bisect_right(self._text_ends, group)

    def text_captions(self, group: int) -> list[list[int]]:
        """Word ids per caption of text group `group`, without bos and eos."""
        number = self.text_style(group)
        start = self._text_ends[number - 1] if number else 0
        ids = self._ids[number]
        return [ids[caption].tolist() for caption in self.files[number].text_captions(group - start)]

    def _locate(self, index: int) -> tuple[CaptionDataset, int]:
        number = self.style(index)
        return self.files[number], index - self.parts[number].start
