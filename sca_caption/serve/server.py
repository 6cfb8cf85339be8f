"""Binds the page to an address of this machine and serves it until Ctrl-C."""

import dataclasses
import errno
import logging
import os
import socket
import sys
import threading
import time
import webbrowser
from functools import partial

import uvicorn
from starlette.applications import Starlette

from sca_caption.runtime.errors import Terminated, UserError, format_message
from sca_caption.serve.connections import BoundedConnection

LOG_SECONDS, LOG_RECORDS = (
    60.0,
    10,
)  # of errors on the terminal, which clients can cause as often as they like


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 means any free port. Raises UserError if the address cannot be bound."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 0 (any free port) to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"--port {port}: in use on {host}; stop that program or choose another port (0: any free port)"
        elif error.errno == errno.EACCES:
            reason = f"--port {port}: not permitted; choose a port of 1024 or more"
        else:
            reason = (
                f"--host {host}: not an address of this machine ({error.strerror}); use 127.0.0.1 or 0.0.0.0"
            )
        raise UserError(reason) from error


def browser_url(listening: socket.socket) -> str:
    """URL under which a browser on this machine reaches the server."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Starlette, listening: socket.socket, open_browser: bool) -> None:
    """Serve until Ctrl-C. `open_browser`: open the page if this machine has a display."""
    print(f"serving on {browser_url(listening)} (press Ctrl-C to stop)", flush=True)
    if open_browser and has_display():
        threading.Thread(target=webbrowser.open, args=[browser_url(listening)], daemon=True).start()
    try:
        make_server(app).run(sockets=[listening])
    except Terminated:
        raise
    except KeyboardInterrupt:  # uvicorn has shut down and passes the signal on
        print(file=sys.stderr)  # ends the line on which the terminal shows ^C


def make_server(app: Starlette) -> uvicorn.Server:
    """Create a server within `app.state.limits` that logs errors only and sends no Server header."""
    connections = connection_limit(app.state.limits.connections)
    limits = dataclasses.replace(app.state.limits, connections=connections)
    # The client is told what python_multipart logs.
    levels = {"uvicorn": "ERROR", "asyncio": "ERROR", "python_multipart": "CRITICAL"}
    log_config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"terminal": {"()": Terminal}},
        "loggers": {
            name: {"handlers": ["terminal"], "level": level, "propagate": False}
            for name, level in levels.items()
        },
    }
    return uvicorn.Server(uvicorn.Config(
        app, loop="asyncio", ws="none", lifespan="off",
        http=partial(BoundedConnection, limits=limits),  # type: ignore[arg-type]  # the class, with its last argument
        log_config=log_config, access_log=False, server_header=False, proxy_headers=False,
        # asyncio accepts as many in each turn of its loop, of which four pass until one too many is closed.
        backlog=max(1, connections // 4),
        timeout_graceful_shutdown=5,
    ))  # fmt: skip


def connection_limit(wanted: int) -> int:
    """Connections that, with as many that wait to be closed, leave the process half of the files that it may open."""
    try:
        import resource
    except ImportError:  # Windows
        return wanted
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files // 4))


class Terminal(logging.Handler):
    """Prints LOG_RECORDS errors in LOG_SECONDS on standard error, and then that there are more."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.count = -LOG_SECONDS, 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self.start + LOG_SECONDS:
            self.start, self.count = now, 0
        self.count += 1
        if self.count <= LOG_RECORDS:
            print(format_message("error", self.format(record), sys.stderr), file=sys.stderr)
        elif self.count == LOG_RECORDS + 1:
            print(f"further errors are not shown for {LOG_SECONDS:g} seconds", file=sys.stderr)


def has_display() -> bool:
    """Whether a browser can open a window on this machine."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
