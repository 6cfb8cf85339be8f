"""The documents as their tests read them: which there are, their code blocks, and the commands in these."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FOLDERS = {"docs": "**/*.md", "data": "*.md", "sca_caption": "**/*.md"}
DOCUMENTS = (
    README,
    *(path for folder, names in FOLDERS.items() for path in sorted((ROOT / folder).glob(names))),
)
PROGRAMS = ("preprocess", "train", "caption", "evaluate")
CLASSIFY = "--task classify"

SHELL_BLOCKS = ("", "bash", "sh", "console")  # languages of blocks that hold commands; of output it is text
PREFIXES = ("do", "then", "else", "$", "eval")
INSTALLED = {"sca-caption": "caption"} | {f"sca-caption-{name}": name for name in PROGRAMS}


def with_command_line() -> dict[str, ModuleType]:
    """The modules that `python -m` starts, by name: those that have a parser, and a last line that calls main."""
    found = {}
    for path in sorted((ROOT / "sca_caption").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\ndef parser(" in text and '\nif __name__ == "__main__":' in text:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            found[name] = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def modules() -> dict[str, ModuleType]:
    """Everything with a command line, by what follows `python` (without .py, and -m)."""
    programs = {name: importlib.import_module(f"sca_caption.cli.{name}") for name in PROGRAMS}
    of_classifiers = {
        f"{name} {CLASSIFY}": importlib.import_module(f"sca_caption.cli.{name}_classifier")
        for name in ("train", "evaluate")
    }
    return programs | of_classifiers | with_command_line()


def texts() -> dict[str, str]:
    """What users read: the documents, and the examples that end the programs' help."""
    documents = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
    return documents | {f"{name} --help": getattr(m, "EPILOG", "") for name, m in modules().items()}


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
    """(name, arguments) of a call of the project's programs, as in `modules`; None for any other command."""
    first, *rest = call
    if first == "torchrun":
        known = get_args_parser().parse_args(rest)
        first, rest = "python", [known.training_script, *known.training_script_args]
    if first == "python" and rest[:1] == ["-m"] and rest[1:2] and rest[1].split(".")[0] == "sca_caption":
        name, arguments = rest[1], rest[2:]
    elif first == "python" and rest and rest[0].endswith(".py"):
        name, arguments = rest[0].removesuffix(".py"), rest[1:]
    elif first in INSTALLED:
        name, arguments = INSTALLED[first], rest
    else:
        return None
    return (f"{name} {CLASSIFY}" if CLASSIFY in " ".join(arguments) else name), arguments


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
