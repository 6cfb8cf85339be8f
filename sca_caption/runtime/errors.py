"""Errors that users can correct, and error and warning messages on the terminal."""

import difflib
import os
import sys
from collections.abc import Iterable
from typing import TextIO

from sca_caption.runtime.programs import install_command, installed


class UserError(Exception):
    """An error that the user can correct. The message is one line: what is wrong, what was found, what to do."""


# What Python and PyTorch raise where a file from elsewhere has values of another kind or shape than it should.
INVALID = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does."""


def choice(value: str, valid: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `valid`. Otherwise raise UserError, which lists the choices for `what`."""
    valid = sorted(valid)
    if value not in valid:
        raise UserError(f"unknown {what} {value!r}; one of: {', '.join(valid)}{did_you_mean(value, valid)}")
    return value


def did_you_mean(value: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, if one is near."""
    near = difflib.get_close_matches(str(value), [*valid], 1)
    return f"; did you mean {near[0]}?" if near else ""


# Parameters of SGR sequences (ECMA-48, section 8.3.117): bold red, bold yellow, bold.
COLOURS = {"error": "1;31", "warning": "1;33", "note": "1"}


def supports_colour(stream: TextIO) -> bool:
    """True for a terminal with colours, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def format_message(kind: str, message: object, stream: TextIO) -> str:
    """`kind: message` for a kind of COLOURS, which is coloured if `stream` supports colours."""
    label = f"{kind}:"
    if supports_colour(stream):
        label = f"\x1b[{COLOURS[kind]}m{label}\x1b[0m"
    return f"{label} {message}"


def fail(message: object) -> int:
    """Print an error to stderr. Returns the exit status of a user's mistake."""
    print(format_message("error", message, sys.stderr), file=sys.stderr)
    return 2


def missing(error: ImportError) -> str:
    """The line about a package that cannot be imported. Raises the error again if it is this package."""
    if (error.name or "").partition(".")[0] == "sca_caption":
        raise error
    reason = " ".join(str(error).split())
    where = "" if installed() else " in the project's folder"
    return f"{error.name or 'a package'} cannot be imported ({reason}); run: {install_command()}{where}"


def warn(message: object) -> None:
    """Print a warning to stderr."""
    print(format_message("warning", message, sys.stderr), file=sys.stderr)
