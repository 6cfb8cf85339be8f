"""Weights in fewer bytes: float16, or int8 for large matrices, which are float32 again once they are loaded.

int8 is symmetric with a scale for each output: a row w of a matrix is kept as round(w / s) with s = max |w| / 127. So no
weight moves by more than s / 2, 1/254 of the largest of its row. The captioner's convolutions, whose errors add up
through the CNN (as int8 they changed a third of the captions; matrices, a fortieth), and small tensors, where it saves
nothing, are float16. Of networks that bear it, 1x1 convolutions are matrices too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = ("float32", "float16", "int8")
LARGE = 4096  # elements from which on a matrix is stored as int8
_SCALE = "scale."


def stored(tensors: dict[str, Tensor], dtype: str, robust: Sequence[str] = ()) -> dict[str, Tensor]:
    """What to write in place of float tensors; `restored` takes it back.

    robust: with what the names of convolutions begin that may be int8 as well.
    """
    if dtype == "float32":
        return tensors
    found = {}
    for name, value in tensors.items():
        if not value.is_floating_point():
            found[name] = value
        elif (
            dtype == "int8"
            and value.numel() >= LARGE
            and is_matrix(value.shape, name.startswith(tuple(robust)))
        ):
            rows = value.float().flatten(1)
            scale = rows.abs().amax(1, keepdim=True) / 127  # (rows, 1)
            whole = (rows / scale.where(scale > 0, 1)).round().to(torch.int8)
            found[name], found[_SCALE + name] = whole.view(value.shape), scale.squeeze(1)
        else:
            found[name] = value.half()
    return found


def is_matrix(shape: Sequence[int], robust: bool) -> bool:
    """Whether a tensor of that shape is kept as int8. robust: 1x1 convolutions, (C', C, 1, 1), are matrices too."""
    return len(shape) == 2 or (robust and len(shape) == 4 and tuple(shape[2:]) == (1, 1))


def restored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names, int8 ones times their scales."""
    found = {}
    for name, value in tensors.items():
        scale = tensors.get(_SCALE + name)
        if scale is not None:
            value = value.float() * scale.view(-1, *[1] * (value.dim() - 1))
        if not name.startswith(_SCALE):
            found[name] = value
    return found
