"""Attention blocks for convolutional networks: `build("cbam", channels=256)` maps (B, C, H, W) to the same shape.

Any H and W. `BLOCKS` holds every block by name; tests/test_blocks.py runs all its checks on each. SCA-CNN's attention
on a hidden state, which is not of this kind, is in `attention.sca`.
"""

import inspect

from torch import nn

from sca_caption.attention.bam import BAM
from sca_caption.attention.cbam import CBAM
from sca_caption.attention.ccwh import CCWH
from sca_caption.attention.coord import CoordinateAttention
from sca_caption.attention.csham import CSHAM
from sca_caption.attention.danet import DANet, DANetChannelAttention, PositionAttention
from sca_caption.attention.non_local import NonLocal
from sca_caption.attention.sca import SCA
from sca_caption.attention.se import SE
from sca_caption.attention.self_attention import SelfAttention
from sca_caption.attention.sk import SK
from sca_caption.runtime.errors import UserError, choice

BLOCKS: dict[str, type[nn.Module]] = {
    "se": SE,
    "sk": SK,
    "bam": BAM,
    "cbam": CBAM,
    "coord": CoordinateAttention,
    "csham": CSHAM,
    "ccwh": CCWH,
    "self_attention": SelfAttention,
    "nonlocal": NonLocal,
    "danet_position": PositionAttention,
    "danet_channel": DANetChannelAttention,
    "danet": DANet,
    "sca": SCA,
}


def options_of(name: str) -> dict[str, object]:
    """The options of a block and their defaults. Raises UserError, with the valid names, for an unknown block."""
    parameters = inspect.signature(BLOCKS[choice(name, BLOCKS, "attention")]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build(name: str, channels: int, **options) -> nn.Module:
    """A block by its name in `BLOCKS`: (B, channels, H, W) -> the same shape, any H and W.

    Raises UserError for an unknown block, option or value; the message lists the valid ones.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise UserError(
                f"unknown option {option!r} of {name}; one of: {', '.join(sorted(known)) or 'none'}"
            )
    return BLOCKS[name](channels, **options)


def parse(spec: str) -> tuple[str, dict[str, object]]:
    """A block as command lines name it: "cbam", "bam:combine=add,reduction=8", "cbam:pools=avg+lse" -> name, options.

    Raises UserError for an unknown block or option, and a value of another type than the option's default.
    """
    name, _, text = spec.partition(":")
    known, options = options_of(name), {}
    for item in filter(None, text.split(",")):
        option, equals, value = item.partition("=")
        if not equals or option not in known:
            raise UserError(f"{spec!r}: unknown option {option!r} of {name}; write {name}:OPTION=VALUE with "
                            f"one of: {', '.join(sorted(known)) or 'none'}")  # fmt: skip
        options[option] = _convert(value, known[option], f"{name}:{option}")
    return name, options


def build_spec(spec: str, channels: int) -> nn.Module:
    """`build` from what `parse` reads."""
    name, options = parse(spec)
    return build(name, channels, **options)


def _convert(value: str, default: object, what: str) -> object:
    if isinstance(default, bool):
        return choice(value, ("true", "false"), f"value of {what}") == "true"
    if isinstance(default, tuple):
        return tuple(value.split("+"))
    if isinstance(default, str):
        return value
    try:
        return int(value) if default is None or isinstance(default, int) else float(value)
    except ValueError:
        raise UserError(f"{what}={value}: give a number") from None
