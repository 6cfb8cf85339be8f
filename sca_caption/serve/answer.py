"""Captions an uploaded image file. This code runs in the thread that holds the model.

Shapes: T words, C channels and H x W positions of an attended layer, S the side of the model's square input.
"""

import base64
import io
import time

import numpy as np

from sca_caption import images
from sca_caption.images import ImageError, Transform
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import LayerTrace, Trace, to_json_list, unattended_maps
from sca_caption.serve.limits import Limits, RequestError
from sca_caption.serve.options import Options
from sca_caption.serve.schema import Answer, Attention, CaptionText, Channel, Layer

TOP_CHANNELS = 8  # channels per word in an answer
PREVIEW_SIDE = 1600  # longer side of a preview, in pixels
PEAK_DIGITS = 4  # decimal places of peak coordinates


def caption_image(
    pipeline: CaptionPipeline, data: bytes, name: str, options: Options, limits: Limits
) -> Answer:
    """Caption an image file.

    Args:
        data: the contents of the file. name: its name in messages.

    Raises ImageError for data that are not a readable image, RequestError for an image with too many pixels, and
    UserError for forced words that the model does not know.
    """
    start = time.perf_counter()
    pipeline = pipeline.with_search(
        options.search, options.force_words, guidance=options.guidance, neutral=options.neutral
    )
    try:
        pixels, width, height = read_image(data, pipeline.transform, limits)
        preview = jpeg_data_url(data) if options.preview else None
    except ImageError as error:
        raise ImageError(name, error.reason) from error
    except RequestError as error:
        raise RequestError(error.status, f"{name}: {error.reason}") from error
    batch = stack([pixels])
    trace: Trace | None = None
    if len(pipeline.networks) == 1:
        ((captions, trace),) = pipeline.trace_batch(batch)
        maps = [each[0] for each in unattended_maps(pipeline.sca_cnn, batch)]
    else:  # an ensemble: each of its models has its own attention
        (captions,) = pipeline.caption_batch(batch)
    best = captions[0]
    return Answer(
        caption=best.text,
        captions=[
            CaptionText(
                text=each.text,
                score=each.score,
                log_prob=each.log_prob,
                confidence=each.confidence,
                missing_words=[*each.missing_words],
            )
            for each in captions
        ],
        words=[*pipeline.vocabulary.to_words(best.tokens)],
        probabilities=to_json_list(trace.probabilities) if trace else None,
        attention=None
        if trace is None
        else Attention(
            region=seen_region(pipeline.transform, width, height),
            layers=[layer_attention(*each) for each in zip(trace.layers, maps, strict=True)],
        ),
        dropped_words=pipeline.dropped_words,
        width=width,
        height=height,
        seconds=round(time.perf_counter() - start, 3),
        preview=preview,
    )


def read_image(data: bytes, transform: Transform, limits: Limits) -> tuple[np.ndarray, int, int]:
    """Decode an image: uint8 (S, S, 3) at model size, and the width and height of the upright photograph in pixels.

    Raises ImageError for data that are not a readable image, RequestError for too many pixels.
    """
    with images.opened(data) as image:
        width, height = images.upright_size(image)
        if width * height <= limits.pixels:
            return np.array(images.decode(image, transform)), width, height
    raise RequestError(
        413,
        f"{width * height / 1e6:.1f} million pixels; at most {limits.pixels / 1e6:g} million are allowed, resize the "
        f"photograph first",
    )


def jpeg_data_url(data: bytes) -> str:
    """Convert an image file to a JPEG with sides of at most PREVIEW_SIDE pixels, as a data: URL."""
    image, stream = images.open_image(data, 2 * PREVIEW_SIDE), io.BytesIO()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    image.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def seen_region(transform: Transform, width: int, height: int) -> tuple[float, float, float, float]:
    """Region that the model sees: left, top, width and height as fractions of the photograph's sides."""
    left, top, right, bottom = images.crop_box((width, height), transform)
    return left / width, top / height, (right - left) / width, (bottom - top) / height


def layer_attention(layer: LayerTrace, maps: np.ndarray) -> Layer:
    """Attention of one layer for the API. maps: (C, H, W), the layer's feature maps before attention."""
    spatial, channel = layer.spatial, layer.channel
    return Layer(
        layer=layer.name,
        grid=None if spatial is None else spatial.shape[1:],
        spatial=None if spatial is None else [to_json_list(word.ravel()) for word in spatial],
        channels=None if channel is None else channel.shape[1],
        channel=None
        if channel is None
        else [strongest_channels(channel, word, maps) for word in range(len(channel))],
    )


def strongest_channels(weights: np.ndarray, word: int, maps: np.ndarray) -> list[Channel]:
    """Return the TOP_CHANNELS channels with the largest weights at a word, largest first.

    Channels that are zero at every position come last, because no place in the image is theirs.

    weights: (T, C). word: index from 0. maps: (C, H, W).
    """
    channels, height, width = maps.shape
    found = []
    active = np.where(maps.any((1, 2)), weights[word], -1)
    for index in np.argsort(-active, kind="stable")[:TOP_CHANNELS]:
        row, column = divmod(int(maps[index].argmax()), width)
        course = to_json_list(weights[:, index] * channels)
        peak = (round((column + 0.5) / width, PEAK_DIGITS), round((row + 0.5) / height, PEAK_DIGITS))
        found.append(Channel(index=int(index), times=course[word], course=course, peak=peak))
    return found
