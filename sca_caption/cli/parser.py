"""What every program's command line has: help that fits the terminal, --version, --completion, mistakes in one line."""

import argparse
import functools
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from sca_caption import __version__
from sca_caption.runtime.errors import UserError, marked

NARROWEST, WIDEST = 40, 120  # columns
SHELLS = ("bash", "zsh", "tcsh")
FILES = ("FILE", "IMAGE")  # how metavars of files begin


def width() -> int:
    """Columns that help may fill: COLUMNS, else the terminal's width, else 80; within bounds that read well."""
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))


class _HelpFormatter(argparse.HelpFormatter):
    """Keeps the line breaks of descriptions and epilogs where they fit; short lists of flags on narrow terminals."""

    def __init__(self, prog: str):
        columns = width()
        position = (
            32 if columns >= 80 else columns // 3
        )  # on wide ones most flags and their help share a line
        super().__init__(prog, max_help_position=position, width=columns - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            textwrap.indent(_fitted(lines, width - len(indent)), indent) for lines in paragraphs
        )

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:  # argparse would say NAME [NAME ...]
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


def _fitted(paragraph: str, width: int) -> str:
    """The paragraph as it is if it fits; else prose filled anew, and the remarks of commands above them."""
    lines = paragraph.splitlines()
    if max(map(len, lines)) <= width:
        return paragraph
    if not any(line.startswith(" ") for line in lines):
        return textwrap.fill(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
    found = []
    for line in lines:
        call, mark, remark = line.partition(" # ")
        if len(line) > width and mark:
            found += [f"{line[: len(line) - len(line.lstrip())]}# {remark}", call.rstrip()]
        else:
            found.append(line)  # a long command stays one line, so that it can be copied
    return "\n".join(found)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line, has --version and, where a shell can use it, --completion.

    also: parsers that read the same program's flags on other tasks, for completion.
    """

    def __init__(self, *, also: Callable[[], Iterable[argparse.ArgumentParser]] = tuple, **options):
        super().__init__(formatter_class=_HelpFormatter, **options)
        self.also = also
        if self.add_help:
            self.add_argument("--version", action="version", version=f"sca_caption {__version__}",
                              help="print the version and exit")  # fmt: skip
        if self.add_help and installed_name(self.prog):
            self.add_argument("--completion", action=_Completion, choices=SHELLS, metavar="SHELL",
                              help="print a script that completes flags in bash, zsh or tcsh")  # fmt: skip

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def installed_name(prog: str) -> str:
    """What the program is called once installed: of train.py, sca-caption-train; of what `python -m` starts, ""."""
    name = prog.split()[0].removesuffix(".py").removeprefix("sca-caption-")
    if name == "python":
        return ""
    return f"sca-caption-{name}" if name in ("preprocess", "train", "evaluate") else "sca-caption"


class _Completion(argparse.Action):
    """Prints the shell's script and exits. Raises UserError where shtab, which writes it, is not installed."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **options)

    def __call__(self, parser, namespace, shell, option_string=None):
        print(completion(parser, shell))
        parser.exit()


def completion(parser: Parser, shell: str) -> str:
    """The script by which a shell ("bash", "zsh" or "tcsh") completes the program's flags, choices and files.

    Raises UserError where shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError(
            "--completion needs shtab, found none; run: pip install 'sca-caption[completion]'"
        ) from error

    whole = argparse.ArgumentParser(prog=installed_name(parser.prog), add_help=False)
    known = set()
    for each in (parser, *parser.also()):
        for action in each._actions:
            if action.help is argparse.SUPPRESS or not known.isdisjoint(action.option_strings):
                continue
            known.update(action.option_strings)
            metavar = str(action.metavar)
            if metavar == "DIR":
                action.complete = shtab.DIRECTORY
            elif action.type is Path or metavar.startswith(FILES):
                action.complete = shtab.FILE
            whole._add_action(action)
    return shtab.complete(whole, shell)


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
