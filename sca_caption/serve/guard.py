"""Protection against web pages of other sites that are open in the same browser.

A page of any site can make the browser send requests to 127.0.0.1 (cross-site request forgery). If it changes the
address of its own host name, it can even read the responses (DNS rebinding). The Origin header reveals the first, the
Host header the second.
"""

import asyncio
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
ENDING = "the server ends; start it again"


class Guard:
    """ASGI middleware that refuses requests for other hosts and from pages of other sites.

    It adds security headers to all responses.

    Args:
        host: address that the server is bound to.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app, self.host_names = app, host_names(host)
        self.accepts_any_address = not is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                started = True
            await send(message)

        headers = Headers(scope=scope)
        app = self.app
        if not self.is_own_host(headers.get("host", "")):
            reason = f"the request is for another host, {headers.get('host', '')[:80]!r}; use the address of this server"
            app = JSONResponse({"error": reason}, 400)
        elif scope["method"] not in ("GET", "HEAD") and is_cross_site(headers):
            app = JSONResponse({"error": "sent by a page of another site; use the page of this server"}, 403)
        try:
            await app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server ends, and has waited for this response long enough
            if started:
                raise
            await JSONResponse({"error": ENDING}, 503)(scope, receive, send_with_headers)

    def is_own_host(self, host: str) -> bool:
        """Whether a Host header names this server. The port is not compared, because a tunnel may have another."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        # DNS can map another site's name to this machine. An address in the Host header excludes that.
        return name in self.host_names or is_loopback(name) or (self.accepts_any_address and is_address(name))


def host_names(host: str) -> set[str]:
    """Host names of a server that is bound to `host`."""
    machine = socket.gethostname().lower()
    return {host.lower(), "localhost"} | (set() if is_loopback(host) else {machine, f"{machine}.local"})


def is_cross_site(headers: Headers) -> bool:
    """Whether the browser marked a request as sent by another site. Programs other than browsers send no such headers."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return True
    try:
        return "origin" in headers and urlsplit(headers["origin"]).netloc != headers["host"]
    except ValueError:  # no browser sends such an origin
        return True


def is_loopback(name: str) -> bool:
    return name == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
