"""Programs and extras are called by the names that the user has: files of a clone, or installed commands."""

import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from sca_caption.runtime import programs

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_A_CLONE = r"\b(caption|preprocess|train|evaluate)\.py\b|install -e"


def test_names_are_those_of_pyproject():
    modules = {
        f"{target.partition(':')[0].rpartition('.')[2]}.py": name
        for name, target in PROJECT["scripts"].items()
    }
    assert modules == programs.INSTALLED


HELP = """\
  python train.py --dataset a    # see preprocess.py
  torchrun --standalone --nproc-per-node 8 train.py --dataset coco
pip install -e '.[eval]' of mytrain.py and runs/train.py; caption.py --output
see data/README.md
"""
HELP_INSTALLED = """\
  sca-caption-train --dataset a    # see sca-caption-preprocess
  torchrun --standalone --nproc-per-node 8 --no-python sca-caption-train --dataset coco
pip install 'sca-caption[eval]' of mytrain.py and runs/train.py; sca-caption --output
see data/README.md in the project's source
"""


@pytest.mark.parametrize("started", ["/usr/bin/sca-caption-train", "train.py"])
def test_how_the_program_was_started_decides_in_a_clone(started, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    found = (
        programs.command("train.py"),
        programs.program_name("caption.py"),
        programs.install_command("eval"),
        programs.install_command(),
        programs.localized(HELP),
    )
    assert found == (
        ("python train.py", "caption.py", "pip install -e '.[eval]'", "pip install -e .", HELP)
        if started == "train.py"
        else ("sca-caption-train", "sca-caption", "pip install 'sca-caption[eval]'", "pip install sca-caption",
              HELP_INSTALLED)
    )  # fmt: skip


def test_a_package_outside_a_clone_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "CLONE", tmp_path)
    assert programs.command("evaluate.py") == "sca-caption-evaluate"


def test_documents_of_a_clone_are_said_to_be_there(tmp_path):
    """The module is read anew in the process of an installed program."""
    code = (
        "import sys; sys.argv = ['/usr/bin/sca-caption-preprocess']; from sca_caption.cli.preprocess import main; "
        f"sys.exit(main(['--dataset', 'flickr8k', '--root', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "data/README.md in the project's source" in done.stderr


def test_errors_do_not_name_programs_and_extras_themselves():
    """Help is translated by the parser, but errors can hold names of files."""
    for path in sorted((ROOT / "sca_caption").rglob("*.py")):
        if "benchmarks" in path.parts:  # which run in a clone
            continue
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if re.search(rf"{OF_A_CLONE}|sca-caption", source) else ():
            if not isinstance(node, ast.Raise):
                continue
            calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
            files = {each for call in calls if isinstance(call.func, ast.Name)
                     and call.func.id in ("command", "program_name") for each in call.args}  # fmt: skip
            for text in ast.walk(node):
                if isinstance(text, ast.Constant) and isinstance(text.value, str) and text not in files:
                    assert not re.search(OF_A_CLONE + r"|sca-caption\b", text.value), (path, text.value)


RUN = """
import contextlib, importlib, io, json, sys
answers = []
for command, module, lacking, arguments in json.loads(sys.argv[1]):
    sys.argv = [f"/usr/local/bin/{command}" if command else "-c", *arguments]
    before = {name: sys.modules.pop(name, None) for name in lacking}
    sys.modules.update(dict.fromkeys(lacking))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = importlib.import_module(module).main(arguments)
        except SystemExit as ended:
            status = ended.code
    for name, module in before.items():
        sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    answers.append((status, said.getvalue()))
import sca_caption
print(json.dumps([sca_caption.__file__, answers]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which a wheel of the package was unpacked, with its metadata."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(
        ROOT / "sca_caption", folder / "sca_caption", ignore=shutil.ignore_patterns("__pycache__")
    )
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_installed_from_a_wheel(site, tmp_path):
    """Help and errors name neither files of a clone nor an installation from it."""
    scripts = {name: target.partition(":")[0] for name, target in PROJECT["scripts"].items()}
    cases = [(*script, [], ["--help"]) for script in scripts.items()]
    for name in ("sca-caption-train", "sca-caption-evaluate"):
        cases.append((name, scripts[name], [], ["--task", "classify", "--help"]))
    cases += [("", f"sca_caption.cli.{name}", [], ["--help"]) for name in ("caption", "train")]
    cases += [
        ("", "sca_caption.__main__", [], [*name, "--help"])
        for name in ([], ["classify"], ["curves"], ["fit"])
    ]
    caption = ("sca-caption", scripts["sca-caption"])
    evaluate = ("sca-caption-evaluate", scripts["sca-caption-evaluate"])
    errors = [
        ((*caption, [], []), "try sca-caption photo.jpg, or sca-caption --demo"),
        ((*caption, [], ["--bem-size"]), "see sca-caption --help"),
        ((*caption, ["shtab"], ["--completion", "bash"]), "pip install 'sca-caption[completion]'"),
        ((*caption, ["starlette", "starlette.applications"], ["--serve"]), "pip install 'sca-caption[web]'"),
        ((*evaluate, ["nltk"], ["--nltk"]), "pip install 'sca-caption[eval]'"),
        (("sca-caption-train", scripts["sca-caption-train"], [], ["--dataset", "nowhere"]),
         "sca-caption-preprocess --dataset nowhere"),
    ]  # fmt: skip
    cases += [case for case, _ in errors]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(cases)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site), "COLUMNS": "120"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    package, answers = json.loads(done.stdout.splitlines()[-1])
    assert Path(package).is_relative_to(site)
    for (name, *case), (status, text) in zip(cases, answers, strict=True):
        assert not re.search(OF_A_CLONE, text), (name, case, text)
        if status == 0:
            assert text.startswith(f"usage: {name or ''}"), (name, case, text)
    for (case, part), (status, text) in zip(errors, answers[-len(errors) :], strict=True):
        assert status == 2 and part in text and text.count("\n") == 1, (case, text)


@pytest.mark.slow
def test_the_description_of_the_package_has_no_relative_links(site):
    metadata = email.message_from_bytes(next(site.glob("*.dist-info/METADATA")).read_bytes())
    description = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", description)
    assert targets and all("".join(target).startswith("https://") for target in targets)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.compile(r"^#+ [^\n]*|^```.*?^```", re.MULTILINE | re.DOTALL)
    assert blocks.findall(description) == blocks.findall(readme)
