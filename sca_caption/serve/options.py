"""Form fields to search settings, with the messages of the command line."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sca_caption.config import SearchConfig
from sca_caption.runtime.errors import UserError, choice
from sca_caption.serve.limits import Limits

TRUE, FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Options:
    """How to caption a photograph. preview: also return it as a JPEG, which every browser can show."""

    search: SearchConfig
    force_words: tuple[str, ...] = ()
    objects: bool = True
    preview: bool = False


SEARCH = {field.name: field for field in dataclasses.fields(SearchConfig)}
OTHERS = {
    "force_words": "words that the caption must contain, at most three, separated by spaces; dog/puppy: one of them",
    "objects": "object guidance: ImageNet nouns are inserted, unlikely people, dogs and colours are suppressed",
    "preview": "return the photograph as a JPEG, for formats that browsers cannot show",
}
EARLIER = {"mention": "force_words"} | {
    field.metadata["was"]: field.name for field in SEARCH.values() if field.metadata["was"]
}  # names of fields in earlier versions


def read_options(fields: Mapping[str, str], defaults: Options, limits: Limits) -> Options:
    """The defaults, replaced by a form's fields. Raises UserError for values that cannot be used."""
    fields = {EARLIER.get(name, name): text for name, text in fields.items()}
    for name, text in fields.items():
        choice(name, [*SEARCH, *OTHERS], "field")
        if len(text) > limits.field_characters:
            raise UserError(
                f"--{flag(name)}: {len(text)} characters; at most {limits.field_characters} are allowed here"
            )
    given = {name: read(name, text, SEARCH[name].type) for name, text in fields.items() if name in SEARCH}
    for name in ("beam_size", "max_length"):
        most = max(getattr(limits, name), getattr(defaults.search, name))
        if given.get(name, 0) > most:
            raise UserError(f"--{flag(name)} {given[name]}: must be at most {most} here")
    settings = vars(defaults.search) | given
    if "num_captions" not in given:
        settings["num_captions"] = min(settings["num_captions"], max(1, settings["beam_size"]))
    search = SearchConfig(**settings)
    switches = {name: read(name, fields[name], bool) for name in ("objects", "preview") if name in fields}
    words = defaults.force_words
    if "force_words" in fields:
        words = tuple(fields["force_words"].replace(",", " ").split())
    return dataclasses.replace(defaults, search=search, force_words=words, **switches)


def read(name: str, text: str, kind: type) -> int | float | bool:
    """The value of a field's text. Raises UserError if it has none."""
    text = text.strip().lower()
    try:
        if kind is bool:
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text]
        value = kind(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    except (ValueError, KeyError, OverflowError) as error:
        raise UserError(f"--{flag(name)} {text!r}: must be {KINDS[kind]}") from error


def flag(name: str) -> str:
    return name.replace("_", "-")
