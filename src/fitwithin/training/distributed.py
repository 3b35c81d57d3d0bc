"""Processes that train one candidate together, a GPU each: each makes its share of an update, so all weights are equal.

Gradients travel between the devices (NCCL; on the CPU gloo), decisions between the hosts (gloo, a few numbers): the
first process measures, decides, validates and saves, and the others follow. So all take the same number of steps, and
none waits for a collective operation that never comes. Why not DistributedDataParallel:
docs/decisions/0010-data-parallel.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import Seat
from fitwithin.errors import PeerLost
from fitwithin.machine import cores
from fitwithin.training.schedule import Schedule

Item = TypeVar("Item")

#: The engine ends a waiting process at its deadline; the libraries' own limits must not come first.
MAX_WAIT = timedelta(days=1)

#: Defaults of environment variables. All processes are on this machine, so they speak through its loopback interface.
#: NVLink's multicast takes buffers on every device, outside the allocator and under the cap. NCCL must not register the
#: memory of recorded operations: with growing segments Megatron-LM met illegal memory accesses and refuses both.
SETTINGS = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0", "NCCL_GRAPH_REGISTER": "0"}

#: Seconds between looks for the first process, which may have to wait for the device.
LOOK_S = 0.01


class ProcessGroup:
    """The processes of one job as one of them sees them. In a group of one nothing is exchanged or waited for."""

    def __init__(self, seat: Seat) -> None:
        self.rank = seat.rank
        self.size = seat.world_size
        self.is_main = seat.is_main
        #: The group of the GPUs; None where gradients are in the hosts' memory, which is the default group's.
        self._devices: dist.ProcessGroup | None = None

    def open(self, device: Cpu | Cuda) -> None:
        """Connect the devices, once the cap is set: what NCCL takes counts as memory outside the allocator."""
        if self.size == 1 or not isinstance(device, Cuda):
            return
        self._devices = cast(
            "dist.ProcessGroup", dist.new_group(backend="nccl", timeout=MAX_WAIT, device_id=device.torch_device)
        )
        dist.all_reduce(torch.zeros(1, device=device.torch_device), group=self._devices)  # connections and buffers
        device.update_limit()

    # --- between the devices

    def average(self, loss: torch.Tensor, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """Give every parameter the mean of all processes' gradients, and return the mean of their losses.

        One operation for each type of number (for most backbones float32 alone), after the backward pass, on a flat
        copy of the gradients. It runs on the stream of the step, so it can be recorded with it.
        """
        if self.size == 1:
            return loss
        flat_by: dict[torch.dtype, list[torch.Tensor]] = {}
        for value in (loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)):
            flat_by.setdefault(value.dtype, []).append(value)
        with torch.no_grad(), _together():
            for values in flat_by.values():
                flat = torch.cat([value.reshape(-1) for value in values]).div_(self.size)
                dist.all_reduce(flat, group=self._devices)
                parts = torch.split(flat, [value.numel() for value in values])
                for value, part in zip(values, parts, strict=True):
                    value.copy_(part.view(value.shape))
        return loss

    def broadcast_weights(self, net: nn.Module) -> None:
        """Copy the first process's weights and statistics to all."""
        if self.size == 1:
            return
        with torch.no_grad(), _together():
            for value in net.state_dict().values():
                if value.numel():
                    dist.broadcast(value, 0, group=self._devices)

    # --- between the hosts

    def broadcast(self, values: Sequence[int]) -> list[int]:
        """The first process's whole numbers, in all processes."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.int64)
        with _together():
            dist.broadcast(shared, 0)
        return [int(value) for value in shared.tolist()]

    def max(self, value: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.int64)
        with _together():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def any(self, yes: bool) -> bool:
        """Whether it is true in one of them."""
        return bool(self.max(yes))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the first one; nothing in the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_main else None
        with _together():
            dist.gather_object(value, found, 0)
        return found or []

    def lockstep(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches, as long as every process has one."""
        for batch in batches:
            if self.any(False):
                return
            yield batch
        self.any(True)

    def sync_schedule(self, schedule: Schedule, due: int, nonfinite: bool) -> tuple[int, bool]:
        """What is due and whether a value is not finite, as in the first process; all take over its schedule."""
        if self.size == 1:
            return due, nonfinite
        total, cut, stage, due, first = self.broadcast([*schedule.state(), due, nonfinite])
        schedule.sync(total, bool(cut), stage)
        return due, bool(first)


#: A process that does its job by itself.
SINGLE_PROCESS = ProcessGroup(Seat())


def init_process_group(seat: Seat, jobs_per_host: int = 1) -> ProcessGroup:
    """Connect to the other processes of a job; the processes of ``jobs_per_host`` such jobs share the host's cores.

    Call it before the memory cap, under which no thread can start on the CPU, and after the loaders were forked.

    Raises:
        PeerLost: one of them is gone.
    """
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        threads = min(threads, cores())  # OpenMP does not know a container's quota
    # Two that have two threads each on two cores take ten times as long.
    torch.set_num_threads(max(1, threads // (seat.world_size * jobs_per_host)))
    if seat.world_size == 1:
        return SINGLE_PROCESS
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with _together():
        store = dist.FileStore(seat.rendezvous, seat.world_size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=seat.rank, world_size=seat.world_size, timeout=MAX_WAIT)
    return ProcessGroup(seat)


def await_first(seat: Seat) -> None:
    """Wait until the first process has opened the rendezvous."""
    while not seat.is_main and not Path(seat.rendezvous).exists():
        time.sleep(LOOK_S)


@contextmanager
def _together() -> Iterator[None]:
    """Raise PeerLost where another process is gone, for which gloo has no type."""
    try:
        yield
    except RuntimeError as error:
        if "/gloo/" not in str(error):
            raise
        raise PeerLost("another process of the same job is gone") from error
