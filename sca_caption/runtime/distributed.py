"""Distributed training and inference with torchrun: one process per GPU, or several processes on a CPU.

A program runs `with process_group() as processes` and passes `processes` on. Without torchrun, `processes` is
SINGLE_PROCESS, whose methods return their arguments. So the same code serves one process and several, and
torch.distributed is imported for several only.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sca_caption.runtime.errors import Terminated, UserError

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
Model = TypeVar("Model", bound="nn.Module")


@dataclass(frozen=True)
class Processes:
    """The rank of this process and the number of processes.

    Methods that communicate must be called by all processes: gather, map_in_order, mean, broadcast, barrier, local_first,
    broadcast_buffers.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for rank 0, the only process that prints and writes files."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: every `world_size`-th one, because neighbours often need similar time."""
        return items[self.rank :: self.world_size]

    def shard_batch(self, batch: list) -> list:
        """This process's items of a training batch. Never empty, because all processes take part in each step.

        If a batch has fewer items than processes, some processes get its first item, which the loss must ignore.
        """
        return list(self.shard(batch)) or batch[:1]

    def gather(self, results: Iterable[Any]) -> list[Any]:
        """Gather each process's results for its `shard` of some items. Returns all, in the order of the items."""
        if self.world_size == 1:
            return list(results)
        from torch.distributed import all_gather_object

        shards: list[Any] = [None] * self.world_size
        all_gather_object(shards, list(results))
        gathered = [None] * sum(map(len, shards))
        for rank, shard in enumerate(shards):
            gathered[rank :: self.world_size] = shard
        return gathered

    def map_in_order(
        self, items: Sequence, function: Callable[[Sequence], Iterable], round_size: int = 1 << 30
    ) -> Iterable:
        """Yield the results of `function(items)`, one per item, in order. Each process computes its shard.

        function: items -> iterable with one result per item. round_size: results that a process computes before the
        processes exchange them; these are lost if it dies.
        """
        return function(items) if self.world_size == 1 else self._map_in_rounds(items, function, round_size)

    def _map_in_rounds(
        self, items: Sequence, function: Callable[[Sequence], Iterable], round_size: int
    ) -> Iterator:
        results = iter(function(self.shard(items)))
        for _ in range(0, len(items), self.world_size * round_size):
            yield from self.gather(list(islice(results, round_size)))

    def mean(self, *values: float) -> Sequence[float]:
        """The mean over processes of each value, in float64."""
        if self.world_size == 1:
            return values
        import torch

        total = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return (total / self.world_size).tolist()

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, on all processes."""
        if self.world_size == 1:
            return value
        from torch.distributed import broadcast_object_list

        values = [value]
        broadcast_object_list(values, 0)
        return values[0]

    def barrier(self) -> None:
        """Wait until all processes have called this method."""
        self.mean(0)

    @contextlib.contextmanager
    def local_first(self) -> Iterator[None]:
        """Run the block in one process per machine first, so that the others find the files it has downloaded."""
        local = int(os.environ.get("LOCAL_RANK", 0)) if self.world_size > 1 else 0
        if local:
            self.barrier()
        yield
        if not local:
            self.barrier()

    def broadcast_buffers(self, model: "nn.Module") -> None:
        """Copy the buffers of rank 0, such as batch norms' statistics, which differ per process, to all processes."""
        if self.world_size > 1:
            from torch.distributed import broadcast

            for buffer in model.buffers():
                broadcast(buffer, 0)

    def data_parallel(self, step: "nn.Module") -> "nn.Module":
        """Wrap the module `step` in DistributedDataParallel, which averages gradients over processes.

        Covers the parameters that require a gradient at this time. Raises UserError for more processes than GPUs.
        """
        if self.world_size == 1:
            return step
        import torch

        local_size, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if next(step.parameters()).is_cuda and local_size > gpus:
            raise UserError(f"{local_size} processes for {gpus} GPUs; give torchrun --nproc-per-node {gpus}")
        return torch.nn.parallel.DistributedDataParallel(step)

    def sync_batch_norm(self, model: Model) -> Model:
        """Convert batch norms to SyncBatchNorm. Returns the model unchanged on a CPU, which PyTorch does not support."""
        if self.world_size == 1 or not next(model.parameters()).is_cuda:
            return model
        from torch.nn import SyncBatchNorm

        return SyncBatchNorm.convert_sync_batchnorm(model)


SINGLE_PROCESS = Processes()


def was_restarted() -> bool:
    """True if torchrun has restarted the processes because one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Join the process group of torchrun. Yields this process's `Processes`, or SINGLE_PROCESS without torchrun.

    In the block, only rank 0 prints. A UserError in one process ends all processes and is reported once: the first
    process that raises it raises it here, the others exit silently with status 2. Processes that torchrun restarts
    exit as well, because a restart does not correct a user's error.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield SINGLE_PROCESS
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))  # torchrun's store outlives the processes
    error_key = f"sca_caption {os.environ['TORCHELASTIC_RUN_ID']}: a user's mistake"
    if store.check([error_key]):
        raise SystemExit(2)
    if size > 1:
        gpus = torch.cuda.device_count()
        if gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
        # A prefix per attempt, because the store still has the addresses of processes that died.
        attempt = PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=size)
    try:
        with silenced() if rank else contextlib.nullcontext():
            yield Processes(rank, size)
    except UserError:
        if store.compare_set(error_key, "", str(rank)) == str(rank).encode():
            raise
        raise SystemExit(2) from None
    except RuntimeError:  # raised while waiting for a process that has ended
        if store.check([error_key]):
            raise SystemExit(2) from None
        raise
    except KeyboardInterrupt as interrupt:
        if rank:
            raise SystemExit(143 if isinstance(interrupt, Terminated) else 130) from None
        raise
    if size > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield
