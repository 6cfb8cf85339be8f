"""Unfolds batch norms that were folded into the convolutions before them, so that a network can be trained further.

Weights that are published for inference may have folded norms: the convolution is scaled, and the norm only adds a bias.
In evaluation the network is the same. In training, however, a norm divides its input by the deviation in the batch before
it adds that bias, which can be so large and negative that a ReLU behind it never lets anything pass.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3  # of the variance 1 - eps, which float16 rounds to 1


def has_folded_norms(weights: dict[str, Tensor]) -> bool:
    """Whether the batch norms of a state dict add a bias, and all of them have the mean 0 and the variance 1."""
    norms = [name.removesuffix("running_mean") for name in weights if name.endswith(".running_mean")]
    return any(weights[f"{norm}bias"].any() for norm in norms) and not any(
        weights[f"{norm}running_mean"].any() or (weights[f"{norm}running_var"] - 1).abs().max() > TOLERANCE
        for norm in norms
    )


@torch.no_grad()
def unfold_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give each batch norm the mean and variance of its input, and the weight and bias with which it computes the same.

    batches: normalised images (B, 3, S, S) of the size that is trained on; some hundreds together.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.double) for norm in norms}

    def add(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1).double()  # (C, B * H * W)
        sums[norm] += torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    for batch in batches:
        network(batch)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        count, total, squares = sums[norm]
        mean = total / count
        variance = squares / count - mean.square()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(scale * (mean - norm.running_mean))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
