"""The page of caption.py --serve on a free port of this machine, for the time of a test."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
from starlette.applications import Starlette

from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.serve.app import create_app
from sca_caption.serve.server import browser_url, listen, make_server


def serving(pipeline: CaptionPipeline, **options) -> AbstractContextManager[str]:
    """The address at which `create_app(pipeline, **options)` answers meanwhile."""
    return running(create_app(pipeline, **options))


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """The address at which an application answers meanwhile. `app.state.server` is uvicorn's server."""
    listening = listen("127.0.0.1", 0)
    instance = app.state.server = make_server(app)
    thread = threading.Thread(target=instance.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not instance.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield browser_url(listening)
    finally:
        instance.should_exit = True
        thread.join()


def post(url: str, image: Path | bytes | None, headers: dict | None = None, **fields) -> httpx.Response:
    """Send a photograph with fields of the form."""
    data = image.read_bytes() if isinstance(image, Path) else image
    name = image.name if isinstance(image, Path) else "a.png"
    files = {name: (None, str(value)) for name, value in fields.items()}
    files |= {"image": (name, data)} if data is not None else {}
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.post(f"{url}/api/caption", files=files, headers=headers)


def get(url: str, **options) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.get(url, **options)


def until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


class SlowPipeline(CaptionPipeline):
    """Signals when it begins with a photograph, and continues when it is allowed to."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.signals = SimpleNamespace(begun=threading.Semaphore(0), may=threading.Semaphore(0), count=0)

    def trace_batch(self, batch):
        self.signals.count += 1
        self.signals.begun.release()
        assert self.signals.may.acquire(timeout=60)
        return super().trace_batch(batch)
