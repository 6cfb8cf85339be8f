"""Responses of the API, and its OpenAPI description.

Shapes: T words, C channels and H x W positions of an attended layer.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from sca_caption import __version__
from sca_caption.serve.limits import Limits
from sca_caption.serve.options import OTHER_FIELDS, SEARCH_FIELDS, Options
from sca_caption.vocab import SPECIALS

JSON_TYPES: dict[Any, str] = {int: "integer", float: "number", bool: "boolean"}
REFERENCE = "#/components/schemas/{model}"


class CaptionText(BaseModel):
    """One caption."""

    text: str
    score: float = Field(
        description="ranking score: log-probability / length^length_penalty, plus the ratings of guides"
    )
    log_prob: float = Field(description="natural logarithm of the caption's probability under the captioner")
    confidence: float | None = Field(
        description="probability that the caption is better than the model's median caption; "
        "null if the model is not calibrated"
    )
    missing_words: list[str] = Field(
        description="entries of force_words of which the caption contains no word, because no grammatical caption with "
        "them was found"
    )


class Channel(BaseModel):
    """One channel that was weighted strongly at one word."""

    index: int = Field(description="index of the channel, from 0")
    times: float = Field(
        description="weight of the channel at this word, divided by the uniform weight 1 / C"
    )
    course: list[float] = Field(description="the same quantity at each of the T words")
    peak: tuple[float, float] = Field(
        description="position in the photograph at which the channel is most active: x and y of its centre, as "
        "fractions of the sides of `region`"
    )


class Layer(BaseModel):
    """Attention weights of one layer, with which each of the T words was chosen."""

    layer: str = Field(description="name of the layer")
    grid: tuple[int, int] | None = Field(description="H, W; null without spatial attention")
    spatial: list[list[float]] | None = Field(
        description="T lists of H * W weights, row by row; each list sums to 1"
    )
    channels: int | None = Field(description="C; null without channel attention")
    channel: list[list[Channel]] | None = Field(
        description="T lists of the channels with the largest weights, largest first"
    )


class Attention(BaseModel):
    """Attention of the model while it generated the best caption."""

    region: tuple[float, float, float, float] = Field(
        description="part of the photograph that the model saw: left, top, width and height, as fractions of its sides"
    )
    layers: list[Layer] = Field(description="attended layers, lowest first")


class Answer(BaseModel):
    """The captions of a photograph."""

    caption: str = Field(description="the best caption")
    captions: list[CaptionText] = Field(description="best first")
    words: list[str] = Field(description="the T words of the best caption")
    probabilities: list[float] | None = Field(
        description="probability of each word given the words before it; null for an ensemble"
    )
    attention: Attention | None = Field(description="null for an ensemble")
    dropped_words: list[str] = Field(description="alternatives in force_words that the model does not know")
    width: int = Field(description="width of the upright photograph, in pixels")
    height: int = Field(description="height of the upright photograph, in pixels")
    seconds: float = Field(
        description="time to decode and caption the photograph, without the time in the queue"
    )
    preview: str | None = Field(description="data: URL of a JPEG of the photograph, if it was requested")


SEARCH_DEFAULTS: dict[str, Any] = {
    name: (field.type, Field(description=field.metadata["help"])) for name, field in SEARCH_FIELDS.items()
}
Defaults = create_model(
    "Defaults",
    __doc__="Settings of a request that does not give them.",
    **SEARCH_DEFAULTS,
    force_words=(list[str], Field(description=OTHER_FIELDS["force_words"])),
    guidance=(bool, Field(description=OTHER_FIELDS["guidance"])),
    neutral=(bool, Field(description=OTHER_FIELDS["neutral"])),
)


class RequestLimits(BaseModel):
    """Limits of a request."""

    upload_bytes: int = Field(description="size of the request")
    pixels: int = Field(description="size of the photograph")
    waiting: int = Field(description="requests in the queue, in addition to the one being processed")
    beam_size: int = Field(description="largest beam size")
    max_length: int = Field(description="largest max_length, in words")


class ModelCard(BaseModel):
    """The model, its default settings and its limits."""

    name: str = Field(description="name of the model")
    version: str = Field(description="version of sca_caption")
    vocabulary: int = Field(description="number of words in the vocabulary")
    image_size: int = Field(description="side of the model's square input, in pixels")
    guidance: bool = Field(description="whether the model has guides that exclude words")
    calibrated: bool = Field(description="whether captions have a calibrated confidence")
    layers: list[str] = Field(description="attended layers, lowest first; empty for an ensemble")
    defaults: Defaults  # type: ignore[valid-type]  # made of the settings
    limits: RequestLimits


class Failure(BaseModel):
    """The reason why a request failed."""

    error: str = Field(description="one line: what is wrong, what was found and what to do")


ERRORS = {
    400: "the request cannot be parsed, or was sent by another site",
    408: "the upload took too long",
    413: "the request has too many bytes, or the photograph too many pixels",
    415: "the request is not a form with a photograph, or the file is not a readable image",
    422: "a field is unknown, or its value is invalid",
    503: "the queue is full, or too many connections are open; the header Retry-After gives the seconds to wait",
}


def model_card(name: str, pipeline: Any, defaults: Options, limits: Limits) -> ModelCard:
    """The model card of /api/model."""
    search = defaults.search
    return ModelCard(
        name=name,
        version=__version__,
        vocabulary=len(pipeline.vocabulary) - len(SPECIALS),
        image_size=pipeline.transform.size,
        guidance=any(guide.excludes for guide in pipeline.guides),
        calibrated=pipeline.gives_confidence,
        layers=list(pipeline.networks[0].attended) if len(pipeline.networks) == 1 else [],
        defaults=Defaults(
            **vars(search),
            force_words=list(defaults.force_words),
            guidance=defaults.guidance,
            neutral=defaults.neutral,
        ),
        limits=RequestLimits(
            upload_bytes=limits.upload_bytes,
            pixels=limits.pixels,
            waiting=limits.waiting,
            beam_size=max(limits.beam_size, search.beam_size),
            max_length=max(limits.max_length, search.max_length),
        ),
    )


def openapi(card: ModelCard) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the API."""
    models = (Answer, ModelCard, Failure)
    _, found = models_json_schema([(model, "serialization") for model in models], ref_template=REFERENCE)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sca_caption",
            "version": card.version,
            "description": "Captions photographs in English.",
        },
        "paths": {
            "/api/caption": {"post": operation("Caption a photograph", Answer, ERRORS, request_body(card))},
            "/api/model": {"get": operation("Return the model card", ModelCard, (400,))},
        },
        "components": {"schemas": found["$defs"]},
    }


def operation(
    summary: str, answer: type[BaseModel], errors: Iterable[int], body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One operation of the OpenAPI document; `answer` is the schema of its successful response."""

    def response(model: type[BaseModel], description: str) -> dict[str, Any]:
        schema = {"$ref": REFERENCE.format(model=model.__name__)}
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    responses = {"200": response(answer, answer.__doc__ or "")}
    responses |= {str(status): response(Failure, ERRORS[status]) for status in errors}
    return {"summary": summary, "responses": responses} | ({"requestBody": body} if body else {})


def request_body(card: ModelCard) -> dict[str, Any]:
    """The form fields of a request to /api/caption."""
    defaults = card.model_dump()["defaults"]
    defaults |= {"force_words": " ".join(defaults["force_words"]), "preview": False}
    fields = {"image": {"type": "string", "format": "binary", "description": "the image file"}}
    for name, field in SEARCH_FIELDS.items():
        fields[name] = {
            "type": JSON_TYPES[field.type],
            "description": field.metadata["help"],
            "default": defaults[name],
        }
    for name, description in OTHER_FIELDS.items():
        json_type = "string" if name == "force_words" else "boolean"
        fields[name] = {"type": json_type, "description": description, "default": defaults[name]}
    for name in ("beam_size", "max_length"):
        fields[name]["maximum"] = getattr(card.limits, name)
    schema = {"type": "object", "properties": fields, "required": ["image"], "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
