"""The documents hold: links lead somewhere, commands parse, packages exist, and neither old names nor odd words occur."""

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
    MODULE,
    PROGRAMS,
    README,
    ROOT,
    calls,
    commands,
    program_of,
    programs,
    shell_lines,
    texts,
)

SET_UP, TEST = "pip install -c constraints.txt -e '.[test]'", "pytest"
# Commands in documents that are not the project's, besides pip and python, which are looked at.
OTHERS = {
    "[",
    "awk",
    "cd",
    "curl",
    "done",
    "find",
    "for",
    "ls",
    "mypy",
    "npm",
    "pre-commit",
    "pytest",
    "ruff",
    "source",
}
OTHERS |= {"split", "tensorboard"}
STANDARD_MODULES = {"http.server", "venv"}  # that `python -m` may start
# Names of earlier versions. Their flags are read as before, but no document shows them.
OLD_NAMES = (
    r"\b(Describer|Recogniser|CaptionData|learn_consensus|learn_subjects|sca_caption\.(curves|calibrate))\b"
)
ODD_WORDS = r"\b(hardly|foretells?|whichever|lest|in the place of|nor do|speaks? of|those of all)\b"


def headings(path: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings(path)}


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
        parts.scheme in ("http", "https") and host is not None and not re.search(r"[\s<>\"{}|\\^`]", address)
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_of_the_repository(path):
    assert broken_links(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_heading_comes_twice(path):
    found = headings(path)
    assert len(set(found)) == len(found)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("## It's (1) there\n")
    good = "# A title\n[a](#a-title) [c](other.md#its-1-there) [e](https://example.org)"
    bad = [
        "#no-title",
        "missing.md",
        "https://example",
        str(README),
        "gone.jpg",
        "https://example.org/{name}",
    ]
    page = tmp_path / "page.md"
    page.write_text(
        f'{good} [b]({bad[0]}) [d]({bad[1]}) [f]({bad[2]}) [g]({bad[3]}) <img src="{bad[4]}"> <{bad[5]}>'
    )
    assert broken_links(page, tmp_path) == bad


def test_commands_parse_and_every_program_has_one():
    parsers, tried = {name: module.parser() for name, module in programs().items()}, set()
    for where, text in texts().items():
        for name, arguments in commands(text):
            assert name in parsers, f"{where}: python {name}: no such program"
            try:
                parsers[name].parse_args(arguments)
            except SystemExit as ended:
                assert ended.code == 0  # --help
            except Exception as error:
                pytest.fail(f"{where}: python {name} {shlex.join(arguments)}: {error}")
            tried.add(name)
    assert tried | {MODULE} == set(parsers)


def unknown(call: list[str]) -> bool:
    """Whether a command of a document is neither the project's, nor a pip that finds its extras, nor a common one."""
    if call[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = re.findall(r"\[([\w,-]+)\]", " ".join(call))
        return not {extra for names in named for extra in names.split(",")} <= set(
            project["optional-dependencies"]
        )
    if found := program_of(call):
        return found[0] not in programs()
    return call[2] not in STANDARD_MODULES if call[:2] == ["python", "-m"] else call[0] not in OTHERS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_hold_commands(path):
    """The project's are parsed by another test; a block of anything but commands has a language, such as ```text."""
    for line in shell_lines(path.read_text(encoding="utf-8")):
        assert [call for call in calls(line) if unknown(call)] == [], (
            f"{line}: no command? write ```text above it"
        )


def test_commands_are_told_from_other_text():
    line = "[ -e a ] || A=1 python train.py --dataset coco < list > out   # it's long"
    assert list(calls(line)) == [["[", "-e", "a", "]"], ["python", "train.py", "--dataset", "coco"]]
    assert program_of(["sca-caption-train", "--lr", "1"]) == ("train.py", ["--lr", "1"])
    assert program_of(["torchrun", "--nproc-per-node", "8", "evaluate.py", "--task", "classify"]) == (
        "evaluate.py --task classify",
        ["--task", "classify"],
    )
    assert program_of(["python", "-m", "sca_caption", "curves", "a"]) == ("-m sca_caption curves", ["a"])
    for wrong in (
        "python caption.py.py",
        "pip install -e '.[tests]'",
        "python -m sca_caption curve a",
        "seven photos",
    ):
        assert any(map(unknown, calls(wrong))), wrong


def shown_flags(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a parser and its subparsers that some help shows, which those of earlier versions are not."""
    found = {
        flag
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for flag in action.option_strings
    }
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(shown_flags, action.choices.values()))
    return found


def test_flags_in_documents_are_shown_by_some_help():
    known = {"--no-save"}  # npm's
    for parser in [*(module.parser() for module in programs().values()), get_args_parser()]:
        known |= shown_flags(parser)
    for where, text in texts().items():
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        assert named <= known, f"{where}: {named - known}"


def occurrences(pattern: str, *endings: str) -> list[str]:
    """path:line: what of the pattern stands in the repository's files of these kinds, but for this one."""
    folders = ("sca_caption/**/*", "tests/**/*", "docs/**/*", "data/*", "*")
    paths = {path for folder in folders for path in ROOT.glob(folder) if path.suffix in endings} - {
        Path(__file__)
    }
    return [
        f"{path.relative_to(ROOT)}:{number}: {found[0]}"
        for path in sorted(paths)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := re.search(pattern, line, re.IGNORECASE))
    ]


def test_no_old_names_in_documents():
    assert occurrences(OLD_NAMES, ".md") == []


def missing_names(text: str, sources: str) -> list[str]:
    """Paths in `code` spans that do not exist and names that `sources` lacks; NAME stands for a new file."""
    spans = [span for span in re.findall(r"`([\w./]+)`", text) if "NAME" not in span]
    paths = [span for span in spans if span.startswith(("sca_caption/", "tests/", "docs/"))]
    names = [span for span in spans if re.fullmatch(r"\w*[A-Z_]\w*(\.\w+)?", span)]
    words = set(re.findall(r"\w+", sources))
    return [path for path in paths if not (ROOT / path).exists()] + [
        name for name in names if not set(name.split(".")) <= words
    ]


def test_code_that_the_contributors_guide_names_exists():
    files = [*(ROOT / "sca_caption").rglob("*.py"), *(ROOT / "sca_caption").rglob("*.js")]
    files += [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert missing_names((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), sources) == []
    wrong = (
        "`Renamed` `GUIDES` `SCACNN.gone_step` `sca_caption/gone.py` `sca_caption/guidance/NAME.py` `pytest`"
    )
    assert missing_names(wrong, sources) == ["sca_caption/gone.py", "Renamed", "SCACNN.gone_step"]


def test_no_odd_words():
    assert occurrences(ODD_WORDS, ".py", ".md", ".js") == []


def test_packages_in_the_readme_are_those_of_the_repository():
    text = README.read_text(encoding="utf-8")
    lines = re.search(r"^## Packages\n.*?^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1].splitlines()
    listed = {line.split()[0] for line in lines if line.startswith("    ")}
    package = ROOT / "sca_caption"
    assert all((package / name).exists() for name in listed)
    assert {
        f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name[0] not in "_."
    } <= listed
    assert all(f"{name}.py" in lines[0] for name in PROGRAMS)


def test_continuous_integration_runs_what_the_readme_says():
    assert f"{SET_UP} && {TEST}\n" in README.read_text(encoding="utf-8")
    script = ROOT / ".ci/run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    assert SET_UP in lines and lines[-1] == TEST
    assert os.access(script, os.X_OK)
