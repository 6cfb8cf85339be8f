"""Attention blocks for convolutional networks: `build("cbam", channels=256)` maps (B, 256, H, W) to the same shape.

H and W are arbitrary. `BLOCKS` is the registry; tests/attention/test_blocks.py tests every registered block. SCA-CNN's
attention, which also reads a hidden state, is `attention.sca.ConditionedAttention`.
"""

import inspect
from typing import Any

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
    """Return the options of a block with their defaults. Raises UserError for an unknown block."""
    parameters = inspect.signature(BLOCKS[choice(name, BLOCKS, "attention")]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build(name: str, channels: int, **options: Any) -> nn.Module:
    """Build the block `name` of `BLOCKS`: (B, channels, H, W) -> the same shape, for any H and W.

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
    """Parse the specification of a block: "cbam", "bam:combine=add,reduction=8", "cbam:pools=avg+lse" -> name, options.

    Raises UserError for an unknown block or option, and for a value of another type than the option's default.
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
    """Build the block of a specification, see `parse`."""
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
        raise UserError(f"{what}={value}: must be a number") from None
