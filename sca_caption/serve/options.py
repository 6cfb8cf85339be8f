"""Parses form fields into search settings, with the error messages of the command line."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sca_caption.config import SearchConfig
from sca_caption.runtime.errors import UserError, choice
from sca_caption.serve.limits import Limits

TRUE, FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Options:
    """Options of one request.

    Attributes:
        search: settings of beam search.
        force_words: words that the caption must contain, see `CaptionPipeline`.
        guidance: whether guides may exclude words.
        neutral: whether captions never use words for one gender.
        preview: whether to return the photograph as a JPEG, for formats that browsers cannot show.
    """

    search: SearchConfig
    force_words: tuple[str, ...] = ()
    guidance: bool = True
    neutral: bool = False
    preview: bool = False


SEARCH_FIELDS = {field.name: field for field in dataclasses.fields(SearchConfig)}
OTHER_FIELDS = {
    "force_words": "words that the caption must contain, at most three, separated by spaces; dog/puppy: one of them",
    "guidance": "exclude words that the model predicts to be unlikely for the photograph",
    "neutral": "never use words for one gender, such as man, girl and his",
    "preview": "return the photograph as a JPEG, for formats that browsers cannot show",
}
# Name in earlier versions -> name. Clients may still send the earlier ones.
EARLIER_NAMES = {"mention": "force_words", "objects": "guidance"} | {
    field.metadata["was"]: field.name for field in SEARCH_FIELDS.values() if field.metadata["was"]
}


def read_options(fields: Mapping[str, str], defaults: Options, limits: Limits) -> Options:
    """Return `defaults` updated by the fields of a form.

    Raises UserError for unknown fields, invalid values, and values above `limits`.
    """
    fields = {EARLIER_NAMES.get(name, name): text for name, text in fields.items()}
    for name, text in fields.items():
        choice(name, [*SEARCH_FIELDS, *OTHER_FIELDS], "field")
        if len(text) > limits.field_characters:
            raise UserError(
                f"{flag(name)}: {len(text)} characters; at most {limits.field_characters} are allowed here"
            )
    given = {
        name: parse_value(name, text, SEARCH_FIELDS[name].type)
        for name, text in fields.items()
        if name in SEARCH_FIELDS
    }
    for name in ("beam_size", "max_length"):
        limit = max(getattr(limits, name), getattr(defaults.search, name))
        if given.get(name, 0) > limit:
            raise UserError(f"{flag(name)} {given[name]}: must be at most {limit} here")
    settings = vars(defaults.search) | given
    if "num_captions" not in given:
        settings["num_captions"] = min(settings["num_captions"], max(1, settings["beam_size"]))
    search = SearchConfig(**settings)
    switches: dict[str, Any] = {
        name: parse_value(name, fields[name], bool)
        for name in ("guidance", "neutral", "preview")
        if name in fields
    }
    words = defaults.force_words
    if "force_words" in fields:
        words = tuple(fields["force_words"].replace(",", " ").split())
    return dataclasses.replace(defaults, search=search, force_words=words, **switches)


def parse_value(name: str, text: str, type_: Any) -> int | float | bool:
    """Parse the text of a field as `type_`. Raises UserError if that fails."""
    text = text.strip().lower()
    try:
        if type_ is bool:
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text]
        value = type_(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    except (ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{flag(name)} {text!r}: must be {TYPE_NAMES[type_]}") from error


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")
