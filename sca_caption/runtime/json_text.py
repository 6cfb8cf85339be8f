"""JSON of files that others wrote."""

import json
from collections.abc import Callable
from typing import Any


def parse_json(text: str | bytes, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """Parse JSON as json.loads does. Raises ValueError also for values that are nested too deeply for Python."""
    try:
        return json.loads(text, object_hook=object_hook)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def excerpt(value: Any, length: int = 40) -> str:
    """The beginning of a parsed value, for messages."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:length]
    except RecursionError:
        return "a value that is nested too deeply"
