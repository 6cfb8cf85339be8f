"""python -m sca_caption: the table of commands, and which of them runs."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sca_caption.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_the_list_of_commands_loads_no_torch():
    code = "import sys, runpy\ntry: runpy.run_module('sca_caption', run_name='__main__')\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    page, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    assert done.returncode == 0 and all(f"  {name} " in page for name in COMMANDS)
    assert not {"torch", "numpy", "PIL", "sca_caption.config"} & set(modules.split())


def test_no_command_prints_the_list(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "usage: python -m sca_caption COMMAND" in out + err and all(name in out + err for name in COMMANDS)


def test_a_wrong_command_lists_the_valid_ones(capsys):
    assert main(["exprot", "--output", "model"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "'exprot'" in err and all(name in err for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_take_what_follows_and_call_themselves_by_their_name(name, monkeypatch, capsys):
    module = importlib.import_module(COMMANDS[name][0])
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and f"usage: python -m sca_caption {name} " in capsys.readouterr().out
    monkeypatch.setattr(module, "main", lambda argv: len(argv))
    assert main([name, "a", "--b", "c"]) == 3
