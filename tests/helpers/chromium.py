"""Pages in headless Chromium. Tests with `needs_browser` are skipped if no browser is installed."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page


NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (  # --disable-...: no requests of the browser's own
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def why_no_browser() -> str:
    """The reason why no page can be opened here, or ""."""
    if not any(map(shutil.which, NAMES)):
        return f"needs a browser, and none of {', '.join(NAMES)} is installed"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "needs the package playwright to drive the browser"
    return ""


needs_browser = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser() or "-")


@contextmanager
def browser_page(width: int = 1200, height: int = 800) -> Iterator["Page"]:
    """A new page in a new browser, width x height pixels. `page.messages` collects the errors of its console."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.messages = []
            page.on("console", lambda m: page.messages.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: page.messages.append(str(error)))
            page.set_default_timeout(60_000)
            yield page
        finally:
            browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; the value is the address."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
