"""The seam to hardware: a memory cap, a peak and out-of-memory, for CUDA (cuda.py) and for the CPU.

A device is opened once per process, before the first allocation.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from fitwithin.engine.cuda import Cuda
from fitwithin.engine.memory import Sampler, guarded, status_bytes
from fitwithin.machine import CpuMeter, DeviceName, cores, cpu_name

#: How libraries below torch say that an allocation failed; none of them has a type of its own. The last two are
#: CPython's, where a MemoryError got lost on its way (a cap of 1 MiB, while a model was built).
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "could not create a memory",
    "could not create a primitive",
    "can't start new thread",
    "returned NULL without setting an exception",
    "error return without exception set",
)

#: How long the other programs on the CPU are watched before the first step, and how often later, in seconds.
FIRST_LOOK_S, LOOK_EVERY_S = 0.1, 5.0


class Cpu:
    """The CPU: the cap bounds the growth of this process's own memory, enforced by the kernel (RLIMIT_DATA).

    The peak is the growth of its anonymous resident memory, read every 10 ms, and of the memory in which batches are
    made, without pages that were mapped before the cap. Memory-mapped images do not count: they are in the page cache.

    It computes with no more threads than other programs leave cores free. OpenMP's threads spin while they wait for
    each other, so with one thread too many all wait for whoever has no core (benchmarks/busy.py). OMP_NUM_THREADS
    fixes their number.
    """

    kind = "cpu"

    def __init__(self) -> None:
        self.name = cpu_name()
        self.torch_device = torch.device("cpu")
        self.amp_dtype = torch.bfloat16
        # 1.3 to 1.7 times faster for convolutions on the CPU (measured: 64 px, batch 64, two cores).
        self.memory_format = torch.channels_last
        self._sampler: Sampler | None = None
        self._limit = 0
        self._mapped = 0
        self._staged = 0
        self._meter: CpuMeter | None = None
        self._most_threads = 1
        self._watched_s = self._taken_s = 0.0

    def set_memory_cap(
        self, limit_bytes: int, accounting: str, non_allocator_bytes: int | None = None, staged_bytes: int = 0
    ) -> None:
        """Bound the growth of this process's memory; call once, before the first allocation.

        ``staged_bytes`` is the host's memory in which batches are made. OpenMP's threads are started first, since under
        the limit no thread may start.
        """
        del accounting, non_allocator_bytes  # there is one memory and one count of it
        self._limit = limit_bytes
        self._staged = staged_bytes
        _compute()
        base, held, shared = (status_bytes(field) for field in ("RssAnon", "VmData", "RssShmem"))

        def own_bytes() -> int:
            mapped = status_bytes("VmData") - held
            self._mapped = max(self._mapped, mapped)
            return min(status_bytes("RssAnon") - base, mapped) + status_bytes("RssShmem") - shared

        self._sampler = Sampler(own_bytes)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (held + max(0, limit_bytes - staged_bytes), hard))
        if "OMP_NUM_THREADS" not in os.environ:
            self._meter, self._most_threads = CpuMeter(os.getppid()), torch.get_num_threads()

    def share_cores(self) -> None:
        """Use as many threads as others leave cores free, by a look of FIRST_LOOK_S, later every LOOK_EVERY_S."""
        if self._meter is None:
            return
        if not self._watched_s:
            time.sleep(max(0.0, FIRST_LOOK_S - self._meter.measured_s))
        elif self._meter.measured_s < LOOK_EVERY_S:
            return
        threads = threads_beside(self._look(self._meter), self._most_threads, cores())
        if threads > torch.get_num_threads():
            self._start_threads(threads)
        else:
            torch.set_num_threads(threads)

    def cpu_taken(self) -> float:
        """The share of the cores for this process that others took since the memory cap was set."""
        if self._meter is not None:
            self._look(self._meter)
        return self._taken_s / self._watched_s / cores() if self._watched_s else 0.0

    def _look(self, meter: CpuMeter) -> float:
        """The cores that others left free since the last look."""
        seconds, found = meter.measured_s, meter.free()
        free = float(cores()) if found is None else found
        meter.restart()
        self._watched_s += seconds
        self._taken_s += seconds * max(0.0, cores() - free)
        return free

    def _start_threads(self, threads: int) -> None:
        """Start so many, with the limit out of the way; their stacks were counted before it was set."""
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        torch.set_num_threads(threads)
        _compute()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def non_allocator_bytes(self) -> int:
        """0: there is no allocator with a count of its own."""
        return 0

    def usable_bytes(self) -> int:
        """All of the cap."""
        return self._limit

    def record_allocations(self) -> None:
        """The C allocator keeps no history."""

    def needed_bytes(self) -> int:
        """What was mapped: the kernel's limit counts that, used or not."""
        return max(self.peak_bytes(), self._mapped + self._staged)

    def num_other_processes(self) -> int:
        """The CPU is everybody's."""
        return 0

    def update_limit(self) -> None:
        """Nothing lies outside the limit."""

    def peak_bytes(self) -> int:
        """The largest growth seen."""
        if self._sampler is None:
            return 0
        self._sampler.read()
        return self._sampler.peak

    def memory_taken_by_others(self) -> bool:
        """False: nobody can know."""
        return False

    def retries(self) -> int:
        """The C allocator does not count."""
        return 0

    def synchronize(self) -> None:
        """The CPU is always done."""

    def empty_cache(self) -> None:
        """There is nothing to give back."""

    def limit_run_ahead(self) -> None:
        """The CPU cannot run ahead of itself."""

    def read_async(self, value: torch.Tensor) -> Callable[[], float | None]:
        """It is there at once."""
        return lambda: float(value)

    def guard(self) -> AbstractContextManager[None]:
        """Turn torch's and Python's words for a failed allocation into OutOfMemory."""
        return guarded((torch.OutOfMemoryError, MemoryError), OUT_OF_MEMORY, self.memory_taken_by_others)


def threads_beside(free: float, most: int, cores: int) -> int:
    """The threads for which so many ``free`` cores have room: ``most`` of them where all ``cores`` of this job and its
    siblings are free, and one at the least."""
    return max(1, min(most, math.ceil(most * free / cores - 0.5)))


def _compute() -> None:
    """Something that all threads take part in: it starts them."""
    with torch.no_grad():
        torch.nn.functional.conv2d(torch.zeros(2, 3, 64, 64), torch.zeros(8, 3, 3, 3)).relu().sum()


def open_device(name: DeviceName) -> Cpu | Cuda:
    """The device of that name; only in a worker process, or to predict."""
    return Cuda(name.index) if name.is_cuda else Cpu()
