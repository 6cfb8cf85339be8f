"""Limits of one request, of the request queue and of connections."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Requests above these limits are refused.

    If the server's default of a setting exceeds its limit here, requests may use up to that default.

    Attributes:
        upload_bytes: size of a whole request.
        upload_seconds: time within which a request must have arrived.
        pixels: size of a photograph, checked before it is decoded.
        waiting: requests in the queue, in addition to the one that is being processed.
        beam_size: beam size of a search.
        max_length: longest caption, in words.
        field_characters: length of a form field.

    The server of `caption.py --serve` has these limits too; another server that runs the application has its own:

    Attributes:
        head_seconds: time for a request's line and headers, which browsers send in one packet.
        response_seconds: time within which the client must have taken a response.
        connections: simultaneous connections. Browsers open six for a page, so this is enough for sixteen of them. If
            the process may open few files, `server.connection_limit` gives a lower number.
    """

    upload_bytes: int = 20_000_000
    upload_seconds: float = 60.0
    pixels: int = 50_000_000
    waiting: int = 16
    beam_size: int = 20
    max_length: int = 50
    field_characters: int = 200
    head_seconds: float = 5.0
    response_seconds: float = 60.0
    connections: int = 100


class RequestError(Exception):
    """A request that is refused: the HTTP status of the response, and the reason in one line."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, reason)
        self.status, self.reason = status, reason
