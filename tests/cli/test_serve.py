"""caption.py --serve as a command: what it takes, what it refuses, how it starts and ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sca_caption.cli import caption
from sca_caption.cli.serve import name_of
from sca_caption.serve import server
from tests.helpers.made_photos import encoded, error_line, photo
from tests.helpers.web_server import get, post

ROOT = Path(__file__).parents[2]


def test_mistakes_are_one_line(capsys):
    """Each names the flag, the value and the valid ones or what to do."""
    for arguments, parts in (
        (["--serve", "a.jpg"], ("--serve", "'a.jpg'")),
        (["--serve", "--output", "a.csv"], ("--serve", "--output")),
        (["--serve", "--sample"], ("--serve", "--sample")),
        (["--serve", "--demo"], ("--serve", "--demo")),
        (["--serve", "--batch-size", "3"], ("--serve", "--batch-size")),
        (["--port", "1234"], ("--port", "--serve")),
        (["--no-browser", "a.jpg"], ("--no-browser", "--serve")),
        (["--serve", "--beam-size", "0"], ("--beam-size 0", "at least 1")),
        (["--serve", "--port", "65536"], ("--port 65536", "65535")),
        (["--serve", "--host", "256.0.0.1"], ("--host 256.0.0.1",)),
        (["--serve", "--port", "0", "--checkpoint", "no.pt"], ("no.pt", "no such file")),
    ):
        status = caption.main(arguments)
        found = error_line(status, *capsys.readouterr())
        assert not [part for part in parts if part not in found], found


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert caption.main(["--serve", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --port {port}: in use on 127.0.0.1") and err.count("\n") == 1


def test_words_to_mention_are_looked_at_first(tiny_checkpoint, capsys):
    status = caption.main(
        ["--serve", "--port", "0", "--force-words", "dogs", "--checkpoint", str(tiny_checkpoint)]
    )
    assert status == 2
    assert capsys.readouterr().err.startswith(
        "error: --force-words 'dogs': not among the words that the model knows"
    )


def test_without_the_extra(monkeypatch, capsys):
    for name in [*sys.modules]:
        if name.startswith("sca_caption.serve"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("sca_caption.serve", raising=False)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert caption.main(["--serve"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --serve needs the package starlette")
    assert err.endswith(": pip install -e '.[web]'\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
def test_a_run_from_start_to_end(tiny_checkpoint, tmp_path):
    command = [sys.executable, "caption.py", "--serve", "--port", "0", "--no-browser", "--beam-size", "3",
               "--checkpoint", str(tiny_checkpoint)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as program:
        try:
            line = program.stdout.readline()
            assert line.startswith("serving on http://127.0.0.1:") and "Ctrl-C" in line
            url = line.split()[2]
            card = get(f"{url}/api/model").json()
            assert card["name"] == f"{tiny_checkpoint.parent.name}/best.pt"
            assert (card["defaults"]["beam_size"], card["defaults"]["num_captions"]) == (3, 3)
            assert len(post(url, encoded(photo(1))).json()["captions"]) == 3
            program.send_signal(signal.SIGINT)
            out, err = program.communicate(timeout=60)
        finally:
            program.kill()
    assert (program.returncode, out, err.strip()) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_where_a_browser_opens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert server.has_display()
    monkeypatch.delenv("DISPLAY")
    assert not server.has_display()


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_the_address_is_one_that_a_browser_can_open(host, shown):
    with server.listen(host, 0) as listening:
        assert server.browser_url(listening) == f"http://{shown}:{listening.getsockname()[1]}"


def test_a_page_for_others_comes_with_a_warning(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(server, "run", lambda *_: None)
    arguments = ["--serve", "--host", "0.0.0.0", "--port", "0", "--checkpoint", str(tiny_checkpoint)]
    assert caption.main(arguments) == 0
    wanted = "warning: --host 0.0.0.0: whoever can reach this machine can use the page, without a password\n"
    assert capsys.readouterr().err == wanted


def test_what_the_page_calls_a_model():
    assert name_of(None) == "the model that ships"
    assert name_of([Path("/home/me/runs/dogs/best.pt")]) == "dogs/best.pt"
