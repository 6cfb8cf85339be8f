"""The page and its API as an ASGI application. One thread captions; the request queue has a bounded length."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sca_caption.images import ImageError
from sca_caption.inference import confidence_scale
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError
from sca_caption.serve.answer import caption_image
from sca_caption.serve.guard import HEADERS, Guard
from sca_caption.serve.limits import Limits, RequestError
from sca_caption.serve.options import Options, read_options
from sca_caption.serve.schema import Answer, model_card, openapi
from sca_caption.serve.upload import read_form

PAGE_FOLDER = Path(__file__).with_name("page")
FILES = {
    "/": ("serve.html", "text/html"),
    "/serve.css": ("serve.css", "text/css"),
    "/serve.js": ("serve.js", "text/javascript"),
    "/result.js": ("result.js", "text/javascript"),
    "/attention.js": ("attention.js", "text/javascript"),
    "/camera.js": ("camera.js", "text/javascript"),
    "/confidence_scale.js": ("confidence_scale.js", "text/javascript"),
    "/confidence_scale.css": ("confidence_scale.css", "text/css"),
}
RETRY_AFTER = 5  # seconds


def create_app(
    pipeline: CaptionPipeline,
    *,
    name: str = "the model that ships",
    defaults: Options | None = None,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
) -> Starlette:
    """Create the application that captions with `pipeline`.

    Args:
        name: name of the model on the page.
        defaults: settings of requests that do not give them (default: those of `pipeline`).
        limits: limits of requests.
        host: address that the server will be bound to; requests for other hosts are refused.
    """
    limits = limits or Limits()
    defaults = defaults or Options(pipeline.search)
    card = model_card(name, pipeline, defaults, limits)
    queue = RequestQueue(limits.waiting)

    async def caption(request: Request) -> Response:
        with queue.slot():
            form = await read_form(request, limits)
            options = read_options(form.fields, defaults, limits)
            answer = await queue.run(
                request, lambda: caption_image(pipeline, form.data, form.name, options, limits)
            )
        return JSONResponse(answer.model_dump(mode="json"))

    def constant(content: dict) -> Callable[[Request], Response]:
        return lambda request: JSONResponse(content)

    async def file(request: Request) -> Response:
        name, media_type = FILES[request.scope["path"]]
        made = confidence_scale.files().get(name)
        return Response(made or (PAGE_FOLDER / name).read_bytes(), media_type=media_type)

    routes = [
        *(Route(path, file, methods=["GET"]) for path in FILES),
        Route("/api/caption", caption, methods=["POST"]),
        Route("/api/model", constant(card.model_dump(mode="json")), methods=["GET"]),
        Route("/openapi.json", constant(openapi(card)), methods=["GET"]),
    ]
    handlers = {
        RequestError: lambda request, error: error_response(error.status, error.reason),
        UserError: lambda request, error: error_response(422, str(error)),
        ImageError: lambda request, error: error_response(415, str(error)),
        HTTPException: lambda request, error: error_response(error.status_code, str(error.detail).lower()),
        ClientDisconnect: lambda request, error: error_response(
            400, "the client disconnected before the request was complete"
        ),
        Exception: lambda request, error: error_response(
            500, "internal error; the terminal of the server shows the details"
        ),
    }
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, host=host)])
    app.state.queue, app.state.limits = queue, limits
    return app


def error_response(status: int, reason: str) -> JSONResponse:
    """An error with the headers of `Guard`, which errors in it or before it do not get from it."""
    headers = {"Connection": "close"} if status in (408, 413) else {}  # the rest of the upload is not read
    headers |= {"Retry-After": str(RETRY_AFTER)} if status == 503 else {}
    return JSONResponse({"error": reason}, status, HEADERS | headers)


class RequestQueue:
    """One worker thread that processes requests in order, and `waiting` slots for requests in the queue.

    All methods must be called on the same event loop.
    """

    def __init__(self, waiting: int):
        self.capacity, self.occupied = 1 + waiting, 0
        self.executor = ThreadPoolExecutor(1, "captions")

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Occupy a slot while the request is read and processed, which bounds the memory for uploads.

        Raises RequestError if all slots are occupied.
        """
        if self.occupied >= self.capacity:
            raise RequestError(
                503, f"busy: {self.capacity} photographs are before yours; try again in {RETRY_AFTER} seconds"
            )
        self.occupied += 1
        try:
            yield
        finally:
            self.occupied -= 1

    async def run(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """Run `work` in the worker thread and return its result.

        Raises ClientDisconnect if the client disconnects first; work that is still in the queue is then not started.
        """
        job = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self.executor, work))
        gone = asyncio.ensure_future(wait_for_disconnect(request))
        try:
            first: set[asyncio.Future[Any]] = {job, gone}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                job.cancel()
                raise ClientDisconnect
            return job.result()
        finally:
            gone.cancel()


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
