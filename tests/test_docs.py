"""The documents keep their word: links lead somewhere, commands exist, the file tree is the repository's."""

import argparse
import importlib
import os
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from sca_caption import benchmarks, calibrate, checkpoint, classify, curves
from sca_caption.cli import evaluate_classifier, train_classifier

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = (README, *(ROOT / path for path in ("sca_caption/weights/README.md", "data/README.md", "docs/attention.md",
                                                "docs/performance.md", "docs/scale.md", "docs/decoding.md",
                                                "docs/explain.md")))  # fmt: skip
PROGRAMS = ("preprocess", "train", "caption", "evaluate")
SET_UP, TEST = "pip install -e '.[test]'", "pytest"


BENCHMARKS = [
    module
    for found in pkgutil.iter_modules(benchmarks.__path__, "sca_caption.benchmarks.")
    if hasattr(module := importlib.import_module(found.name), "parser")
]
CLASSIFY = "--task classify"
MODULES = {
    "sca_caption.classify": classify,
    "sca_caption.checkpoint": checkpoint,
    "sca_caption.calibrate": calibrate,
    "sca_caption.curves": curves,
} | {benchmark.__name__: benchmark for benchmark in BENCHMARKS}


def modules() -> dict[str, object]:
    """Everything with a command line, by what follows `python` (without .py, and -m)."""
    programs = {name: importlib.import_module(f"sca_caption.cli.{name}") for name in PROGRAMS}
    of_classifiers = {f"train {CLASSIFY}": train_classifier, f"evaluate {CLASSIFY}": evaluate_classifier}
    return programs | of_classifiers | MODULES


def texts() -> dict[str, str]:
    """What users read: the documents, and the examples that end the programs' help."""
    documents = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
    return documents | {f"{name} --help": getattr(m, "EPILOG", "") for name, m in modules().items()}


def launched(call: str) -> str:
    """What torchrun starts, if the call is one of torchrun, as a call of python."""
    found = re.match(r"\s*(?:\w+=\S+ )?torchrun (.*)", call)
    if not found:
        return call
    known = get_args_parser().parse_args(shlex.split(found[1], comments=True))
    return shlex.join(["python", known.training_script, *known.training_script_args])


def commands(text: str) -> Iterator[list[str]]:
    """Every call of a program in a text, as the program's name and its arguments."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in [*text.replace("\\\n", " ").splitlines(), *inline]:
        for call in re.split(r"&&|\|", line):
            names = [rf"{name}(?=\.py)" for name in PROGRAMS] + [re.escape(name) for name in MODULES]
            line_of_python = rf"\s*(?:\$ )?python (?:-m )?({'|'.join(names)})(?:\.py)?(?: (.*)|$)"
            found = re.match(line_of_python, launched(call))
            if found:
                arguments = re.sub(r"[][]", " ", found[2] or "")  # [--root DIR]
                task = f" {CLASSIFY}" if CLASSIFY in arguments else ""
                yield [found[1] + task, *shlex.split(arguments, comments=True)]


def fenced(text: str, heading: str) -> list[str]:
    """The lines of the first code block below a heading."""
    return re.search(rf"^{heading}\n.*?^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1].splitlines()


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    broken = []
    for target in targets:
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        inside = file.is_relative_to(root.resolve()) and file.exists()
        if not inside or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def listed(lines: list[str]) -> set[str]:
    """The paths of a file tree: four spaces a level, the name first, folders end in a slash."""
    parents, found = [], set()
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 4
        parents[depth:] = [line.split()[0]]
        found.add("".join(parents))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_lead_to_files_and_headings_of_the_repository(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    other = tmp_path / "other.md"
    other.write_text("## It's (1) there\n")
    text = "# A title\n[a](#a-title) [b](#no-title) [c](other.md#its-1-there) [d](missing.md) [e](https://example.org)"
    page.write_text(text + f' <img src="gone.jpg"> [f]({README})')
    assert broken_links(page, tmp_path) == ["#no-title", "missing.md", str(README), "gone.jpg"]


def test_commands_are_the_programs_own(capsys):
    parsers, tried = {name: module.parser() for name, module in modules().items()}, set()
    for where, text in texts().items():
        for name, *arguments in commands(text):
            try:
                parsers[name].parse_args(arguments)
            except (SystemExit, Exception) as error:
                reason = capsys.readouterr().err or error
                pytest.fail(f"{where}: python {name} {shlex.join(arguments)}: {reason}")
            tried.add(name)
    assert tried == set(parsers)


def test_flags_named_in_passing_exist():
    known = set()
    parsers: list[argparse.ArgumentParser] = [module.parser() for module in modules().values()]
    for parser in [*parsers, get_args_parser()]:
        known |= {flag for action in parser._actions for flag in action.option_strings}
    for path in DOCUMENTS:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text(encoding="utf-8")))
        assert named <= known, f"{path}: {named - known}"


def test_the_file_tree_is_the_repository():
    tree = listed(fenced(README.read_text(encoding="utf-8"), "## Files"))
    assert {name for name in tree if not (ROOT / name).exists()} == set()
    entries = [e for e in (ROOT / "sca_caption").iterdir() if not e.name.startswith(("__", "."))]
    package = {f"sca_caption/{e.name}{'/' * e.is_dir()}" for e in entries}
    programs = {f"{name}.py" for name in PROGRAMS}
    assert (package | programs) - tree == set(), "list them in README.md, ## Files"


def test_continuous_integration_runs_what_the_readme_says():
    assert f"{SET_UP} && {TEST}\n" in README.read_text(encoding="utf-8")
    script = ROOT / ".ci/run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    assert SET_UP in lines and lines[-1] == TEST
    assert os.access(script, os.X_OK)


def test_nothing_is_left_to_fill_in():
    marks = r"\b(?:RESULT|EXAMPLE|DEMO|STAGE2)_[A-Z_]+\b"
    assert [mark for path in DOCUMENTS for mark in re.findall(marks, path.read_text(encoding="utf-8"))] == []
