"""Bounds of TCP connections that uvicorn lacks: their number, and the time to send a request or take a response.

Without them, clients that send half a request and wait would keep connections open until no descriptor is left.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from sca_caption.serve.app import error_response
from sca_caption.serve.guard import ENDING
from sca_caption.serve.limits import Limits

AFTER_UPLOAD = 5.0  # seconds; the application answers a slow upload itself, before its connection is closed


class BoundedConnection(H11Protocol):
    """One connection of uvicorn's server, within `app.state.limits`.

    Uvicorn's own timer ends a connection that is kept alive and sends nothing.
    """

    def __init__(self, *arguments: Any, limits: Limits, **options: Any):
        super().__init__(*arguments, **options)
        self.limits = limits
        self.opened = 0.0
        # What h11 expects of the client: IDLE, the head of a request; SEND_BODY, its body.
        self.receiving: Any = None
        self.receive_timer: asyncio.TimerHandle | None = None
        self.send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so pause_writing is called while any byte is not taken
        self.opened = self.loop.time()
        self.watch()
        if len(self.connections) > self.limits.connections:
            # A client that sends its request at once is not among them for long, unlike one that waits.
            open_ = [each for each in self.connections if isinstance(each, BoundedConnection)]
            waiting = [each for each in open_ if each.waits_for_client()]
            oldest = min(waiting, key=lambda each: each.opened, default=self)
            oldest.refuse(503, "too many connections; try again")

    def waits_for_client(self) -> bool:
        """Whether the connection has neither a request that is being processed nor a response on its way."""
        processing = self.cycle is not None and not self.cycle.response_complete
        return not (processing or self.transport.is_closing() or self.transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self.receive_timer, self.send_timer):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.watch()

    def watch(self) -> None:
        """Start the time limit of what the client has to send next, if that is another part of a request than before."""
        if self.receiving is self.conn.their_state:
            return
        self.receiving = self.conn.their_state
        if self.receive_timer:
            self.receive_timer.cancel()
        limits = {
            h11.IDLE: self.limits.head_seconds,
            h11.SEND_BODY: self.limits.upload_seconds + AFTER_UPLOAD,
        }
        seconds = limits.get(self.receiving)
        self.receive_timer = None if seconds is None else self.loop.call_later(seconds, self.end_late_request)

    def end_late_request(self) -> None:
        if self.conn.trailing_data[0] or self.receiving is h11.SEND_BODY:
            self.refuse(408, "the request took too long; send it again")
        else:  # nothing was sent: browsers open such connections in advance, and expect no answer
            self.transport.close()

    def shutdown(self) -> None:
        """The server ends: answer clients that still send a request, rather than wait for them."""
        super().shutdown()
        if self.receiving is h11.SEND_BODY:
            self.refuse(503, ENDING)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.send_timer = self.loop.call_later(self.limits.response_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.send_timer:
            self.send_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self.refuse(400, f"{msg.lower().rstrip('.')}; send HTTP/1.1")

    def refuse(self, status: int, reason: str) -> None:
        """Close the connection, with an error response if none is under way."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            response = error_response(status, reason)
            headers = dict(response.raw_headers) | {b"connection": b"close"}
            # SEND_RESPONSE: the head of this request is known. Responses to HEAD have no body.
            bodiless = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
            for event in (
                h11.Response(status_code=status, headers=[*headers.items()], reason=STATUS_PHRASES[status]),
                h11.Data(data=b"" if bodiless else bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        if self.cycle:  # the application, if it still works on the request, has nobody to answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
