"""Connections of caption.py --serve: clients that wait, trickle, flood or send nonsense do not keep it from others."""

import itertools
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.serve import app as app_module
from sca_caption.serve import connections, server
from sca_caption.serve.app import create_app
from sca_caption.serve.guard import HEADERS
from sca_caption.serve.limits import Limits
from tests.helpers.web_server import SlowPipeline, get, post, running, until

ROOT = Path(__file__).parents[2]
HEAD = b"GET /api/model HTTP/1.1\r\nHost: 127.0.0.1\r\n"
FORM = b"POST /api/caption HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
SECONDS = 0.3  # of limits that the tests wait for


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return CaptionPipeline.load(tiny_checkpoint)


def connect(url: str, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=60)
    connection.sendall(data)
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionError:  # closed before it has read everything
        pass
    connection.close()
    return received


def trickle(connection: socket.socket) -> bytes:
    """Send a byte now and then until the server closes the connection. Returns what came."""
    connection.settimeout(SECONDS / 4)
    received = b""
    for _ in range(1000):
        try:
            connection.sendall(b"x")
            data = connection.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionError:
            return received
        if not data:
            return received
        received += data
    raise AssertionError("open after a thousand bytes")


def error_of(response: bytes) -> tuple[int, str]:
    """Status and message of an error response, which has the security headers and closes the connection."""
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= headers.items()
    assert headers["connection"] == "close"
    return int(status.split()[1]), json.loads(body)["error"]


def test_requests_whose_head_does_not_come_are_closed_while_others_are_served(pipeline):
    with running(create_app(pipeline, limits=Limits(head_seconds=SECONDS))) as url:
        silent, half, slow = connect(url), connect(url, HEAD), connect(url, HEAD + b"X: ")
        assert get(f"{url}/api/model").status_code == 200
        assert error_of(trickle(slow))[0] == 408
        assert error_of(rest(half))[0] == 408
        assert rest(silent) == b""  # of a browser, which opens connections in advance
        kept = connect(url, HEAD + b"\r\n")
        assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
        trickle(kept)


def test_bodies_that_do_not_come_are_closed(pipeline, monkeypatch):
    """The application reads the form, and ends it itself; nobody reads the body of a request that is refused."""
    monkeypatch.setattr(connections, "AFTER_UPLOAD", SECONDS)
    with running(create_app(pipeline, limits=Limits(upload_seconds=SECONDS))) as url:
        read = connect(url, FORM + b"Content-Length: 1000\r\n\r\n" + PART)
        unread = connect(url, HEAD + b"Content-Length: 1000\r\n\r\n")
        assert error_of(trickle(read))[0] == 408
        assert trickle(unread).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_take_its_response(monkeypatch):
    size = 50_000_000  # more than the buffers of the system hold
    app = Starlette(routes=[Route("/", lambda request: Response(bytes(size)))])
    app.state.limits = Limits(response_seconds=SECONDS)
    with running(app) as url:
        connection = connect(url, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(8) == b"HTTP/1.1"
        until(lambda: not app.state.server.server_state.connections)
        assert len(rest(connection)) < size


def test_a_connection_too_many_ends_the_one_that_waits_longest(pipeline):
    app = create_app(pipeline, limits=Limits(connections=3, head_seconds=60))
    with running(app) as url:
        half = [connect(url, HEAD) for _ in range(3)]
        until(lambda: len(app.state.server.server_state.connections) == 3)
        half.append(connect(url, HEAD))
        status, reason = error_of(rest(half.pop(0)))
        assert status == 503 and "too many connections" in reason
        for each in half:  # the others are still answered
            each.sendall(b"Connection: close\r\n\r\n")
            assert rest(each).startswith(b"HTTP/1.1 200")


def test_a_connection_too_many_is_refused_while_all_others_are_processed(tiny_checkpoint, photos):
    slow = SlowPipeline.load(tiny_checkpoint)
    app = create_app(slow, limits=Limits(connections=2, waiting=5))
    with running(app) as url, ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(post, url, path) for path in photos[:2]]
        until(lambda: app.state.queue.occupied == 2)
        assert error_of(rest(connect(url)))[0] == 503
        slow.signals.may.release(2)
        assert [answer.result().status_code for answer in answers] == [200, 200]


def test_a_flood_is_bounded_and_others_are_served(pipeline):
    app = create_app(pipeline, limits=Limits(connections=20, head_seconds=60))
    with running(app) as url:
        flood = [connect(url, HEAD) for _ in range(80)]
        assert get(f"{url}/api/model").status_code == 200
        until(lambda: len(app.state.server.server_state.connections) <= 20)
        for each in flood:
            each.close()


def test_a_server_that_ends_answers_those_who_wait(tiny_checkpoint, photos, capfd):
    """Half an upload is refused at once, and a photograph when the time that the server waits is over."""
    slow = SlowPipeline.load(tiny_checkpoint)
    app = create_app(slow)
    with ThreadPoolExecutor(1) as threads:
        with running(app) as url:
            half = connect(url, FORM + b"Content-Length: 999\r\n\r\n" + PART)
            answer = threads.submit(post, url, photos[0])
            slow.signals.begun.acquire()
            app.state.server.config.timeout_graceful_shutdown = SECONDS
        assert error_of(rest(half))[0] == 503
        assert answer.result().status_code == 503
    slow.signals.may.release()
    assert "Traceback" not in capfd.readouterr().err


NASTY = (b"", b" ", b"http://[", b"http://[::1", b"//\xe2\x84\x80", b"\xff\xfe", b"a" * 5000, b"http://a@b:c/?#[]",
         b"%00", b"127.0.0.1/x", b"127.0.0.1?x", b"127.0.0.1:99999", b"[::1%25x]:1", b"[v1.x]", b"-1", b"1e9",
         b"chunked, gzip", b"()",
         b"multipart/form-data", b"multipart/form-data; boundary=\xff",
         b"multipart/form-data; boundary*=x''%ff", b'"',
         b"multipart/form-data; boundary=" + b"a" * 300, b"100-continue", b"websocket", b"h2c", b";=,;q=x")  # fmt: skip
NAMES = (b"Origin", b"Host", b"Content-Type", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Connection",
         b"Upgrade",
         b"Sec-Fetch-Site", b"Range", b"If-None-Match", b"Accept", b"Cookie", b"Content-Encoding",
         b"X-Forwarded-For")  # fmt: skip


@pytest.mark.slow
def test_no_header_makes_the_server_fail(pipeline, capfd):
    """Every value of every header, alone and with others, for a page and for the form."""
    generator = random.Random(0)
    single = [[pair] for pair in itertools.product(NAMES, NASTY)]
    several = [[(generator.choice(NAMES), generator.choice(NASTY)) for _ in range(3)] for _ in range(50)]
    with running(create_app(pipeline, limits=Limits(upload_seconds=SECONDS))) as url:
        for pairs, start in zip(single + several, itertools.cycle((b"GET / ", b"POST /api/caption "))):
            found = {b"Host": b"127.0.0.1", b"Content-Type": b"multipart/form-data; boundary=x",
                     b"Content-Length": b"5"} | dict(pairs)  # fmt: skip
            lines = b"".join(b"%b: %b\r\n" % each for each in found.items())
            with connect(url, start + b"HTTP/1.1\r\n" + lines + b"\r\n--x--") as connection:
                head = connection.recv(1 << 16)
                if head.startswith(b"HTTP/1.1 100"):
                    head = head.partition(b"\r\n\r\n")[2] or connection.recv(1 << 16)
            assert re.match(rb"HTTP/1.1 [234]\d\d ", head), (pairs, head)
            assert all(b"\r\n%b: " % name.lower().encode() in head.lower() for name in HEADERS), (pairs, head)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "nonsense",
    [b"\x16\x03\x01\x00\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", HEAD + b"A: " + b"a" * 99_000,
     HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", FORM + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_answered_with_the_security_headers(pipeline, nonsense, capfd):
    with running(create_app(pipeline)) as url:
        assert error_of(rest(connect(url, nonsense)))[0] == 400
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("head", [b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Content-Length: 9\r\n\r\nz"])
def test_errors_that_answer_head_have_no_body(pipeline, head, monkeypatch, capfd):
    monkeypatch.setattr(connections, "AFTER_UPLOAD", SECONDS)
    limits = Limits(upload_seconds=0)
    with running(create_app(pipeline, limits=limits)) as url:
        response = rest(connect(url, HEAD.replace(b"GET /api/model", b"HEAD /api/caption") + head))
    assert response.startswith(b"HTTP/1.1 4") and response.endswith(b"\r\n\r\n")
    assert capfd.readouterr().err == ""


def test_nonsense_after_a_response_is_no_error_of_the_server(pipeline, capfd):
    with running(create_app(pipeline)) as url:
        connection = connect(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"zz\r\n")
        rest(connection)
    assert capfd.readouterr().err == ""


def test_errors_have_the_security_headers(pipeline, photos, monkeypatch, capfd):
    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(app_module, "caption_image", fails)
    with running(create_app(pipeline, limits=Limits(upload_bytes=20_000))) as url:
        responses = [
            post(url, photos[0]),
            post(url, photos[0], headers={"Origin": "http://["}),
            post(url, photos[0], headers={"Host": "evil.example"}),
            post(url, photos[0], beam_size=0),
            post(url, bytes(30_000)),
            post(url, None),
            get(f"{url}/nothing"),
            get(f"{url}/api/caption"),
        ]
    assert [each.status_code for each in responses] == [500, 403, 400, 422, 413, 415, 404, 405]
    for each in responses:
        assert all(each.headers.get_list(name) == [value] for name, value in HEADERS.items())
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_errors_on_the_terminal_cannot_flood_it(monkeypatch, capsys):
    app = Starlette()
    app.state.limits = Limits()
    server.make_server(app)
    now = 0.0
    monkeypatch.setattr(server.time, "monotonic", lambda: now)
    for _ in range(1000):  # as asyncio does if no descriptor is left
        logging.getLogger("asyncio").error("accept() out of system resource")
    assert capsys.readouterr().err.count("\n") == server.LOG_RECORDS + 1
    now = server.LOG_SECONDS
    logging.getLogger("uvicorn.error").error("another")
    assert capsys.readouterr().err == "error: another\n"


def test_connections_leave_half_of_the_descriptors(monkeypatch):
    resource = pytest.importorskip("resource")
    for files, wanted, limit in ((1024, 100, 100), (256, 100, 64), (40, 100, 10), (3, 100, 1), (1024, 5, 5)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, files=files: (files, files))
        assert server.connection_limit(wanted) == limit
        app = SimpleNamespace(state=SimpleNamespace(limits=Limits(connections=wanted)))
        assert server.make_server(app).config.backlog == max(1, limit // 4)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert server.connection_limit(100) == 100


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs ulimit")
def test_a_flood_beyond_the_descriptors_of_the_program(tiny_checkpoint):
    command = ["bash", "-c", 'ulimit -n 120 && exec "$@"', "bash", sys.executable, "caption.py", "--serve", "--port", "0",
               "--no-browser", "--checkpoint", str(tiny_checkpoint)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as program:
        try:
            url = program.stdout.readline().split()[2]
            flood = [connect(url, HEAD) for _ in range(150)]
            for _ in range(5):
                assert get(f"{url}/api/model").status_code == 200
                time.sleep(SECONDS)
            for each in flood:
                each.close()
            program.send_signal(signal.SIGINT)
            _, err = program.communicate(timeout=60)
        finally:
            program.kill()
    assert (program.returncode, err.strip()) == (0, "")
