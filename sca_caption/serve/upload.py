"""Parses an uploaded form in memory, without reading more bytes than the limits allow."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import python_multipart
from python_multipart.exceptions import FormParserError
from starlette.requests import Request

from sca_caption.serve.limits import Limits, RequestError

IN_MEMORY = {"MAX_MEMORY_FILE_SIZE": float("inf")}  # larger files would be written to disk
NAME_CHARACTERS = 80
HOW_TO_SEND = "send a form (multipart/form-data) with the image file in the field image"


@dataclass
class Form:
    """An uploaded form.

    Attributes:
        data: contents of the image file. name: its name in messages. fields: text of the other fields, by name.
    """

    data: bytes = b""
    name: str = "the image"
    fields: dict[str, str] = field(default_factory=dict)


async def read_form(request: Request, limits: Limits) -> Form:
    """Read and parse a request.

    Raises RequestError if it is too large (as soon as that is known), too slow, or not a form with one image file.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError(415, f"the request is not a form; {HOW_TO_SEND}")
    too_large = RequestError(413, f"more than {limits.upload_bytes / 1e6:g} MB; resize the photograph first")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limits.upload_bytes:
        raise too_large
    form, files = Form(), []
    headers: Any = request.headers  # annotated as a dict of bytes there

    def on_file(file: python_multipart.multipart.File) -> None:
        files.append(file.field_name)
        if file.field_name == b"image":
            file.file_object.seek(0)
            form.data, form.name = file.file_object.read(), display_name(file.file_name or b"")

    def on_field(text: python_multipart.multipart.Field) -> None:
        form.fields[decode(text.field_name)] = decode(text.value or b"")

    try:
        async with asyncio.timeout(limits.upload_seconds):
            parser = python_multipart.create_form_parser(headers, on_field, on_file, IN_MEMORY)
            received = 0
            async for chunk in request.stream():
                received += len(chunk)
                if received > limits.upload_bytes:
                    raise too_large
                parser.write(chunk)
            parser.finalize()
    except FormParserError as error:
        raise RequestError(
            400, f"the form cannot be parsed ({' '.join(str(error).split())}); {HOW_TO_SEND}"
        ) from error
    except TimeoutError as error:
        raise RequestError(
            408, f"upload not complete after {limits.upload_seconds:g} seconds; send it again"
        ) from error
    if files != [b"image"]:
        raise RequestError(400, f"{len(files)} files in the form, expected one image; {HOW_TO_SEND}")
    return form


def decode(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace")


def display_name(name: bytes) -> str:
    """File name for messages: the last path component, printable characters only, at most NAME_CHARACTERS long."""
    last = decode(name).replace("\\", "/").rpartition("/")[2]
    shown = "".join(c for c in last if c.isprintable()).strip()
    return f"{shown[: NAME_CHARACTERS - 1]}…" if len(shown) > NAME_CHARACTERS else shown or "the image"
