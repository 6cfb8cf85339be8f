"""From the bytes of an upload to an answer: what runs in the thread that holds the model.

T words, C channels and H x W positions of an attended layer, S the side of the square that the model sees.
"""

import base64
import io
import time

import numpy as np
from PIL import Image

from sca_caption import images
from sca_caption.images import ImageError, Transform
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import LayerTrace, attended_maps, rounded
from sca_caption.serve.limits import Limits, Refusal
from sca_caption.serve.options import Options
from sca_caption.serve.schema import Answer, Attention, CaptionText, Channel, Layer

STRONGEST = 8  # channels a word
PREVIEW = 1600  # pixels of the longer side
DIGITS = 4  # after the point, of places


def answer(pipeline: CaptionPipeline, data: bytes, name: str, options: Options, limits: Limits) -> Answer:
    """Caption the image file that `data` holds; `name` is what messages call it.

    Raises ImageError for what is no image, Refusal for one with too many pixels, UserError for forced
    words that the model does not know.
    """
    began = time.perf_counter()
    pipeline = pipeline.with_search(options.search, options.force_words, objects=options.objects)
    try:
        pixels, width, height = read(data, pipeline.transform, limits)
        preview = as_jpeg(data) if options.preview else None
    except ImageError as error:
        raise ImageError(name, error.reason) from error
    except Refusal as refusal:
        raise Refusal(refusal.status, f"{name}: {refusal.reason}") from refusal
    batch = stack([pixels])
    if len(pipeline.networks) == 1:
        ((captions, trace),) = pipeline.trace_batch(batch)
        maps = [each[0] for each in attended_maps(pipeline.sca_cnn, batch)]
    else:  # that speak as one: each attends for itself
        (captions,), trace = pipeline.caption_batch(batch), None
    best = captions[0]
    return Answer(
        caption=best.text,
        captions=[
            CaptionText(text=each.text, score=each.score, log_prob=each.log_prob, confidence=each.confidence)
            for each in captions
        ],
        words=[*pipeline.vocabulary.to_words(best.tokens)],
        probabilities=trace and rounded(trace.probabilities),
        attention=trace
        and Attention(
            region=region(pipeline.transform, width, height),
            layers=[layer_of(*each) for each in zip(trace.layers, maps, strict=True)],
        ),
        width=width,
        height=height,
        seconds=round(time.perf_counter() - began, 3),
        preview=preview,
    )


def read(data: bytes, transform: Transform, limits: Limits) -> tuple[np.ndarray, int, int]:
    """An image at model size, uint8 (S, S, 3), and the width and height of the file's own, upright.

    Only of kinds that folders are searched for: Pillow would start other programs for some of the others.
    """
    with images.opened(data) as image:
        kinds = {
            kind for ending, kind in Image.registered_extensions().items() if ending in images.EXTENSIONS
        }
        if image.format not in kinds:
            raise ImageError("", f"a file of the kind {image.format}; convert it to JPEG or PNG")
        width, height = image.size if images.orientation(image) < 5 else image.size[::-1]
        if width * height <= limits.pixels:
            return np.array(images.decode(image, transform)), width, height
    millions = f"{width * height / 1e6:.1f} million pixels; at most {limits.pixels / 1e6:g} million are taken"
    raise Refusal(413, f"{millions}, make it smaller first")


def as_jpeg(data: bytes) -> str:
    """An image file as the data: URL of a JPEG of moderate size."""
    image, stream = images.open_image(data), io.BytesIO()
    image.thumbnail((PREVIEW, PREVIEW))
    image.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def region(transform: Transform, width: int, height: int) -> tuple[float, float, float, float]:
    """What the model sees: left, top, width and height as shares of the photograph's sides."""
    left, top, right, bottom = images.seen_box((width, height), transform)
    return left / width, top / height, (right - left) / width, (bottom - top) / height


def layer_of(layer: LayerTrace, maps: np.ndarray) -> Layer:
    """maps: (C, H, W), what the layer holds before it is attended."""
    spatial, channel = layer.spatial, layer.channel
    return Layer(
        layer=layer.name,
        grid=None if spatial is None else spatial.shape[1:],
        spatial=None if spatial is None else [rounded(word.ravel()) for word in spatial],
        channels=None if channel is None else channel.shape[1],
        channel=None if channel is None else [strongest(channel, word, maps) for word in range(len(channel))],
    )


def strongest(weights: np.ndarray, word: int, maps: np.ndarray) -> list[Channel]:
    """The channels of the greatest weights (T, C) at a word, the greatest first."""
    channels, height, width = maps.shape
    found = []
    for index in np.argsort(-weights[word], kind="stable")[:STRONGEST]:
        row, column = divmod(int(maps[index].argmax()), width)
        course = rounded(weights[:, index] * channels)
        peak = (round((column + 0.5) / width, DIGITS), round((row + 0.5) / height, DIGITS))
        found.append(Channel(index=int(index), times=course[word], course=course, peak=peak))
    return found
