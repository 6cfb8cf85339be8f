"""Malformed and half-sent requests to the page of caption.py --serve."""

import http.client
import random
import re
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from sca_caption.benchmarks import mutations
from sca_caption.benchmarks.programs import PHOTOGRAPHS, command, encoded_photographs, tracebacks

BOUNDARY = "----boundary"
LOG_BYTES = 1_000_000
PATHS = (
    "/",
    "/api/caption",
    "/api/model",
    "/openapi.json",
    "/../etc/passwd",
    "/%00",
    "//x",
    "*",
    "/" + "a" * 9000,
)
HOSTS = ("127.0.0.1", "localhost", "", "[", "evil.example", "a" * 5000, "127.0.0.1, b", "\xff")
ORIGINS = ("", "http://[", "null", "http://evil.example", "//", "http://127.0.0.1:x")
STARTED = 600  # seconds
OPEN = 200  # half-sent requests that are kept open


def form(data: bytes, draw: random.Random) -> bytes:
    """A form with a photograph and fields, some of which have odd values."""
    texts = []
    for name in ("beam_size", "num_captions", "force_words", "max_length", "attention", "x"):
        if not draw.randrange(4):
            value = draw.choice(("1", "0", "-1", "nan", "9" * 400, "\0", "dog", "\ud7ff", ""))
            texts.append((name, value))
    return multipart([data] * draw.choice((1, 1, 1, 1, 0, 2)), texts)


def multipart(photographs: list[bytes], texts: list[tuple[str, str]]) -> bytes:
    """A form of files and of texts (RFC 7578)."""
    name = "Content-Disposition: form-data; name="
    parts = [f'{name}"{key}"\r\n\r\n{value}'.encode() for key, value in texts]
    parts += [f'{name}"image"; filename="a.jpg"\r\n\r\n'.encode() + data for data in photographs]
    line = f"--{BOUNDARY}".encode()
    return b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--\r\n"


def request(photographs: list[bytes], draw: random.Random) -> bytes:
    """A request that may be malformed in its first line, its headers, its form or its photograph."""
    data = draw.choice(photographs)
    body = form(mutations.mutated_bytes(data, draw) if draw.randrange(2) else data, draw)
    if not draw.randrange(3):
        body = mutations.mutated_bytes(body, draw)
    length = draw.choice((len(body), len(body), len(body), 0, len(body) + 99, "-1", "x", "9" * 30))
    method = draw.choice(("POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "B\0D"))
    path = draw.choice(("/api/caption", "/api/caption", *PATHS))
    kinds = (
        f"multipart/form-data; boundary={BOUNDARY}",
        "multipart/form-data",
        "text/plain",
        "multipart/form-data; boundary=",
    )
    lines = [f"{method} {path} HTTP/1.1", f"Host: {draw.choice(('127.0.0.1', *HOSTS))}"]
    lines += [f"Content-Type: {draw.choice((kinds[0], *kinds))}", f"Content-Length: {length}"]
    if not draw.randrange(4):
        lines.append(f"Origin: {draw.choice(ORIGINS)}")
    if not draw.randrange(20):
        lines.append("Transfer-Encoding: chunked")
    if not draw.randrange(20):
        lines += [f"X-{number}: {'y' * 500}" for number in range(200)]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1", "replace")
    return (mutations.mutated_bytes(head, draw) if not draw.randrange(4) else head) + body


def answer(sent: socket.socket) -> str:
    """The status of a response, "" if the server closes without one, "none" if it does not answer."""
    ready, _, _ = select.select([sent], [], [], 120)
    if not ready:
        return "none"
    with suppress(OSError):
        found = re.match(rb"HTTP/1.\d (\d+)", sent.recv(100))
        return found[1].decode() if found else ""
    return ""


def requests(folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Send malformed and half-sent requests to a page: afterwards it still captions, and its log is short."""
    log, photographs = folder / "log.txt", [*encoded_photographs().values()]
    with open(log, "wb") as file:
        call = command("caption", "--serve", "--port", "0", "--no-browser", "--beam-size", "1")
        page = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=file, text=True)
        assert page.stdout
        address = re.search(r"http://\S+", page.stdout.readline())
    if not address:
        yield f"the page does not start: {log.read_text()[-500:]}"
        return
    host, port = urlsplit(address[0]).hostname or "", urlsplit(address[0]).port or 0
    statuses, kept = Counter[str](), list[socket.socket]()
    for number in range(count):
        data = request(photographs, draw)
        try:
            sent = socket.create_connection((host, port), timeout=60)
            if draw.randrange(3):
                sent.sendall(data)
                sent.shutdown(socket.SHUT_WR)
                statuses[answer(sent) or "closed"] += 1
                sent.close()
                continue
            sent.sendall(data[: draw.randrange(len(data))])
            statuses["half-sent"] += 1
            if draw.randrange(2):
                sent.close()
                continue
            kept.append(sent)
            if len(kept) > OPEN:
                kept.pop(0).close()
        except (ConnectionError, TimeoutError) as error:
            statuses[type(error).__name__] += 1
        if page.poll() is not None:
            yield f"the page ended with status {page.returncode} after {number + 1} requests"
            break
    print(f"{count} requests: " + ", ".join(f"{n} {name}" for name, n in statuses.most_common()))
    for status in sorted(statuses):
        if status in ("none", "TimeoutError") or (status.isdigit() and status >= "500" and status != "503"):
            yield f"{statuses[status]} responses: {status}"
    if page.poll() is None:
        yield from still_answers(host, port)
    page.send_signal(signal.SIGTERM)
    if page.wait(60) != 143:
        yield f"the page ended with status {page.returncode} at SIGTERM"
    for each in kept:
        each.close()
    yield from tracebacks(log.read_text(errors="replace"))
    if log.stat().st_size > LOG_BYTES:
        yield f"its log has {log.stat().st_size / 1e6:.0f} MB"


def still_answers(host: str, port: int) -> Iterator[str]:
    """Ask for the page and for a caption, as a browser does."""
    body = multipart([(PHOTOGRAPHS / "kitten.jpg").read_bytes()], [])
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    for method, path, data in (("GET", "/", None), ("POST", "/api/caption", body)):
        began = time.monotonic()
        connection = http.client.HTTPConnection(host, port, timeout=120)
        try:
            connection.request(method, path, data, kind if data else {})
            response = connection.getresponse()
            found = response.read()
        except OSError as error:
            yield f"{method} {path} afterwards: {error!r}"
            continue
        finally:
            connection.close()
        if response.status != 200:
            yield f"{method} {path} afterwards: {response.status} {found[:200]!r}"
        print(f"{method} {path} afterwards: {response.status} after {time.monotonic() - began:.1f} s")
