"""Explanations: the spatial and channel-wise attention of the model at every word of a caption.

>>> from sca_caption import Captioner
>>> explanation = Captioner.load().explain("sca_caption/photographs/giraffes.jpg")
>>> explanation.words[:3], explanation.trace.layers[0].spatial.shape
(('a', 'group', 'of'), (9, 9, 9))
>>> figure = explanation.figure()     # matplotlib's
>>> explanation.save("why.svg")       # or .png, .pdf, .gif

Shapes: T words, C channels and H x W positions of an attended layer, S the side of the image that the model sees.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from sca_caption import images
from sca_caption.images import Source, Transform
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.captions import Caption
from sca_caption.models.attention_trace import Trace, trace_to_json, unattended_maps
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import ANIMATION_FORMAT, DPI, check_figure, save_figure
from sca_caption.vocab import tokenize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sca_caption.explain.channel_patches import ChannelExamples


MAX_PIXELS = 1000  # of the longer side of the photograph that is drawn


@dataclass(frozen=True)
class Explanation:
    """A photograph, its caption, and the attention at every word.

    Attributes:
        photograph: upright RGB, the longer side at most MAX_PIXELS.
        transform: how the model sees it.
        words: the T words of the caption.
        maps: the unattended map of each attended layer, float32 (C, H, W).
        examples: image patches that activate each channel most, from a data file; without them, figures show patches of
            the photograph itself.
    """

    photograph: Image.Image
    transform: Transform
    caption: Caption
    words: tuple[str, ...]
    trace: Trace
    maps: tuple[np.ndarray, ...]
    examples: "ChannelExamples | None" = None

    def figure(self) -> "Figure":
        """A figure of one page, 7.2 inches wide."""
        from sca_caption.explain.figure import draw

        return draw(self)

    def save(self, path: str | Path, flag: str = "--explain") -> None:
        """Write the figure as .png, .svg or .pdf, or an animation of the words as .gif.

        The same explanation gives the same bytes. Raises UserError for another suffix, and if it cannot be written.
        """
        path = Path(path)
        check_figure(path, flag, extra_formats=(ANIMATION_FORMAT,))
        if path.suffix.lower() == ANIMATION_FORMAT:
            from sca_caption.explain.animation import save_animation

            save_animation(self, path, flag)
        else:
            from sca_caption.explain.figure import image_dpi

            figure = self.figure()
            dpi = DPI if path.suffix.lower() == ".png" else image_dpi(figure)
            save_figure(figure, path, flag, dpi=dpi, outlines=False)

    def numbers(self) -> dict:
        """The attention weights as JSON values, see `attention_trace.trace_to_json`."""
        return trace_to_json(self.trace, self.words)


def explain(
    pipeline: CaptionPipeline,
    source: Source,
    caption: str | None = None,
    *,
    examples: "ChannelExamples | None" = None,
) -> Explanation:
    """Caption a photograph, or take the given caption, and return the attention at every word.

    examples: see `channel_patches.find_examples`. Raises UserError for an image that cannot be read, a caption with words
    that the model does not know, and an ensemble.
    """
    pipeline.sca_cnn  # noqa: B018 (refuses an ensemble before any work)
    pixels = stack([images.load(source, pipeline.transform)])  # (1, 3, S, S)
    if caption is None:
        ((captions, found),) = pipeline.trace_batch(pixels)
        return explained(pipeline, source, captions[0], found, examples)
    return explained(pipeline, source, *_score(pipeline, pixels, caption), examples)


def explained(
    pipeline: CaptionPipeline,
    source: Source,
    caption: Caption,
    found: Trace,
    examples: "ChannelExamples | None" = None,
) -> Explanation:
    """The explanation of a caption whose trace is known."""
    pixels = stack([images.load(source, pipeline.transform)])
    photograph = images.open_image(source, 2 * MAX_PIXELS)
    photograph.thumbnail((MAX_PIXELS, MAX_PIXELS), Image.Resampling.LANCZOS)
    words = pipeline.vocabulary.to_words(caption.tokens)
    maps = tuple(each[0] for each in unattended_maps(pipeline.sca_cnn, pixels))
    return Explanation(photograph, pipeline.transform, caption, words, found, maps, examples)


def _score(pipeline: CaptionPipeline, pixels: torch.Tensor, text: str) -> tuple[Caption, Trace]:
    """A given caption with the score and confidence that a search gives it, and its trace."""
    words = tokenize(text)
    if not words:
        raise UserError(f"the caption {text!r} has no words; give some")
    unknown = sorted({word for word in words if word not in pipeline.vocabulary})
    if unknown:
        raise UserError(f"the model does not know {', '.join(unknown)}; use other words")
    return pipeline.score_caption(pixels, pipeline.vocabulary.encode(words))
