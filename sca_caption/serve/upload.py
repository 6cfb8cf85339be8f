"""Reading a form with a photograph, in memory and never more of it than allowed."""

import asyncio
from dataclasses import dataclass, field

import python_multipart
from python_multipart.exceptions import FormParserError
from starlette.requests import Request

from sca_caption.serve.limits import Limits, Refusal

IN_MEMORY = {"MAX_MEMORY_FILE_SIZE": float("inf")}  # the parser writes what is larger to disk
NAME_CHARACTERS = 80
HOW = "send a form (multipart/form-data) with the photograph as its field image"


@dataclass
class Form:
    """What was sent: the photograph's bytes, its name fit for messages, and the text of the other fields."""

    data: bytes = b""
    name: str = "the image"
    fields: dict[str, str] = field(default_factory=dict)


async def read_form(request: Request, limits: Limits) -> Form:
    """Read a request to the end. Raises Refusal as soon as it is known to be too large, and where it is no such form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refusal(415, f"no form; {HOW}")
    too_large = Refusal(413, f"more than {limits.upload_bytes / 1e6:g} MB; make the photograph smaller first")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limits.upload_bytes:
        raise too_large
    form, files = Form(), []

    def on_file(file: python_multipart.multipart.File) -> None:
        files.append(file.field_name)
        if file.field_name == b"image":
            file.file_object.seek(0)
            form.data, form.name = file.file_object.read(), shown(file.file_name or b"")

    def on_field(text: python_multipart.multipart.Field) -> None:
        form.fields[decoded(text.field_name)] = decoded(text.value or b"")

    try:
        async with asyncio.timeout(limits.upload_seconds):
            parser = python_multipart.create_form_parser(request.headers, on_field, on_file, IN_MEMORY)
            received = 0
            async for chunk in request.stream():
                received += len(chunk)
                if received > limits.upload_bytes:
                    raise too_large
                parser.write(chunk)
            parser.finalize()
    except FormParserError as error:
        raise Refusal(400, f"a form that cannot be read ({' '.join(str(error).split())}); {HOW}") from error
    except TimeoutError as error:
        raise Refusal(408, f"not all there after {limits.upload_seconds:g} seconds; send it again") from error
    if files != [b"image"]:
        raise Refusal(400, f"{len(files)} files in the form, none or more than the one needed; {HOW}")
    return form


def decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def shown(name: bytes) -> str:
    """A file's name as messages have it: the last part, no control characters, not too long."""
    name = decoded(name).replace("\\", "/").rpartition("/")[2]
    name = "".join(c for c in name if c.isprintable()).strip()
    return f"{name[: NAME_CHARACTERS - 1]}…" if len(name) > NAME_CHARACTERS else name or "the image"
