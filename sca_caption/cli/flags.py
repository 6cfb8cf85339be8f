"""Command-line flags generated from the fields of config classes."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sca_caption.cli.parser import Parser
from sca_caption.config import Config
from sca_caption.runtime.errors import choice


def add_device(group: argparse._ActionsContainer, default: str = "auto") -> None:
    """Add --device to a parser or a group of flags."""
    group.add_argument(
        "--device", default=default, help="cpu, cuda, cuda:1, ... (default: cuda if available)"
    )


def add_style(group: argparse._ActionsContainer, without: str, default: str = "") -> None:
    """Add --style to a parser or a group of flags. without: what the help says of a run without it."""
    text = f"data set whose manner captions shall have, e.g. everyday or flickr8k (default: {without})"
    group.add_argument("--style", metavar="NAME", default=default, help=text)


def add_batch_size(group: argparse._ActionsContainer, default: int) -> None:
    """Add --batch-size to a parser or a group of flags."""
    text = "images per batch (default: %(default)s)"
    group.add_argument("--batch-size", type=int, default=default, metavar="N", help=text)


def task_of(argv: Sequence[str] | None) -> str:
    """The value of --task, "caption" or "classify", before the flags of that task are known."""
    p = Parser(add_help=False, allow_abbrev=False)
    p.add_argument("--task", default="caption")
    return choice(p.parse_known_args(argv)[0].task, ("caption", "classify"), "task")


def add_flags(parser: Parser, *configs: type, without: Sequence[str] = ()) -> None:
    """Add one flag per field of the config classes, except those in `without`.

    A flag that is not given is absent from the namespace. Fields that are not `common` are shown by --help-all alone.
    """
    for config in configs:
        group = parser.add_argument_group((config.__doc__ or "").split(".")[0].lower())
        for f in dataclasses.fields(config):
            if not f.metadata or f.name in without:
                continue
            flag = "--" + f.name.replace("_", "-")
            default = " ".join(f.default) if isinstance(f.default, tuple) else f.default
            options: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS}
            if f.type is bool:
                shown = "on" if f.default else "off"
                options |= {
                    "action": argparse.BooleanOptionalAction,
                    "help": f"{f.metadata['help']} (default: {shown})",
                }
            else:
                shown = f.metadata["help"] if default == "" else f"{f.metadata['help']} (default: {default})"
                options |= {"help": shown, "choices": f.metadata["choices"]}
                if isinstance(f.default, tuple):
                    options |= {"nargs": "+", "metavar": "NAME"}
                else:
                    options |= {"type": f.type}
                    if not f.metadata["choices"]:
                        options["metavar"] = {int: "N", float: "X"}.get(type(f.default), "NAME")
            action = group.add_argument(flag, **options)
            if not f.metadata["common"]:
                parser.add_rare(action)
            if f.metadata["was"]:
                parser.add_argument(
                    "--" + f.metadata["was"].replace("_", "-"), **options | {"help": argparse.SUPPRESS}
                )


def make(
    config: type[Config], arguments: argparse.Namespace, recipe: Mapping[str, Any] | None = None
) -> Config:
    """Build a config: its defaults, then the recipe's values, then the flags that were given."""
    names = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    values = {k: v for k, v in (dict(recipe or {}) | vars(arguments)).items() if k in names}
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
