"""The processes of one run, as torchrun starts them, one a GPU or one for some cores of a CPU, and what they exchange.

A program says `with process_group() as processes` and hands `processes` on. Without torchrun that is ALONE, whose
methods give back what they are given: the same lines serve one process and many, and torch.distributed is imported
for many only.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sca_caption.runtime.errors import UserError


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is. Its methods that exchange something must be called by all of them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """The one that prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """Every `size`-th item, so that neighbours, which are often alike, cost all processes the same."""
        return items[self.rank :: self.size]

    def part(self, batch: list) -> list:
        """The share of a batch to train on, never empty: all processes must take part in every step.

        In a batch with fewer items than processes some get its first item, which must count for nothing.
        """
        return self.share(batch) or batch[:1]

    def gather(self, share: Sequence) -> list:
        """What every process has for its `share` of some items, in the order of the items; on all processes."""
        if self.size == 1:
            return list(share)
        from torch.distributed import all_gather_object

        shares: list[Any] = [None] * self.size
        all_gather_object(shares, list(share))
        items = [None] * sum(map(len, shares))
        for rank, found in enumerate(shares):
            items[rank :: self.size] = found
        return items

    def in_order(
        self, items: Sequence, answer: Callable[[Sequence], Iterable], at_once: int = 1 << 30
    ) -> Iterable:
        """`answer(items)`, an answer for each, where several processes each answer for a share and then have all.

        at_once: answers that a process gives before all of them exchange theirs, and that can be lost with it.
        """
        return answer(items) if self.size == 1 else self._in_rounds(items, answer, at_once)

    def _in_rounds(self, items: Sequence, answer: Callable[[Sequence], Iterable], at_once: int) -> Iterator:
        mine = iter(answer(self.share(items)))
        for _ in range(0, len(items), self.size * at_once):
            yield from self.gather(list(islice(mine, at_once)))

    def mean(self, *values: float) -> Sequence[float]:
        """The mean over processes of each value, exact for whole numbers."""
        if self.size == 1:
            return values
        import torch

        total = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return (total / self.size).tolist()

    def broadcast(self, value: Any) -> Any:
        """The first process's value."""
        if self.size == 1:
            return value
        from torch.distributed import broadcast_object_list

        values = [value]
        broadcast_object_list(values, 0)
        return values[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.mean(0)

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """One process of each machine runs the block before the others, which then find what it has downloaded."""
        local = int(os.environ.get("LOCAL_RANK", 0)) if self.size > 1 else 0
        if local:
            self.wait()
        yield
        if not local:
            self.wait()

    def align(self, model) -> None:
        """Give all processes the first one's buffers: a batch norm's statistics are of the images that it has seen."""
        if self.size > 1:
            from torch.distributed import broadcast

            for buffer in model.buffers():
                broadcast(buffer, 0)

    def parallel(self, step):
        """The module `step`, whose backward pass averages over processes the gradients of what learns at this moment.

        Raises UserError for more processes than GPUs.
        """
        if self.size == 1:
            return step
        import torch

        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if next(step.parameters()).is_cuda and here > gpus:
            raise UserError(f"{here} processes for {gpus} GPUs; give torchrun --nproc-per-node {gpus}")
        return torch.nn.parallel.DistributedDataParallel(step)

    def synchronised(self, model):
        """The model with batch norms that see the whole batch; on a CPU, where PyTorch has none, as it was."""
        if self.size == 1 or not next(model.parameters()).is_cuda:
            return model
        from torch.nn import SyncBatchNorm

        return SyncBatchNorm.convert_sync_batchnorm(model)


ALONE = Processes()


def restarted() -> bool:
    """Whether torchrun has started the run again, after a process of it had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes that torchrun started: yields this one's `Processes`, or ALONE without torchrun.

    Inside the block only the first process prints. A UserError in one process ends all of them and is reported once: the
    first process to raise it raises it here, the others exit silently with status 2, and so do the processes that
    torchrun restarts, because a restart does not mend a user's mistake.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    store, rank, size = next(dist.rendezvous("env://"))  # torchrun keeps the store: it outlives its processes
    mistake = f"sca_caption {os.environ['TORCHELASTIC_RUN_ID']}: a user's mistake"
    if store.check([mistake]):
        raise SystemExit(2)
    if size > 1:
        gpus = torch.cuda.device_count()
        if gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
        # Addresses of processes that have died are in the same store.
        attempt = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=size)
    try:
        with silence() if rank else contextlib.nullcontext():
            yield Processes(rank, size)
    except UserError:
        if store.compare_set(mistake, "", str(rank)) == str(rank).encode():
            raise
        raise SystemExit(2) from None
    except RuntimeError:  # so ends waiting for a process that is gone
        if store.check([mistake]):
            raise SystemExit(2) from None
        raise
    except KeyboardInterrupt:
        if rank:
            raise SystemExit(130) from None
        raise
    if size > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield
