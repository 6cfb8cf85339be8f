"""What all programs share: --version, completion as a shell does it, help for every width, colours on terminals only."""

import importlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sca_caption import __version__
from sca_caption.benchmarks import attention
from sca_caption.cli import average, classify, curves, evaluate_classifier, train_classifier
from sca_caption.cli import fit_confidence as calibrate
from sca_caption.cli.parser import Parser, completion, installed_name, program
from sca_caption.runtime.errors import UserError, marked, warn
from sca_caption.training import loop as training
from tests.helpers.made_photos import message

PROGRAMS = ("preprocess", "train", "caption", "evaluate")
PARSERS = {name: importlib.import_module(f"sca_caption.cli.{name}").parser for name in PROGRAMS} | {
    module.__name__: module.parser
    for module in (calibrate, average, classify, curves, attention, train_classifier, evaluate_classifier)
}


# ---- --version -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARSERS)
def test_every_program_says_its_version(name, capsys):
    with pytest.raises(SystemExit) as ended:
        PARSERS[name]().parse_args(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"sca_caption {__version__}\n")


# ---- completion ------------------------------------------------------------------------------------------------------


def bash(script: str, command: str, *words: str, folder: Path) -> set[str]:
    """What bash offers for the last of the words, as it does when the tabulator is pressed."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    code = (
        f'{script}\ncompleter=$(complete -p {command} | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        '"$completer" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", command, *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "command", "words", "wanted"),
    [
        ("train", "sca-caption-train", ("--atten",), {"--attention", "--attention-width"}),
        ("train", "sca-caption-train", ("--attention", ""), {"S", "C", "S-C", "C-S"}),
        ("train", "sca-caption-train", ("--optimizer", "ada"), {"adamw", "adadelta"}),
        ("train", "sca-caption-train", ("--mix",), {"--mixup"}),  # of --task classify
        ("train", "sca-caption-train", ("--epochs", "3", "--no-am"), {"--no-amp"}),
        ("train", "sca-caption-train", ("--output", ""), {"folder"}),
        ("train", "sca-caption-train", ("--data", "da"), {"data.h5"}),
        ("train", "sca-caption-train", ("--init", "da"), {"data.h5"}),
        ("caption", "sca-caption", ("ph",), {"photo.jpg", "photo"}),
        ("caption", "sca-caption", ("--checkpoint", "fol"), {"folder"}),
        ("caption", "sca-caption", ("--completion", ""), {"bash", "zsh", "tcsh"}),
        ("evaluate", "sca-caption-evaluate", ("--split", "t"), {"train", "test"}),
        ("evaluate", "sca-caption-evaluate", ("--conf",), {"--confusion"}),  # of --task classify
        ("preprocess", "sca-caption-preprocess", ("--res",), {"--restval", "--resize-mode"}),
    ],
)
def test_bash_completes_flags_choices_and_files(name, command, words, wanted, tmp_path, monkeypatch):
    pytest.importorskip("shtab")
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    for file in ("data.h5", "photo.jpg", "photo"):
        (tmp_path / file).touch()
    (tmp_path / "folder").mkdir()
    assert bash(completion(PARSERS[name](), "bash"), command, *words, folder=tmp_path) == wanted


@pytest.mark.parametrize(
    ("shell", "mark"), [("zsh", "#compdef sca-caption-train"), ("tcsh", "complete sca-caption-train")]
)
def test_the_program_prints_the_script_of_other_shells(shell, mark, capsys):
    pytest.importorskip("shtab")
    main = importlib.import_module("sca_caption.cli.train").main
    with pytest.raises(SystemExit) as ended:
        main(["--completion", shell])  # though --dataset is required
    out = capsys.readouterr().out
    assert ended.value.code == 0 and mark in out and "attention-width" in out


def test_completion_without_shtab_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    text = message(lambda: PARSERS["train"]().parse_args(["--completion", "bash"]))
    assert text == "--completion needs shtab, found none; run: pip install 'sca-caption[completion]'"


def test_a_shell_that_is_not_known_is_one_line():
    text = message(lambda: PARSERS["train"]().parse_args(["--completion", "fish"]))
    assert text.startswith(
        "argument --completion: invalid choice: 'fish' (choose from 'bash', 'zsh', 'tcsh')"
    )


def test_what_python_m_starts_cannot_be_completed():
    assert installed_name(curves.parser().prog) == ""
    assert "--completion" not in curves.parser().format_help()


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_terminal(name, columns, monkeypatch):
    """All but the examples: a command that is broken over lines could not be copied."""
    monkeypatch.setenv("COLUMNS", str(columns))
    page = PARSERS[name]().format_help()
    prose = [
        line
        for line in page.splitlines()
        if "python " not in line and "torchrun " not in line and "{" not in line and "usage" not in line
    ]
    assert max(map(len, prose)) <= min(columns, 120)
    shared = [line for line in page.splitlines() if line.startswith("  -h, --help ")]
    assert len(shared) == 1  # the flag and its help on one line even where it is narrow


def test_help_breaks_prose_and_keeps_commands_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    command = "python made.py --output a/long/name/of/a/file.json"
    epilog = (
        f"examples:\n  python short.py --flag\n  {command}     # what it is for\n\n"
        "A paragraph of which this line has more than the sixty columns\nof the terminal is filled anew.\n"
    )
    page = Parser(prog="made.py", epilog=epilog).format_help()
    assert page.endswith(
        f"examples:\n  python short.py --flag\n  # what it is for\n  {command}\n\n"
        "A paragraph of which this line has more than the sixty\ncolumns of the terminal is filled anew.\n"
    )
    monkeypatch.setenv("COLUMNS", "120")
    assert Parser(prog="made.py", epilog=epilog).format_help().endswith(epilog)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom sca_caption.cli.{0} import parser\nparser().format_help()\n"
        "print({{'torch', 'numpy', 'matplotlib', 'shtab'}} & set(sys.modules))"
    )
    for name in ("train", "evaluate"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(name)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert done.stdout.strip() in ("set()", "{'numpy'}"), done.stderr


# ---- colours ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def colourful(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("colourful")
def test_colours_are_for_terminals_that_want_them(monkeypatch):
    assert marked("error", "no file", Terminal()) == "\x1b[1;31merror:\x1b[0m no file"
    assert marked("warning", "few", Terminal()) == "\x1b[1;33mwarning:\x1b[0m few"
    assert marked("error", "no file", io.StringIO()) == "error: no file"
    monkeypatch.setenv("NO_COLOR", "1")
    assert marked("error", "no file", Terminal()) == "error: no file"
    monkeypatch.setenv("NO_COLOR", "")  # empty counts as not set
    monkeypatch.setenv("TERM", "dumb")
    assert marked("error", "no file", Terminal()) == "error: no file"


@pytest.mark.usefixtures("colourful")
def test_mistakes_and_warnings_of_programs_are_coloured(monkeypatch):
    @program
    def main(argv=None):
        warn("slow")
        raise UserError("no file")

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main() == 2
    assert stderr.getvalue() == "\x1b[1;33mwarning:\x1b[0m slow\n\x1b[1;31merror:\x1b[0m no file\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_real_terminal(no_color, tmp_path):
    ours, theirs = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])} | (
        {"NO_COLOR": "1"} if no_color else {}
    )
    done = subprocess.run(
        [sys.executable, "-m", "sca_caption.training.plots", "run", "--output", "a.gif"],
        stderr=theirs, env=environment, cwd=tmp_path,
    )  # fmt: skip
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.returncode == 2
    assert said.startswith("error: --output a.gif" if no_color else "\x1b[1;31merror:\x1b[0m --output a.gif")


# ---- --quiet ---------------------------------------------------------------------------------------------------------

SMALL = "--backbone resnet18 --layers layer1.0 layer1.1 --attention-width 8 --embedding-size 8 --lstm-size 16"
WORK = {
    "preprocess": "--dataset shapes --count 40 --image-size 32 --workers 1",
    "train": f"--dataset shapes {SMALL} --epochs 1 --workers 0 --backbone-weights none --device cpu",
    "evaluate": "--dataset shapes --checkpoint runs/shapes/best.pt --device cpu",
}


def test_quiet_programs_print_results_alone(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "summary_writer", lambda output: None)  # takes longer than these tests
    for name, flags in WORK.items():
        said = {}
        for more in ([], ["--quiet"]):
            stderr = Terminal()
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stderr", stderr)
                assert importlib.import_module(f"sca_caption.cli.{name}").main([*flags.split(), *more]) == 0
            said["--quiet" in more] = (capsys.readouterr().out, stderr.getvalue())
            if name == "train" and not more:
                shutil.rmtree("runs")
        results, bars = zip(said[False], said[True], strict=True)
        assert bars[0] and not bars[1], name
        assert results[1] and results[1].count("\n") == results[0].count("\n")
