"""The exported browser page in headless Chromium, compared with onnxruntime on one thread.

The page is served from a folder on this machine and opened in a new browser, once as it is and once where service workers
are blocked, which leaves it one thread. The first caption is timed from opening the address, with everything that is
loaded; the next captions from handing over a photograph until its caption is shown. onnxruntime does the same work, from
the file to the caption. Turns alternate photograph by photograph; ratios are medians over photographs.
"""

import functools
import http.server
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sca_caption import checkpoint, images
from sca_caption.cli.parser import Parser, program
from sca_caption.config import SearchConfig
from sca_caption.export.browser_site import MODEL
from sca_caption.export.model_json import DTYPES
from sca_caption.export.onnx_captioner import load_pipeline
from sca_caption.export.onnx_folder import export
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError

CAPTIONS = 3  # per photograph, as the page shows
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (  # --disable-...: no requests of the browser's own
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
THREADS = """async () => {
  const { threadCount } = await import("/threads.js");
  return threadCount(crossOriginIsolated, navigator.hardwareConcurrency);
}"""
WAYS = {"page": "allow", "page, one thread": "block"}  # service workers
EPILOG = """\
examples:
  python -m sca_caption.benchmarks.browser node_modules/onnxruntime-web photos/
  python -m sca_caption.benchmarks.browser node_modules/onnxruntime-web photos/ --dtype int8
"""


def parser() -> Parser:
    p = Parser(prog="python -m sca_caption.benchmarks.browser", description=__doc__, epilog=EPILOG)
    p.add_argument("runtime", type=Path, metavar="DIR", help="npm's folder of onnxruntime-web")
    p.add_argument("photographs", nargs="+", metavar="PHOTO", help="files, or folders of them; two or more")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="(default: the model that ships)")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    p.add_argument("--limit", type=int, default=20, metavar="N", help="photographs (default: %(default)s)")
    return p


@program
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    why = why_no_browser()
    if why:
        raise UserError(why)
    paths = images.find_images(arguments.photographs)[: arguments.limit]
    if len(paths) < 2:
        raise UserError(f"{len(paths)} photographs; give at least two, for the first and the next caption")
    given = checkpoint.load(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        site = Path(scratch, "site")
        dtypes = [dtype for dtype in DTYPES if dtype in ("float32", arguments.dtype)]
        export(site, given, arguments.checkpoint, dtypes, arguments.runtime)
        search = SearchConfig(num_captions=CAPTIONS)
        native = load_pipeline(site / MODEL, dtype=arguments.dtype, threads=1, search=search)
        address = f"{stack.enter_context(served(site))}/?dtype={arguments.dtype}"
        measured(address, native, paths, stack)
    return 0


def measured(address: str, native: CaptionPipeline, paths: list[Path], stack: ExitStack) -> None:
    """Print the table of times."""
    pages: dict[str, Any] = {}
    first: dict[str, float] = {}
    browser = stack.enter_context(opened_browser())
    for name, service_workers in WAYS.items():
        pages[name] = page = browser.new_page(service_workers=service_workers)
        page.set_default_timeout(600_000)
        began = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("body.ready")
        give(page, paths[0], 1)
        first[name] = time.perf_counter() - began
    seconds: dict[str, list[float]] = {name: [] for name in (*pages, "onnxruntime")}
    for number, path in enumerate(paths[1:], 2):
        for name, page in pages.items():
            began = time.perf_counter()
            give(page, path, number)
            seconds[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        [*native.stream([path])]
        seconds["onnxruntime"].append(time.perf_counter() - began)
    reference = seconds["onnxruntime"]
    print("| | threads | first caption, s | next captions, ms | times onnxruntime's |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, times in seconds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(times, reference, strict=True))
        threads, since_opening = "1", "-"
        if name in pages:
            threads, since_opening = str(pages[name].evaluate(THREADS)), f"{first[name]:.1f}"
        print(
            f"| {name} | {threads} | {since_opening} | {1000 * statistics.median(times):.0f} | {ratio:.2f} |"
        )


def give(page: Any, path: Path, number: int) -> None:
    """Hand a photograph to the page and wait until it is the `number`th with a caption."""
    page.set_input_files("#files", path)
    page.wait_for_selector(f"#count:text-is('{number} captioned')")


def why_no_browser() -> str:
    """The reason why no page can be opened here, or ""."""
    if not any(map(shutil.which, BROWSERS)):
        return f"needs a browser, and none of {', '.join(BROWSERS)} is installed; install Chromium"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "needs playwright to drive the browser; pip install playwright"
    return ""


@contextmanager
def opened_browser(*arguments: str) -> Iterator[Any]:
    """A new headless browser of playwright, with further command-line arguments."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; the value is the address."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
