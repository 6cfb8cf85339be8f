"""Binding the page to an address of this machine, and running it until Ctrl-C."""

import errno
import os
import socket
import sys
import threading
import webbrowser

import uvicorn
from starlette.applications import Starlette

from sca_caption.runtime.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any that is free. Raises UserError where it cannot."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 0 (any that is free) to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"--port {port}: in use on {host}; end what uses it or give another --port, 0 for any free one"
        elif error.errno == errno.EACCES:
            reason = f"--port {port}: not allowed here; give one of 1024 or more"
        else:
            reason = (
                f"--host {host}: no address of this machine ({error.strerror}); give 127.0.0.1 or 0.0.0.0"
            )
        raise UserError(reason) from error


def address(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Starlette, listening: socket.socket, open_browser: bool) -> None:
    """Serve until Ctrl-C."""
    print(f"serving on {address(listening)} (Ctrl-C ends it)", flush=True)
    if open_browser and has_display():
        threading.Thread(target=webbrowser.open, args=[address(listening)], daemon=True).start()
    try:
        server(app).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn has ended what was under way, and passes the signal on
        print(file=sys.stderr)  # after the terminal's ^C


def server(app: Starlette) -> uvicorn.Server:
    """A server that writes no log but of faults, and tells nobody what it is."""
    return uvicorn.Server(uvicorn.Config(
        app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, log_level="error",
        access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=5,
    ))  # fmt: skip


def has_display() -> bool:
    """Whether a browser would open a window here."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
