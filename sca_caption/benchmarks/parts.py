"""Flags of a benchmark that has several parts: each part has its own flags and defaults."""

import argparse
from collections.abc import Mapping

from sca_caption.runtime.errors import UserError


def set_defaults(arguments: argparse.Namespace, defaults: Mapping[str, Mapping[str, object]]) -> None:
    """Fill flags that were not given (None) with the defaults of `arguments.part`.

    defaults: part -> flag -> default. Raises UserError for a flag of another part.
    """
    own = defaults[arguments.part]
    for name in {name for of_part in defaults.values() for name in of_part}:
        if name not in own and getattr(arguments, name) is not None:
            others = ", ".join(part for part, of_part in defaults.items() if name in of_part)
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is a flag of the part {others}, found {arguments.part}; leave it out")
        if name in own and getattr(arguments, name) is None:
            setattr(arguments, name, own[name])
