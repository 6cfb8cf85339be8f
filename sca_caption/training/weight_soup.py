"""Weight soups: one model with the mean weights of several checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from sca_caption.checkpoint import Checkpoint, load
from sca_caption.runtime.errors import UserError


def average(paths: Sequence[str | Path], shares: Sequence[float] | None = None) -> Checkpoint:
    """The checkpoint `paths[0]` with the weighted mean of all checkpoints' weights, in proportion to `shares` (default:
    equal).

    Models that were trained from one another can be averaged, and the mean often scores better than each of them
    (Wortsman et al. 2022, arXiv 2109.01903). Their forms of attention may differ: a tensor that some checkpoints lack is
    the mean of the others. Raises UserError if other settings of the models or their vocabularies differ, and for shares
    that are no weights.
    """
    shares = shares or [1.0] * len(paths)
    if len(shares) != len(paths) or min(shares) < 0 or not sum(shares):
        raise UserError(f"--shares {shares}: give one number per checkpoint, 0 or more, not all 0")
    found = load(paths[0])
    total = {name: value * shares[0] for name, value in found.model.state_dict().items()}
    weight = dict.fromkeys(total, shares[0])
    free = dict.fromkeys(("attention", "dropout", "feature_dropout", "word_dropout_rate"))
    for path, share in zip(paths[1:], shares[1:], strict=True):
        other = load(path)
        same = {**vars(other.config), **free} == {**vars(found.config), **free}
        if not same or other.vocabulary != found.vocabulary:
            raise UserError(
                f"{path} is of another model or vocabulary than {paths[0]}; average runs of one model"
            )
        for name, value in other.model.state_dict().items():
            if name in total:
                total[name] += value * share
                weight[name] += share
    lacking = [name for name, share in weight.items() if not share]
    if lacking:
        raise UserError(f"only checkpoints with a share of 0 have {lacking[0]}; give one of them a share")
    found.model.load_state_dict({name: value / weight[name] for name, value in total.items()})
    alone = len(paths) == 1
    return Checkpoint(
        found.model,
        found.vocabulary,
        found.transform,
        found.metrics if alone else {},
        guides=found.guides if alone else {},
    )
