"""What a user can get wrong, said in one line: the exception, and the wrapper that turns it into exit status 2."""

import functools
import sys
from collections.abc import Callable, Iterable

from sca_caption.messages import marked


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what was wrong, what was found, what to do."""


def choice(value: str, valid: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `valid`; otherwise raise UserError that lists the choices."""
    valid = sorted(valid)
    if value not in valid:
        raise UserError(f"unknown {what} {value!r}; one of: {', '.join(valid)}")
    return value


def program(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a program's `main(argv=None) -> status`: a UserError prints one line on stderr and returns 2."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            print(marked("error", error, sys.stderr), file=sys.stderr)
            return 2
        except BrokenPipeError:  # the reader of our stdout (head, less) went away: nothing is wrong
            sys.stderr.close()
            return 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped
