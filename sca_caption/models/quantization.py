"""Weight quantization of checkpoints: float16, or int8 for large matrices. Loading converts them back to float32.

int8 is symmetric with one scale per output channel: row w of a matrix is stored as round(w / s) with s = max |w| / 127.
The error of a weight is therefore at most s / 2, i.e. 1/254 of the largest weight of its row. Small tensors are stored as
float16, because int8 would save nothing. The captioner's convolutions are float16 too, because their errors accumulate
through the CNN: int8 convolutions changed a third of the captions, int8 matrices one in forty.
"""

import torch
from torch import Tensor

DTYPES = ("float32", "float16", "int8")
MIN_INT8_SIZE = 4096  # elements; smaller matrices are stored as float16
SCALE = "scale."


def quantize(tensors: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Convert float tensors to `dtype`, one of DTYPES, with the int8 scales under "scale.NAME"; see `dequantize`."""
    if dtype == "float32":
        return tensors
    found = {}
    for name, value in tensors.items():
        if not value.is_floating_point():
            found[name] = value
        elif dtype == "int8" and value.numel() >= MIN_INT8_SIZE and value.dim() == 2:
            rows = value.float()
            scale = rows.abs().amax(1, keepdim=True) / 127  # (rows, 1)
            integers = (rows / scale.where(scale > 0, 1)).round().to(torch.int8)
            found[name], found[SCALE + name] = integers, scale.squeeze(1)
        else:
            found[name] = value.half()
    return found


def dequantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `quantize`: int8 tensors are multiplied by their scales, and the scales are removed.

    Raises ValueError for scales that do not fit.
    """
    found = {}
    for name, value in tensors.items():
        scale = tensors.get(SCALE + name)
        if scale is not None:
            if value.dim() == 0 or scale.numel() != len(value):
                raise ValueError(f"{name} has {scale.numel()} scales for {list(value.shape)}")
            value = value.float() * scale.view(-1, *[1] * (value.dim() - 1))
        if not name.startswith(SCALE):
            found[name] = value
    return found
