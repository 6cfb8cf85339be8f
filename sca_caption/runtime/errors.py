"""What a user can get wrong, said in one line: the exception, and the wrapper that turns it into exit status 2."""

import os
import sys
from collections.abc import Iterable
from typing import TextIO


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what was wrong, what was found, what to do."""


def choice(value: str, valid: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `valid`; otherwise raise UserError that lists the choices."""
    valid = sorted(valid)
    if value not in valid:
        raise UserError(f"unknown {what} {value!r}; one of: {', '.join(valid)}")
    return value


COLOURS = {
    "error": "1;31",
    "warning": "1;33",
}  # of SGR sequences (ECMA-48, section 8.3.117): bold red, bold yellow


def coloured(stream: TextIO) -> bool:
    """Whether to send colours: to a terminal that has them, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def marked(kind: str, message: object, stream: TextIO) -> str:
    """`kind: message`, the kind ("error" or "warning") in its colour where `stream` takes colours."""
    label = f"{kind}:"
    return f"\x1b[{COLOURS[kind]}m{label}\x1b[0m {message}" if coloured(stream) else f"{label} {message}"


def warn(message: object) -> None:
    """Say on stderr what the user should know, though the program goes on."""
    print(marked("warning", message, sys.stderr), file=sys.stderr)
