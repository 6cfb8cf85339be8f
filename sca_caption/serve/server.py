"""Binds the page to an address of this machine and serves it until Ctrl-C."""

import errno
import os
import socket
import sys
import threading
import webbrowser

import uvicorn
from starlette.applications import Starlette

from sca_caption.runtime.errors import Terminated, UserError


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
    """Create a server that logs errors only and sends no Server header."""
    return uvicorn.Server(uvicorn.Config(
        app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, log_level="error",
        access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=5,
    ))  # fmt: skip


def has_display() -> bool:
    """Whether a browser can open a window on this machine."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
