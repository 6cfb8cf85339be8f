"""The argument parser of all programs: fitted help, --help-all, --version, --completion, and errors in one line."""

import argparse
import contextlib
import functools
import io
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sca_caption import __version__
from sca_caption.runtime.errors import Terminated, UserError, did_you_mean, fail, missing
from sca_caption.runtime.programs import INSTALLED, install_command, localized

MIN_WIDTH, MAX_WIDTH = 40, 120  # columns
SHELLS = ("bash", "zsh", "tcsh")
FILES = ("FILE", "IMAGE")  # how metavars of files begin


def width() -> int:
    """Width of help texts: COLUMNS, else the terminal's width, else 80; from MIN_WIDTH to MAX_WIDTH."""
    return min(MAX_WIDTH, max(MIN_WIDTH, shutil.get_terminal_size().columns))


class _HelpFormatter(argparse.HelpFormatter):
    """Keeps the line breaks of descriptions and epilogs if they fit; leaves the flags less room on narrow terminals."""

    def __init__(self, prog: str):
        columns = width()
        # On wide terminals most flags share a line with their help.
        position = 32 if columns >= 80 else columns // 3
        super().__init__(prog, max_help_position=position, width=columns - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = localized(text).strip("\n").split("\n\n")
        return "\n\n".join(
            textwrap.indent(_fitted(lines, width - len(indent)), indent) for lines in paragraphs
        )

    def _expand_help(self, action: argparse.Action) -> str:
        return localized(super()._expand_help(action))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:  # argparse would say NAME [NAME ...]
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


def _fitted(paragraph: str, width: int) -> str:
    """The paragraph if it fits; else prose is filled again, and the comment of a command goes above it."""
    lines = paragraph.splitlines()
    if max(map(len, lines)) <= width:
        return paragraph
    if not any(line.startswith(" ") for line in lines):
        return textwrap.fill(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
    found = []
    for line in lines:
        call, mark, comment = line.partition(" # ")
        if len(line) > width and mark:
            found += [f"{line[: len(line) - len(line.lstrip())]}# {comment}", call.rstrip()]
        else:
            found.append(line)  # a long command stays one line, so that it can be copied
    return "\n".join(found)


class Parser(argparse.ArgumentParser):
    """Raises UserError for wrong flags; has --version, --help-all if flags are marked rare, and --completion.

    also: parsers of the same program's flags for other tasks, for completion.
    """

    def __init__(self, *, also: Callable[[], Iterable[argparse.ArgumentParser]] = tuple, **options: Any):
        names = {name: localized(options[name]) for name in ("prog", "usage") if options.get(name)}
        super().__init__(formatter_class=_HelpFormatter, **options | names)
        self.also = also
        self.rare: list[argparse.Action] = []
        if self.add_help:
            self.add_argument("--version", action="version", version=f"sca_caption {__version__}",
                              help="print the version and exit")  # fmt: skip
        if self.add_help and installed_name(self.prog):
            self.add_argument("--completion", action=_Completion, choices=SHELLS, metavar="SHELL",
                              help="print a script that completes flags in bash, zsh or tcsh")  # fmt: skip

    def add_rare(self, *actions: argparse.Action) -> None:
        """Show these flags in --help-all alone."""
        if not self.rare and self.add_help:
            self.add_argument("--help-all", action=_HelpAll, help="show rarely used flags as well, and exit")
        self.rare += actions

    def format_help(self) -> str:
        shown = {action: action.help for action in self.rare}
        for action in self.rare:
            action.help = argparse.SUPPRESS
        try:
            return self.format_all_help()
        finally:
            for action, text in shown.items():
                action.help = text

    def format_all_help(self) -> str:
        return super().format_help()

    def parse_args(  # type: ignore[override]  # the overloads of argparse are for namespaces of other classes
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            message = f"unrecognized arguments: {' '.join(unknown)}"
            wrong = next((each for each in unknown if each.startswith("-")), "").partition("=")[0]
            flags = self._option_string_actions.items()
            near = did_you_mean(wrong, [flag for flag, action in flags if action.help != argparse.SUPPRESS])
            self.error(message + near)
        return found

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string and (action.type is Path or str(action.metavar).startswith(FILES)):
            raise argparse.ArgumentError(action, "an empty path; check the variable that it comes from")
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def installed_name(prog: str) -> str:
    """The installed program: sca-caption-train for train.py; "" for what `python -m` starts."""
    name = prog.split()[0]
    return "" if name == "python" else INSTALLED.get(name, name)


class _HelpAll(argparse.Action):
    """Prints the help of all flags and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        assert isinstance(parser, Parser)
        print(parser.format_all_help(), end="")
        parser.exit()


class _Completion(argparse.Action):
    """Prints the shell's script and exits. Raises UserError if shtab, which writes it, is not installed."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        shell: Any,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, Parser)
        print(completion(parser, shell))
        parser.exit()


def completion(parser: Parser, shell: str) -> str:
    """The script that completes the program's flags, choices and files in a shell: "bash", "zsh" or "tcsh".

    Raises UserError if shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError(
            f"--completion needs shtab, found none; run: {install_command('completion')}"
        ) from error

    whole = argparse.ArgumentParser(prog=installed_name(parser.prog), add_help=False)
    known: set[str] = set()
    for each in (parser, *parser.also()):
        for action in each._actions:
            if action.help is argparse.SUPPRESS or not known.isdisjoint(action.option_strings):
                continue
            known.update(action.option_strings)
            metavar = str(action.metavar)
            if metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.type is Path or metavar.startswith(FILES):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            whole._add_action(action)
    return shtab.complete(whole, shell)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the main thread of this process when it gets SIGTERM. Processes that it forks just end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    process = os.getpid()

    def handle(number: int, frame: object) -> None:
        if os.getpid() == process:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _ClosedOutput(io.StringIO):
    """Stands for a standard output that was closed when the program started (>&-, pythonw)."""

    def write(self, text: str) -> NoReturn:
        raise UserError("standard output is closed; redirect it to a file, or to /dev/null")


def open_streams() -> None:
    """Replace standard streams that are closed, which Python sets to None."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (
        descriptor := os.open(os.devnull, os.O_RDWR)
    ) <= 2:  # or the next file that is opened would be stdout
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 (open until the program ends)
    sys.stdout = sys.stdout or _ClosedOutput()
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def program(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a program's `main(argv=None) -> status`: a UserError prints one line on stderr and returns 2.

    So does a package that is not installed or does not load, a file without permission, and memory that runs out. Ctrl-C
    returns 130, SIGTERM 143.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        open_streams()
        try:
            with terminable():
                return main(argv)
        except UserError as error:
            return fail(error)
        except ImportError as error:
            return fail(missing(error))
        except MemoryError:
            return fail("not enough memory; close other programs, or use a smaller batch or model")
        except PermissionError as error:
            return fail(f"no permission to open {error.filename or 'a file'}; change it, or choose another")
        except BrokenPipeError:  # the reader of stdout (head, less) has ended, which is no error
            sys.stderr.close()
            return 0
        except Terminated:
            print("terminated", file=sys.stderr)
            return 143
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped
