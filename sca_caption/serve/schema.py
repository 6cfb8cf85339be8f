"""What the API answers, and its description for programs (OpenAPI).

T words, C channels and H x W positions of an attended layer.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from sca_caption import __version__
from sca_caption.serve.limits import Limits
from sca_caption.serve.options import OTHERS, SEARCH, Options
from sca_caption.vocab import SPECIALS

JSON_TYPES = {int: "integer", float: "number", bool: "boolean"}
REFERENCE = "#/components/schemas/{model}"


class CaptionText(BaseModel):
    """One caption."""

    text: str
    score: float = Field(description="what captions are ranked by: log-probability / length^length_penalty")
    log_prob: float = Field(description="natural logarithm of its probability")
    confidence: float | None = Field(
        description="probability that it is better than the model's median caption; null where the model has none"
    )


class Channel(BaseModel):
    """The weight of one channel at one word."""

    index: int = Field(description="from 0")
    times: float = Field(description="its weight as a multiple of the even share 1 / C")
    course: list[float] = Field(description="the same at each of the T words")
    peak: tuple[float, float] = Field(
        description="where in the photograph it is most active: x and y of the place's centre, as shares of the "
        "region's sides"
    )


class Layer(BaseModel):
    """What was attended in one layer to choose each of T words."""

    layer: str
    grid: tuple[int, int] | None = Field(description="H, W; null without spatial attention")
    spatial: list[list[float]] | None = Field(description="T lists of H * W weights, by rows; each sums to 1")
    channels: int | None = Field(description="C; null without channel attention")
    channel: list[list[Channel]] | None = Field(
        description="T lists of the strongest channels, strongest first"
    )


class Attention(BaseModel):
    """Where and at what the model looked."""

    region: tuple[float, float, float, float] = Field(
        description="the part that the model saw: left, top, width and height, as fractions of the photograph"
    )
    layers: list[Layer]


class Answer(BaseModel):
    """A captioned photograph."""

    caption: str
    captions: list[CaptionText] = Field(description="best first")
    words: list[str] = Field(description="the T words of the best caption")
    probabilities: list[float] | None = Field(
        description="of each word given the words before it; null for an ensemble"
    )
    attention: Attention | None = Field(description="null for an ensemble")
    width: int = Field(description="of the upright photograph, in pixels")
    height: int
    seconds: float = Field(description="from decoding to the answer, without the wait in the queue")
    preview: str | None = Field(description="data: URL of a JPEG, if it was requested")


Defaults = create_model(
    "Defaults",
    __doc__="Settings of a request that gives none.",
    **{name: (field.type, Field(description=field.metadata["help"])) for name, field in SEARCH.items()},
    force_words=(list[str], Field(description=OTHERS["force_words"])),
    objects=(bool, Field(description=OTHERS["objects"])),
)


class Most(BaseModel):
    """Upper limits of a request."""

    upload_bytes: int
    pixels: int
    waiting: int = Field(description="requests in the queue")
    beam_size: int
    max_length: int


class ModelCard(BaseModel):
    """The model, its default settings and its limits."""

    name: str
    version: str = Field(description="of sca_caption")
    vocabulary: int = Field(description="words in its vocabulary")
    image_size: int = Field(description="pixels per side of its square input")
    objects: bool = Field(description="whether it has object guidance")
    calibrated: bool = Field(description="whether captions have a confidence")
    layers: list[str] = Field(description="attended layers, lowest first; empty for an ensemble")
    defaults: Defaults
    limits: Most


class Failure(BaseModel):
    """The reason why there is no answer."""

    error: str = Field(description="one line: what is wrong, what was found, what to do")


ERRORS = {
    400: "a request that cannot be read, or from another site",
    408: "the photograph came too slowly",
    413: "too many bytes or pixels",
    415: "no form with a photograph, or a file that is not a readable image",
    422: "a setting out of range",
    503: "the queue is full; Retry-After says in how many seconds to try again",
}


def model_card(name: str, pipeline: Any, defaults: Options, limits: Limits) -> ModelCard:
    search = defaults.search
    return ModelCard(
        name=name,
        version=__version__,
        vocabulary=len(pipeline.vocabulary) - len(SPECIALS),
        image_size=pipeline.transform.size,
        objects=any(guide.about_objects for guide in pipeline.guides),
        calibrated=pipeline.gives_confidence,
        layers=list(pipeline.networks[0].backbone.layers) if len(pipeline.networks) == 1 else [],
        defaults=Defaults(**vars(search), force_words=list(defaults.force_words), objects=defaults.objects),
        limits=Most(
            upload_bytes=limits.upload_bytes,
            pixels=limits.pixels,
            waiting=limits.waiting,
            beam_size=max(limits.beam_size, search.beam_size),
            max_length=max(limits.max_length, search.max_length),
        ),
    )


def openapi(card: ModelCard) -> dict[str, Any]:
    """The whole API as an OpenAPI 3.1 document."""
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
            "/api/caption": {"post": operation("Caption a photograph", Answer, ERRORS, form(card))},
            "/api/model": {"get": operation("The model, its defaults and limits", ModelCard, (400,))},
        },
        "components": {"schemas": found["$defs"]},
    }


def operation(
    summary: str, answer: type[BaseModel], errors: Sequence[int], body: dict | None = None
) -> dict[str, Any]:
    def response(model: type[BaseModel], description: str) -> dict[str, Any]:
        schema = {"$ref": REFERENCE.format(model=model.__name__)}
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    responses = {"200": response(answer, answer.__doc__)}
    responses |= {str(status): response(Failure, ERRORS[status]) for status in errors}
    return {"summary": summary, "responses": responses} | ({"requestBody": body} if body else {})


def form(card: ModelCard) -> dict[str, Any]:
    """The fields of a request."""
    defaults = card.defaults.model_dump() | {
        "force_words": " ".join(card.defaults.force_words),
        "preview": False,
    }
    fields = {"image": {"type": "string", "format": "binary", "description": "the photograph, a file"}}
    for name, field in SEARCH.items():
        kind = JSON_TYPES[field.type]
        fields[name] = {"type": kind, "description": field.metadata["help"], "default": defaults[name]}
    for name, description in OTHERS.items():
        kind = "string" if name == "force_words" else "boolean"
        fields[name] = {"type": kind, "description": description, "default": defaults[name]}
    for name in ("beam_size", "max_length"):
        fields[name]["maximum"] = getattr(card.limits, name)
    schema = {"type": "object", "properties": fields, "required": ["image"], "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
