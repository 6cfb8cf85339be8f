"""From the fields of a form to settings of a search, with the command line's messages."""

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
    """How a photograph is to be captioned. preview: send it back too, as a JPEG that every browser can show."""

    search: SearchConfig
    mention: tuple[str, ...] = ()
    objects: bool = True
    preview: bool = False


SEARCH = {field.name: field for field in dataclasses.fields(SearchConfig)}
OTHERS = {
    "mention": "at most three words that the caption must have, with spaces between; any of several: dog/puppy",
    "objects": "put in nouns that ImageNet's classifier is sure of, and leave out people, dogs and colours in captions "
    "of other things, of a model that can",
    "preview": "send the photograph back as a JPEG, for formats that browsers cannot show",
}


def read_options(fields: Mapping[str, str], defaults: Options, limits: Limits) -> Options:
    """The defaults with a form's fields in their place. Raises UserError for what cannot be used."""
    for name, text in fields.items():
        choice(name, [*SEARCH, *OTHERS], "field")
        if len(text) > limits.field_characters:
            raise UserError(
                f"--{flag(name)}: {len(text)} characters; at most {limits.field_characters} are taken here"
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
    mention = tuple(fields["mention"].replace(",", " ").split()) if "mention" in fields else defaults.mention
    return dataclasses.replace(defaults, search=search, mention=mention, **switches)


def read(name: str, text: str, kind: type) -> int | float | bool:
    """A field's text as a value. Raises UserError where it is none."""
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
