"""What the shared tests of attention blocks run on: every registered block, in every form, with weights that matter."""

import torch
from torch import Tensor, nn

from sca_caption.attention import BLOCKS, build

CHANNELS = 32

# Forms to test beside the default options; a registered block that is not named here is tested in its default form.
VARIANTS = {
    "se": [{"bias": False}],
    "sk": [{"groups": 1, "reduction": 2, "least": 4}],
    "bam": [{"combine": "add", "reduction": 4, "dilation": 2}],
    "cbam": [{"pools": ("avg", "max", "lp", "lse"), "reduction": 4}, {"spatial": False}],
    "coord": [{"reduction": 2}],
    "csham": [{"relu": True}, {"connection": "alternate"}],
    "self_attention": [{"heads": 4}],
    "nonlocal": [
        {"scale": False, "sub_sample": False},
        {"mode": "gaussian"},
        {"mode": "dot_product", "reduction": 4},
        {"mode": "concatenation"},
    ],
    "sca": [{"mode": "S-C"}, {"mode": "C"}, {"mode": "S", "width": 5}],
}
DEFAULTS = [(name, {}) for name in BLOCKS]
CASES = DEFAULTS + [(name, options) for name in BLOCKS for options in VARIANTS.get(name, ())]


def case_name(case: tuple[str, dict]) -> str:
    name, options = case
    return " ".join([name, *(f"{option}={value}" for option, value in options.items())])


def lively(case: tuple[str, dict], channels: int = CHANNELS, seed: int = 1) -> nn.Module:
    """The block in evaluation mode, all parameters and running statistics random: the zero starts would hide errors."""
    name, options = case
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        block = build(name, channels, **options).eval()
        for parameter in block.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.normal_(std=fan_in**-0.5)
        for buffer_name, buffer in block.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return block


def picture(*shape: int, seed: int = 0) -> Tensor:
    """Random features (B, C, H, W)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
