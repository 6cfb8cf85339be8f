"""`caption.py --serve`: its flags, and the server that it starts."""

import argparse
import dataclasses
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from sca_caption.cli.flags import make
from sca_caption.cli.parser import Parser
from sca_caption.config import SearchConfig
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.programs import install_command

HOST, PORT = "127.0.0.1", 7860
OF_PAGE = ("host", "port", "browser")
OTHERS = ("checkpoint", "device", "guidance", "neutral", "force_words", "quiet")
CAPTIONS = 5  # per photograph on the page, by default


def add_page_flags(parser: Parser) -> None:
    group = parser.add_argument_group("page in the browser")
    group.add_argument("--serve", action="store_true", help="serve a local page that captions photographs")
    unset: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_rare(
        group.add_argument("--host", metavar="NAME", help=f"address of --serve (default: {HOST})", **unset),
        group.add_argument(
            "--port", type=int, metavar="N", help=f"its port; 0: any free one (default: {PORT})", **unset
        ),
        group.add_argument(
            "--no-browser", dest="browser", action="store_false", help="do not open the page", **unset
        ),
    )


def check_page_flags(parser: Parser, arguments: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go together."""
    if not arguments.serve:
        useless = next((name for name in OF_PAGE if name in arguments), None)
        if useless:
            raise UserError(f"{flag_of(parser, useless)} has no effect without --serve")
        return
    taken = {"serve", *OF_PAGE, *OTHERS, *(field.name for field in dataclasses.fields(SearchConfig))}
    for name, value in vars(arguments).items():
        if name not in taken and (value or None) != (parser.get_default(name) or None):  # none: [] or None
            found = f"{value[0]!r}" if name == "images" else flag_of(parser, name)
            raise UserError(
                f"--serve takes photographs on its page, found {found} too; leave one or the other out"
            )


def flag_of(parser: Parser, name: str) -> str:
    return next(action.option_strings[0] for action in parser._actions if action.dest == name)


def serve(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    try:
        from sca_caption.serve import app, guard, options, server
    except ImportError as error:
        if error.name and error.name.startswith("sca_caption"):
            raise
        raise UserError(f"--serve needs the package {error.name}: {install_command('web')}") from error
    search = make(SearchConfig, arguments)
    if "num_captions" not in arguments:
        search = dataclasses.replace(search, num_captions=min(CAPTIONS, search.beam_size))
    defaults = options.Options(search, tuple(arguments.force_words), arguments.guidance, arguments.neutral)
    host = getattr(arguments, "host", HOST)
    with closing(server.listen(host, getattr(arguments, "port", PORT))) as listening:
        from sca_caption.inference.captioning import CaptionPipeline

        pipeline = CaptionPipeline.load(
            arguments.checkpoint,
            search=search,
            device=arguments.device,
            style=arguments.style,
            force_words=arguments.force_words,
            neutral=arguments.neutral,
        )
        page = app.create_app(pipeline, name=name_of(arguments.checkpoint), defaults=defaults, host=host)
        if not guard.is_loopback(host) and not getattr(arguments, "quiet", False):
            print(
                f"warning: --host {host}: whoever can reach this machine can use the page, without a password",
                file=sys.stderr,
            )
        server.run(page, listening, getattr(arguments, "browser", True))
    return 0


def name_of(checkpoints: list[Path] | None) -> str:
    """The model's name on the page: file names without folders."""
    return (
        ", ".join(f"{path.parent.name}/{path.name}" for path in checkpoints or ()) or "the model that ships"
    )
