"""Who may ask: this machine's own page and programs, not another site's page in the same browser.

A web page of any site can make its reader's browser send requests to 127.0.0.1, and can, by changing what its own name
stands for (DNS rebinding), even read the answers. The first is known by the Origin header, the second by Host.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Guard:
    """Answers requests that name another server, or come from another site's page, itself; marks all answers.

    Args:
        host: the address that the server is bound to.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app, self.names = app, names_of(host)
        self.any_address = not is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        answer = self.app
        if not self.is_ours(headers.get("host", "")):
            reason = f"asked for the server {headers.get('host', '')[:80]!r}, which this is not; use its own address"
            answer = JSONResponse({"error": reason}, 400)
        elif scope["method"] not in ("GET", "HEAD") and is_foreign(headers):
            answer = JSONResponse({"error": "sent by the page of another site; use this server's own"}, 403)
        await answer(scope, receive, marked)

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. The port may be another: that of a tunnel."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        # A name that stands for an address can be made to stand for another; an address cannot.
        return name in self.names or is_loopback(name) or (self.any_address and is_address(name))


def names_of(host: str) -> set[str]:
    """What a server that is bound to `host` is called."""
    machine = socket.gethostname().lower()
    return {host.lower(), "localhost"} | (set() if is_loopback(host) else {machine, f"{machine}.local"})


def is_foreign(headers: Headers) -> bool:
    """Whether a browser says that a request comes from another site; programs say nothing of it."""
    origin = headers.get("origin")
    return headers.get("sec-fetch-site") in ("cross-site", "same-site") or (
        origin is not None and urlsplit(origin).netloc != headers["host"]
    )


def is_loopback(name: str) -> bool:
    return name == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
