"""Optimizers, learning-rate schedules, and the optimizer's state in checkpoints."""

import math

import torch
from torch import Tensor

from sca_caption.config import RunConfig
from sca_caption.training.ema import AVERAGE


def make_optimizer(groups: list[dict], config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names, for the given parameter groups."""
    if config.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def rate_factor(step: int, total: int, config: RunConfig) -> float:
    """The learning rate at `step` of `total` steps as a fraction of the peak: linear warm-up, then the schedule."""
    warmup = config.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return 0.1 ** ((step >= total / 2) + (step >= total * 3 / 4))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors named "<parameter number>.<name>". Other values (SGD's None) are left out."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, entry in state.items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned. Tensors of a moving average among them are ignored."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if not key.startswith(AVERAGE):
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
