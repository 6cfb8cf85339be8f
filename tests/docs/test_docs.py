"""The documents keep their word: links lead somewhere, commands exist, the file tree is the repository's."""

import argparse
import os
import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from torch.distributed.run import get_args_parser

from tests.helpers.documents import (
    DOCUMENTS,
    PROGRAMS,
    README,
    ROOT,
    calls,
    commands,
    modules,
    program_of,
    shell_lines,
    texts,
)

SET_UP, TEST = "pip install -e '.[test]'", "pytest"
# Commands in documents that are not the project's, besides pip and python, which are looked at.
OTHERS = {"[", "awk", "cd", "curl", "done", "find", "for", "ls", "npm", "pytest", "split", "tensorboard"}
STANDARD_MODULES = {"http.server", "venv"}  # that `python -m` may start


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
    for target in [*targets, *re.findall(r"<(https?:[^>]*)>", text)]:
        if re.match(r"\w+:", target):
            if not well_formed(target):
                broken.append(target)
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        inside = file.is_relative_to(root.resolve()) and file.exists()
        if not inside or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def well_formed(address: str) -> bool:
    """Whether it could be a page's: http or https, a host with a dot in it, no user name, nothing to be escaped."""
    parts = urlsplit(address)
    host = re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc.lower())
    return (
        parts.scheme in ("http", "https")
        and host is not None
        and re.search(r"[\s<>\"{}|\\^`]", address) is None
    )


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
    text += " [g](https://example) [h](htps://example.org/a) <https://example.org/{name}>"
    page.write_text(text + f' <img src="gone.jpg"> [f]({README})')
    wanted = ["#no-title", "missing.md", "https://example", "htps://example.org/a", str(README), "gone.jpg"]
    assert broken_links(page, tmp_path) == [*wanted, "https://example.org/{name}"]


def test_commands_are_the_programs_own(capsys):
    parsers, tried = {name: module.parser() for name, module in modules().items()}, set()
    for where, text in texts().items():
        for name, arguments in commands(text):
            try:
                parsers[name].parse_args(arguments)
            except (SystemExit, Exception) as error:
                reason = capsys.readouterr().err or error
                pytest.fail(f"{where}: python {name} {shlex.join(arguments)}: {reason}")
            tried.add(name)
    assert tried == set(parsers)


def unknown(call: list[str]) -> bool:
    """Whether a command of a document is neither the project's, nor a pip that finds its extras, nor a common one."""
    if call[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = re.findall(r"\[([\w,-]+)\]", " ".join(call))
        return not {extra for names in named for extra in names.split(",")} <= set(
            extras["optional-dependencies"]
        )
    if found := program_of(call):
        return found[0] not in modules()
    return call[2] not in STANDARD_MODULES if call[:2] == ["python", "-m"] else call[0] not in OTHERS


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_code_blocks_hold_commands_that_are_checked(path):
    """All of the project's are parsed in the next test; a block of anything but commands says so: ```text."""
    for line in shell_lines(path.read_text(encoding="utf-8")):
        assert [call for call in calls(line) if unknown(call)] == [], (
            f"{line}: no command? then write ```text above it"
        )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("python train.py --dataset coco   # it's long", [["python", "train.py", "--dataset", "coco"]]),
        ("$ A=1 B=2 python caption.py - < list > out && ls", [["python", "caption.py", "-"], ["ls"]]),
        ("[ -e a ] || OMP_NUM_THREADS=1 pytest", [["[", "-e", "a", "]"], ["pytest"]]),
        ("find . -name '*.jpg' | split -l 5 -", [["find", ".", "-name", "*.jpg"], ["split", "-l", "5", "-"]]),
    ],
)
def test_the_commands_of_a_line(line, found):
    assert list(calls(line)) == found


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("sca-caption-train --dataset coco", ("train", ["--dataset", "coco"])),
        ("sca-caption a.jpg", ("caption", ["a.jpg"])),
        (
            "torchrun --nproc-per-node 8 evaluate.py --task classify",
            ("evaluate --task classify", ["--task", "classify"]),
        ),
        ("python -m sca_caption curves a", ("sca_caption.training.plots", ["a"])),
        ("python -m venv a", None),
    ],
)
def test_the_program_of_a_command(call, found):
    assert program_of(shlex.split(call)) == found


@pytest.mark.parametrize(
    "line",
    [
        "python caption.py.py",
        "pip install -e '.[tests]'",
        "python -m sca_caption.curve a",
        "seven photographs",
    ],
)
def test_a_block_with_a_command_that_does_not_exist_is_found(line):
    assert any(map(unknown, calls(line)))


def test_flags_named_in_passing_exist():
    known = {"--no-save"}  # npm's
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
