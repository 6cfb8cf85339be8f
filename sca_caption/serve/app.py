"""The page and the API as an ASGI application: one thread captions, a bounded number of requests waits for it."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sca_caption.images import ImageError
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError
from sca_caption.serve.answer import answer
from sca_caption.serve.guard import Guard
from sca_caption.serve.limits import Limits, Refusal
from sca_caption.serve.options import Options, read_options
from sca_caption.serve.schema import Answer, model_card, openapi
from sca_caption.serve.upload import read_form

PAGES = Path(__file__).with_name("page")
FILES = {
    "/": ("serve.html", "text/html"),
    "/serve.css": ("serve.css", "text/css"),
    "/serve.js": ("serve.js", "text/javascript"),
    "/result.js": ("result.js", "text/javascript"),
    "/attention.js": ("attention.js", "text/javascript"),
    "/camera.js": ("camera.js", "text/javascript"),
}
RETRY = 5  # seconds


def create_app(
    pipeline: CaptionPipeline,
    *,
    name: str = "the model that ships",
    defaults: Options | None = None,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
) -> Starlette:
    """The application that captions with `pipeline`.

    Args:
        name: what the page calls the model. defaults: settings of requests that give none (default: those of
        `pipeline`). host: the address that it will be bound to; requests for others are refused.
    """
    limits = limits or Limits()
    defaults = defaults or Options(pipeline.search)
    card = model_card(name, pipeline, defaults, limits)
    desk = Desk(limits.waiting)

    async def caption(request: Request) -> Response:
        with desk.place():
            form = await read_form(request, limits)
            options = read_options(form.fields, defaults, limits)
            found = await desk.run(request, lambda: answer(pipeline, form.data, form.name, options, limits))
        return JSONResponse(found.model_dump(mode="json"))

    def always(content: dict) -> Callable[[Request], Response]:
        return lambda request: JSONResponse(content)

    async def file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response((PAGES / name).read_bytes(), media_type=kind)

    routes = [
        *(Route(path, file, methods=["GET"]) for path in FILES),
        Route("/api/caption", caption, methods=["POST"]),
        Route("/api/model", always(card.model_dump(mode="json")), methods=["GET"]),
        Route("/openapi.json", always(openapi(card)), methods=["GET"]),
    ]
    failures = {
        Refusal: lambda request, error: failed(error.status, error.reason),
        UserError: lambda request, error: failed(422, str(error)),
        ImageError: lambda request, error: failed(415, str(error)),
        HTTPException: lambda request, error: failed(error.status_code, str(error.detail).lower()),
        ClientDisconnect: lambda request, error: failed(400, "left before all was sent"),
        Exception: lambda request, error: failed(
            500, "a fault of the program; the server's terminal says more"
        ),
    }
    app = Starlette(routes=routes, exception_handlers=failures, middleware=[Middleware(Guard, host=host)])
    app.state.desk = desk
    return app


def failed(status: int, reason: str) -> JSONResponse:
    headers = {"Connection": "close"} if status in (408, 413) else {}
    headers |= {"Retry-After": str(RETRY)} if status == 503 else {}
    return JSONResponse({"error": reason}, status, headers)


class Desk:
    """One thread that works, one request after another, and places for those that wait. Used on one event loop."""

    def __init__(self, waiting: int):
        self.most, self.taken = 1 + waiting, 0
        self.thread = ThreadPoolExecutor(1, "captions")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place from before an upload is read, so that memory is bounded. Raises Refusal where none is free."""
        if self.taken >= self.most:
            raise Refusal(
                503, f"busy: {self.most} photographs are before yours; try again in {RETRY} seconds"
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """Have `work` done in its turn. What nobody waits for any more is not begun: then raises ClientDisconnect."""
        job = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self.thread, work))
        gone = asyncio.ensure_future(left(request))
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                job.cancel()
                raise ClientDisconnect
            return job.result()
        finally:
            gone.cancel()


async def left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
