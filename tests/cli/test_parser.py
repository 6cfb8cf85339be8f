"""What the command lines of all programs share: --version, completion, help that fits the terminal, colours, --quiet."""

import importlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sca_caption import __main__, __version__
from sca_caption.cli.parser import Parser, completion, installed_name, program
from sca_caption.runtime.errors import UserError, format_message, warn
from sca_caption.runtime.start import start
from sca_caption.training import loop as training
from tests.helpers.documents import programs
from tests.helpers.made_photos import error_line, message

ROOT = Path(__file__).parents[2]
PARSERS = {name: module.parser for name, module in programs().items()}


def test_every_program_has_its_version_and_help_that_fits_the_terminal(monkeypatch, capsys):
    """Examples keep their lines: a command that is broken over lines could not be copied."""
    for name, parser in PARSERS.items():
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(["--version"])
        assert (ended.value.code, capsys.readouterr().out) == (0, f"sca_caption {__version__}\n"), name
        for columns in (60, 80, 200):
            monkeypatch.setenv("COLUMNS", str(columns))
            lines = parser().format_all_help().splitlines()
            prose = [
                line
                for line in lines
                if not any(mark in line for mark in ("python ", "torchrun ", "{", "usage", " | --no-"))
            ]
            assert max(map(len, prose)) <= min(columns, 120), name
            # The flag and its help share a line, on narrow terminals too.
            assert sum(line.startswith("  -h, --help ") for line in lines) == 1, name


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


@pytest.mark.parametrize("name", [name for name, parser in PARSERS.items() if not parser()._subparsers])
def test_a_wrong_flag_names_the_nearest(name):
    parser = PARSERS[name]()
    flag = next(each for each in parser._option_string_actions if each.startswith("--") and len(each) > 7)
    required = []
    for action in parser._actions:
        if action.required:
            required += [*action.option_strings[:1], next(iter(action.choices or ["x"]))]
    with pytest.raises(UserError, match=f"unrecognized arguments: .*; did you mean {flag}\\?"):
        parser.parse_args([*required, f"{flag[:4]}{flag[5:]}x=3"])


def test_empty_paths_are_refused():
    """A variable of the shell that is not set must not stand for the current folder."""
    parser = Parser(prog="made.py")
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--name", default="")
    for wrong in ([""], ["a.jpg", ""], ["--output", ""], ["--output="]):
        with pytest.raises(UserError, match=r"(IMAGE|--output): an empty path; check the variable"):
            parser.parse_args(wrong)
    assert parser.parse_args(["a.jpg", "--name", ""]).name == ""


def test_rare_flags_are_shown_by_help_all_alone(capsys):
    parser = Parser(prog="made.py")
    parser.add_rare(parser.add_argument("--rare", help="seldom used"))
    assert "--rare" not in parser.format_help() and "--help-all" in parser.format_help()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help-all"])
    assert ended.value.code == 0 and "--rare RARE" in capsys.readouterr().out
    assert parser.parse_args(["--rare", "x"]).rare == "x"


def test_help_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys\nfrom sca_caption.cli import {0}\n{0}.parser().format_help()\n"
        "assert {{'torch', 'matplotlib', 'shtab'}}.isdisjoint(sys.modules)"
    )
    for name in ("train", "evaluate"):
        subprocess.run([sys.executable, "-c", code.format(name)], cwd=ROOT, check=True)


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


def test_bash_completes_flags_choices_and_files(tmp_path, monkeypatch):
    pytest.importorskip("shtab")
    for file in ("data.h5", "photo.jpg", "photo"):
        (tmp_path / file).touch()
    (tmp_path / "folder").mkdir()
    for name, words, wanted in (
        ("train", ("--atten",), {"--attention", "--attention-width", "--attention-penalty"}),
        ("train", ("--attention", ""), {"S", "C", "S-C", "C-S"}),
        ("train", ("--mix",), {"--mixup"}),  # of --task classify
        ("train", ("--epochs", "3", "--no-am"), {"--no-amp"}),
        ("train", ("--output", ""), {"folder"}),
        ("train", ("--data", "da"), {"data.h5"}),
        ("caption", ("ph",), {"photo.jpg", "photo"}),
        ("evaluate", ("--conf",), {"--confusion"}),  # of --task classify
    ):
        monkeypatch.setattr(sys, "argv", [f"{name}.py"])
        parser = PARSERS[f"{name}.py"]()
        script = completion(parser, "bash")
        assert bash(script, installed_name(parser.prog), *words, folder=tmp_path) == wanted, words


def test_completion_of_other_shells_and_of_shells_that_are_not_known(monkeypatch, capsys):
    pytest.importorskip("shtab")
    main = importlib.import_module("sca_caption.cli.train").main
    for shell, mark in (("zsh", "#compdef sca-caption-train"), ("tcsh", "complete sca-caption-train")):
        with pytest.raises(SystemExit) as ended:
            main(["--completion", shell])  # though --dataset is required
        out = capsys.readouterr().out
        assert ended.value.code == 0 and mark in out and "attention-width" in out
    text = message(lambda: PARSERS["train.py"]().parse_args(["--completion", "fish"]))
    assert "--completion" in text and "'fish'" in text and "'tcsh'" in text
    monkeypatch.setitem(sys.modules, "shtab", None)
    text = message(lambda: PARSERS["train.py"]().parse_args(["--completion", "bash"]))
    assert "shtab" in text and "pip install -e '.[completion]'" in text


def test_what_python_m_starts_cannot_be_completed():
    assert installed_name(__main__.parser().prog) == ""
    assert "--completion" not in __main__.parser().format_help()


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
    assert format_message("error", "no file", Terminal()) == "\x1b[1;31merror:\x1b[0m no file"
    assert format_message("warning", "few", Terminal()) == "\x1b[1;33mwarning:\x1b[0m few"
    assert format_message("error", "no file", io.StringIO()) == "error: no file"
    monkeypatch.setenv("NO_COLOR", "1")
    assert format_message("error", "no file", Terminal()) == "error: no file"
    monkeypatch.setenv("NO_COLOR", "")  # empty counts as not set
    monkeypatch.setenv("TERM", "dumb")
    assert format_message("error", "no file", Terminal()) == "error: no file"


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
    environment |= {"TERM": "xterm", "PYTHONPATH": str(ROOT)} | ({"NO_COLOR": "1"} if no_color else {})
    done = subprocess.run(
        [sys.executable, "-m", "sca_caption", "curves", "run", "--output", "a.gif"],
        stderr=theirs, env=environment, cwd=tmp_path,
    )  # fmt: skip
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.returncode == 2
    assert said.startswith("error: --output a.gif" if no_color else "\x1b[1;31merror:\x1b[0m --output a.gif")


# ---- how programs end ------------------------------------------------------------------------------------------------


def test_sigterm_ends_as_ctrl_c_does_with_its_own_status(capsys):
    cleaned = []

    @program
    def main(argv=None):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            cleaned.append(True)
            raise
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert (main(), capsys.readouterr()) == (143, ("", "terminated\n"))
    assert cleaned and signal.getsignal(signal.SIGTERM) is before


MISSING = (
    ModuleNotFoundError("No module named 'h5py'", name="h5py"),
    MemoryError(),
    PermissionError(13, "Permission denied", "private.h5"),
)


@pytest.mark.parametrize("error", MISSING, ids=type)
def test_what_the_machine_lacks_is_one_line(error, capsys, monkeypatch):
    def fails(*_):
        raise error

    message = error_line(program(fails)(), *capsys.readouterr())
    assert "h5py" in message or "memory" in message or "no permission to open private.h5" in message
    if isinstance(error, ImportError):
        monkeypatch.setattr(importlib, "import_module", fails)
        assert error_line(start("sca_caption.cli.train"), *capsys.readouterr()) == message


def test_an_import_error_of_this_package_is_not_hidden(capsys):
    @program
    def main(argv=None):
        from sca_caption import no_such_module  # noqa: F401

    with pytest.raises(ImportError):
        main()


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_closed_streams(closed, capsys, monkeypatch):
    """As after >&-, where Python has None. A file that is opened later must not become standard output."""

    @program
    def main(argv=None):
        assert sys.stdin.read() == "" or closed != "stdin"
        print("a dog")
        print("careful", file=sys.stderr)
        return 0

    monkeypatch.setattr(sys, "stdin", io.StringIO("some"))
    monkeypatch.setattr(sys, closed, None)
    status = main()
    out, err = capsys.readouterr()
    if closed == "stdout":
        assert status == 2 and err.startswith("error: standard output is closed") and err.count("\n") == 1
    else:
        assert (status, out, err) == (0, "a dog\n", "" if closed == "stderr" else "careful\n")


def test_a_program_without_standard_output(tmp_path):
    done = subprocess.run(
        f"exec {shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'evaluate.py'))} --help >&-",
        shell=True, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    error_line(done.returncode, "", done.stderr)


# ---- --quiet ---------------------------------------------------------------------------------------------------------

SMALL = "--backbone resnet18 --layers layer1.0 layer1.1 --attention-width 8 --embedding-size 8 --lstm-size 16"
WORK = {
    "preprocess": "--dataset shapes --count 40 --image-size 32 --workers 1",
    "train": f"--dataset shapes {SMALL} --epochs 1 --workers 0 --backbone-weights none --device cpu",
    "evaluate": "--dataset shapes --checkpoint runs/shapes/best.pt --device cpu",
}


@pytest.mark.slow
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
