"""Captioning from Python: `from sca_caption import Captioner`.

>>> from sca_caption import Captioner
>>> captioner = Captioner.load()
>>> captioner.caption("sca_caption/photographs/giraffes.jpg")
'a ...'

The words, for which the dots stand, depend on the model.

An image is a path, a file's bytes, an open file, a PIL image, an array or a tensor; several are captioned together, which
is faster:

>>> from PIL import Image
>>> with Image.open("sca_caption/photographs/giraffes.jpg") as photograph:
...     captioner.caption([photograph, photograph.convert("L")])
['a ...', 'a ...']

Keywords are the search flags of the command line:

>>> for caption in captioner.captions("sca_caption/photographs/giraffes.jpg", num_captions=2, force_words=["tree"]):
...     print(caption.text)
a ... tree...
a ... tree...

Mistakes of a user raise `UserError`, with the message of the command line:

>>> captioner.caption("no such photograph.jpg")
Traceback (most recent call last):
    ...
sca_caption.image_files.ImageError: no such photograph.jpg: no such file; check the path
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from PIL import Image
from torch import Tensor

from sca_caption import images
from sca_caption.config import BATCH_SIZE, SearchConfig
from sca_caption.decoding.lexical_constraints import dropped_words_note
from sca_caption.image_files import Readable, is_readable
from sca_caption.images import ImageError
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.captions import Caption, Result
from sca_caption.runtime.errors import UserError, choice, warn

if TYPE_CHECKING:
    from sca_caption.explain.explanation import Explanation


Picture = str | os.PathLike | bytes | bytearray | memoryview | Readable | Image.Image | np.ndarray | Tensor
# Of these kinds, some are iterable too: files of lines, arrays of rows.
KINDS = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor


class Captioner:
    """Captions photographs. Made by `Captioner.load`.

    A picture is a path, the bytes of an image file, a file that is open in binary mode, a PIL image, an array (H, W) or
    (H, W, C) with 1, 3 or 4 channels, or a tensor (H, W) or (C, H, W); RGB, uint8 from 0 to 255 or floats from 0 to 1. It
    is read as it is taken from an iterable, so a generator may yield one buffer again and again. Further keywords are
    fields of `SearchConfig`: beam_size, num_captions, min_length, max_length, length_penalty, block_ngrams, ...
    All methods raise `UserError` for mistakes of the user.
    """

    def __init__(self, pipeline: CaptionPipeline):
        self.pipeline = pipeline

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        *,
        device: str = "auto",
        style: str = "",
        batch_size: int = BATCH_SIZE,
        guidance: bool = True,
        neutral: bool = False,
    ) -> Self:
        """Load a checkpoint: the model that ships (None), one of train.py's, or several as an ensemble.

        device: "cpu", "cuda", "cuda:1", ... or "auto", the first GPU if there is one. style: the data set whose manner
        captions shall have (default: the model's first). batch_size: images per batch.
        guidance: whether words that the model predicts to be unlikely for an image are excluded, if it has the guide
        "words". neutral: never use words for one gender, such as man, girl and his.
        """
        several: Any = [Path(checkpoint)] if isinstance(checkpoint, str | os.PathLike) else checkpoint
        options: dict[str, Any] = {"batch_size": batch_size, "guidance": guidance, "neutral": neutral}
        return cls(CaptionPipeline.load(several, device=device, style=style, **options))

    @overload
    def caption(self, pictures: Picture, *, force_words: Sequence[str] = (), **search: Any) -> str: ...
    @overload
    def caption(
        self, pictures: Iterable[Picture], *, force_words: Sequence[str] = (), **search: Any
    ) -> list[str]: ...
    def caption(
        self, pictures: Picture | Iterable[Picture], *, force_words: Sequence[str] = (), **search: Any
    ) -> str | list[str]:
        """The best caption of a picture, or a list of the best captions of several.

        Several are a list or another iterable of pictures, or an array or a tensor with one more dimension.
        force_words: words that captions must contain, at most three; "dog/puppy": one of them. If no grammatical caption
        with them is found, the caption lacks them, and `captions` says which (`Caption.missing_words`).
        """
        given: Any = pictures
        if isinstance(given, np.ndarray | Tensor) and given.ndim == 4:
            given = list(given)
        several = isinstance(given, Iterable) and not (isinstance(given, KINDS) or is_readable(given))
        found = self.stream(given if several else [given], force_words=force_words, **search)
        texts = [captions_of(result)[0].text for result in found]
        return texts if several else texts[0]

    def captions(
        self, picture: Picture, *, force_words: Sequence[str] = (), **search: Any
    ) -> tuple[Caption, ...]:
        """The `num_captions` captions of a picture with their scores: the best, then others that differ in content."""
        (result,) = self.stream([picture], force_words=force_words, **search)
        return captions_of(result)

    def stream(
        self, pictures: Iterable[Picture], *, force_words: Sequence[str] = (), **search: Any
    ) -> Iterator[Result]:
        """Caption any number of pictures batch by batch; yields a `Result` for each, in order.

        The result of a picture that cannot be read has an `error` and no `captions`; the others are captioned.
        """
        pipeline = self.pipeline
        keywords = [*(field.name for field in dataclasses.fields(SearchConfig)), "force_words"]
        for name in search:
            choice(name, keywords, "keyword")
        if force_words or search:
            words = [force_words] if isinstance(force_words, str) else force_words
            pipeline = pipeline.with_search(dataclasses.replace(pipeline.search, **search), words)
            if pipeline.dropped_words:
                warn(dropped_words_note(pipeline.dropped_words))
        return pipeline.stream(pictures, self._read, take=self._take)

    def explain(self, picture: Picture, caption: str | None = None) -> "Explanation":
        """The attention at every word of the caption, as numbers and figures; `caption`: explain this one instead."""
        from sca_caption.explain.explanation import explain

        return explain(self.pipeline, images.hold(source_of(picture)), caption)

    def _take(self, picture: Picture) -> np.ndarray | images.Source:
        """The pixels of an image in memory, uint8 (S, S, 3), or the contents of a file: what its owner may change."""
        source = source_of(picture)
        if isinstance(source, Image.Image):
            return images.load(source, self.pipeline.transform)
        return images.hold(source)

    def _read(self, taken: np.ndarray | images.Source) -> np.ndarray:
        return taken if isinstance(taken, np.ndarray) else images.load(taken, self.pipeline.transform)


def captions_of(result: Result) -> tuple[Caption, ...]:
    if result.error:
        raise result.error
    return result.captions


def source_of(picture: Picture) -> images.Source:
    """A source that `images` reads: arrays and tensors become Pillow images."""
    return from_array(picture) if isinstance(picture, np.ndarray | Tensor) else picture


def from_array(values: np.ndarray | Tensor) -> Image.Image:
    """An array (H, W) or (H, W, 1, 3 or 4), or a tensor (H, W) or (1, 3 or 4, H, W), as a Pillow image.

    uint8 from 0 to 255, or floats from 0 to 1. Raises ImageError for others.
    """
    kind = "array" if isinstance(values, np.ndarray) else "tensor"
    found = f"the {kind} of shape {tuple(values.shape)} and {values.dtype}"
    if isinstance(values, np.ndarray):
        array = values
    else:
        try:
            whole = values.detach().cpu()
            array = (whole.float() if whole.is_floating_point() else whole).numpy()  # NumPy has no bfloat16
        except (RuntimeError, TypeError) as error:  # sparse, quantised and meta tensors
            raise ImageError(
                found, "not levels of an image; give a plain tensor of uint8 or floats"
            ) from error
    if kind == "tensor" and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        shapes = "(H, W), (H, W, 3) or (H, W, 4)" if kind == "array" else "(H, W), (3, H, W) or (4, H, W)"
        raise ImageError(found, f"not an image; give one of shape {shapes}")
    if array.dtype != np.uint8:
        if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
            raise ImageError(found, "not levels of an image; give uint8 from 0 to 255, or floats from 0 to 1")
        array = np.round(array * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


__all__ = ["Caption", "Captioner", "ImageError", "Result", "UserError"]
