"""The documents as their tests read them: their files, their code blocks, and the commands in these."""

import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch.distributed.run import get_args_parser

from sca_caption.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FOLDERS = {".": "*.md", "docs": "**/*.md", "data": "*.md", "sca_caption": "**/*.md"}
DOCUMENTS = tuple(path for folder, names in FOLDERS.items() for path in sorted((ROOT / folder).glob(names)))
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))
PROGRAMS = ("preprocess", "train", "caption", "evaluate")
MODULE = "-m sca_caption"
CLASSIFY = "--task classify"

SHELL_BLOCKS = ("", "bash", "sh", "console")  # languages of blocks that hold commands; of output it is text
PREFIXES = ("do", "then", "else", "$", "eval")
INSTALLED = {"sca-caption": "caption"} | {f"sca-caption-{name}": name for name in PROGRAMS}


def programs() -> dict[str, ModuleType]:
    """Everything with a command line, by what follows `python`; of classifiers, also --task classify."""
    cli = "sca_caption.cli"
    names = {f"{name}.py": f"{cli}.{name}" for name in PROGRAMS}
    names |= {f"{name}.py {CLASSIFY}": f"{cli}.{name}_classifier" for name in ("train", "evaluate")}
    names |= {MODULE: "sca_caption.__main__"} | {
        f"{MODULE} {name}": module for name, (module, _) in COMMANDS.items()
    }
    benchmarks = (path.stem for path in sorted((ROOT / "sca_caption/benchmarks").glob("*.py")))
    names |= {f"{MODULE}.benchmarks.{name}": f"sca_caption.benchmarks.{name}" for name in benchmarks}
    found = {name: importlib.import_module(module) for name, module in names.items()}
    found |= {str(path.relative_to(ROOT)): example(path.stem) for path in EXAMPLES}
    return {name: module for name, module in found.items() if hasattr(module, "parser")}


@functools.cache
def example(name: str) -> ModuleType:
    """A program of docs/examples as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / f"docs/examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts() -> dict[str, str]:
    """What users read: the documents, the examples that end the programs' help, and what docs/examples say of theirs."""
    documents = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
    documents |= {path.name: example(path.stem).__doc__ for path in EXAMPLES}
    return documents | {f"{name} --help": getattr(m, "EPILOG", "") for name, m in programs().items()}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block."""
    for found in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        yield found[2], found[3]


def calls(line: str) -> Iterator[list[str]]:
    """The simple commands of a line of shell, without remarks, redirections and the variables set for them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    call, skip = [], False
    for word in [*lexer, ";"]:
        if skip or set(word) <= set("<>"):
            skip = not skip
        elif set(word) <= set("();|&"):
            if call:
                yield call
            call = []
        elif call or not (word in PREFIXES or re.match(r"\w+=", word)):
            call.append(word)


def program_of(call: list[str]) -> tuple[str, list[str]] | None:
    """(name, arguments) of a call of the project's programs, named as in `programs`; None for any other command.

    The names of programs that do not exist are not in `programs`; a COMMAND or NAME in capitals stands for any.
    """
    first, *rest = call
    if first == "torchrun":
        known = get_args_parser().parse_args(rest)
        first, rest = "python", [known.training_script, *known.training_script_args]
    if first in INSTALLED:
        first, rest = "python", [f"{INSTALLED[first]}.py", *rest]
    if first != "python" or not rest:
        return None
    if rest[0].endswith(".py"):
        name, arguments = rest[0], rest[1:]
        return (f"{name} {CLASSIFY}" if CLASSIFY in " ".join(arguments) else name), arguments
    if rest[0] != "-m" or not rest[1:] or rest[1].split(".")[0] != "sca_caption":
        return None
    name, arguments = f"-m {rest[1]}", rest[2:]
    if name == MODULE and arguments and arguments[0] != "COMMAND" and not arguments[0].startswith("-"):
        name, arguments = f"{MODULE} {arguments[0]}", arguments[1:]
    if "COMMAND" in arguments or name.endswith(".NAME"):
        return MODULE, []
    return name, arguments


def shell_lines(text: str) -> Iterator[str]:
    """The lines of the blocks that hold commands, those that go on in the next line joined with it."""
    for language, content in blocks(text):
        if language in SHELL_BLOCKS:
            yield from filter(str.strip, content.replace("\\\n", " ").splitlines())


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(name, arguments) of every call of a program: in code blocks, in indented lines, and in running text."""
    for line in shell_lines(text):
        yield from filter(None, map(program_of, calls(line)))
    prose = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    indented = re.findall(r"^ +(.*)$", prose.replace("\\\n", " "), re.MULTILINE)
    for line in [*inline, *indented]:
        if re.match(r"(\$ )?(\w+=\S+ )?(python |torchrun |sca-caption[a-z-]* |find )", line):
            plain = line if "[ " in line else re.sub(r"[][]", " ", line)  # [--root DIR]
            yield from filter(None, map(program_of, calls(plain)))
