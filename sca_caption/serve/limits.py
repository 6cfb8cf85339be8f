"""Limits of one request and of the request queue."""

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
    """

    upload_bytes: int = 20_000_000
    upload_seconds: float = 60.0
    pixels: int = 50_000_000
    waiting: int = 16
    beam_size: int = 20
    max_length: int = 50
    field_characters: int = 200


class RequestError(Exception):
    """A request that is refused: the HTTP status of the response, and the reason in one line."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, reason)
        self.status, self.reason = status, reason
