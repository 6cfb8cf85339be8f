"""Pages in headless Chromium. Tests with `needs_browser` are skipped if no browser is installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sca_caption.benchmarks.browser import opened_browser, why_no_browser

if TYPE_CHECKING:
    from playwright.sync_api import Page


CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")  # simulated on the processor
needs_browser = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser() or "-")


@contextmanager
def browser_page(width: int = 1200, height: int = 800) -> Iterator["Page"]:
    """A new page in a new browser, width x height pixels. `page.messages` collects the errors of its console."""
    with opened_browser(*CAMERA, *GPU) as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.messages = []
        page.on("console", lambda m: page.messages.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.set_default_timeout(60_000)
        yield page
