"""How much one request may ask for, and how many may wait."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What is refused. Settings that the server's own defaults exceed are allowed up to these defaults."""

    upload_bytes: int = 20_000_000  # of a whole request
    upload_seconds: float = 60.0  # in which it must have come
    pixels: int = 50_000_000  # checked before the photograph is decoded
    waiting: int = 16  # photographs in the queue, beside the one in work
    beam_size: int = 20
    max_length: int = 50
    field_characters: int = 200


class Refusal(Exception):
    """A request that is not answered: an HTTP status, and one line that says why."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, reason)
        self.status, self.reason = status, reason
