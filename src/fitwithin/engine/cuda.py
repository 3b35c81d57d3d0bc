"""A CUDA device: a cap on what the driver counts, or on PyTorch's allocator alone, its peak, and its out-of-memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from fitwithin.engine.memory import DriverGauge, Sampler, guarded, required_limit_bytes
from fitwithin.errors import DeviceError, DeviceFull, OutOfMemory
from fitwithin.units import format_size

#: Room between the allocator's limit and the cap for kernels that the driver loads later (measured growth after the
#: warm-up steps stays below it; :meth:`Cuda.update_limit` measures again).
SLACK_BYTES = 32 * 2**20

#: The same room where nobody knows yet what the kernels take. (H100, efficientnet_b0 at 224 px, whose depthwise kernels
#: are built for each shape: at least 152 MiB between two measurements.)
UNKNOWN_KERNELS_BYTES = 256 * 2**20

#: How often the driver's count is read. What lies outside the allocator only grows, and of the rest the allocator keeps
#: the peak, so rare readings do; frequent ones stop the thread that launches kernels.
DRIVER_SAMPLE_S = 0.1

#: cuBLAS and the driver have no error type for it.
OUT_OF_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Cuda:
    """A CUDA device. ``process`` bounds what the driver counts for this process (context, workspaces, allocator);
    ``allocator`` bounds PyTorch's caching allocator alone, as the challenge's organisers did.

    The allocator's limit is the cap less the memory outside it. That is measured, since the allocator does not know the
    context (pytorch#58466), and measured again once the kernels are loaded. The peak is the larger of the driver's
    largest count, and the memory outside plus the allocator's own peak.
    """

    kind = "cuda"

    def __init__(self, index: int) -> None:
        self.index = index
        self.torch_device = torch.device("cuda", index)
        self.amp_dtype = torch.float16
        self.memory_format = torch.contiguous_format
        self.name = f"cuda:{index}"
        self._limit = 0
        self._outside = 0
        self._room = SLACK_BYTES
        self._sampler: Sampler | None = None
        self._marks: deque[torch.cuda.Event] = deque()
        self._gauge: DriverGauge | None = None
        self._watched_from: int | None = None

    def set_memory_cap(
        self, limit_bytes: int, accounting: str, non_allocator_bytes: int | None = None, staged_bytes: int = 0
    ) -> None:
        """Bound this process's memory on the device; call once, before the first allocation.

        ``non_allocator_bytes`` is what an earlier process like this one came to hold outside the allocator. Kernels are
        loaded there while the first steps run. Where it is None, UNKNOWN_KERNELS_BYTES are kept free for them.

        Raises:
            DeviceError: the cap does not even cover the CUDA context, or the driver's count cannot be read.
        """
        del staged_bytes  # in the host's memory
        self._limit = limit_bytes
        self._outside = non_allocator_bytes or 0
        self._room = UNKNOWN_KERNELS_BYTES if non_allocator_bytes is None else SLACK_BYTES
        gauge = DriverGauge() if accounting == "process" else None  # before the context, for its baseline
        if not torch.cuda.is_available():
            raise DeviceError(
                "no CUDA device is to be seen here; `fitwithin doctor` says what is, --device cpu trains on it"
            )
        torch.cuda.set_device(self.index)
        # Everything runs on one stream that can be recorded; a second would have workspaces of its own.
        torch.cuda.set_stream(torch.cuda.Stream(self.index))  # type: ignore[no-untyped-call]
        properties = torch.cuda.get_device_properties(self.index)
        self.name = properties.name
        self._total = total = properties.total_memory
        if gauge is None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), self.index)
            return
        gauge.select(str(properties.uuid))
        torch.zeros(1, device=self.torch_device)
        torch.cuda.synchronize(self.index)
        self._gauge = gauge
        self._sampler = Sampler(gauge.read, DRIVER_SAMPLE_S)
        self.update_limit()

    def non_allocator_bytes(self) -> int:
        """The most measured for context and kernels; 0 under ``allocator``, which leaves them out."""
        return self._outside if self._gauge is not None else 0

    def usable_bytes(self) -> int:
        """What :meth:`needed_bytes` may come to: the cap, less the room for late kernels under ``process``."""
        return self._limit - (self._room if self._gauge is not None else 0)

    def record_allocations(self) -> None:
        """Begin to record the allocator's requests; each takes a little longer then."""
        torch.cuda.memory._record_memory_history(None)
        self._watched_from = int(torch.cuda.memory_reserved(self.index))
        torch.cuda.memory._record_memory_history("all", context=None, stacks="python", device=self.index)

    def needed_bytes(self) -> int:
        """The least cap under which everything since :meth:`record_allocations` would have passed; the peak where
        nothing is recorded."""
        if self._watched_from is None:
            return self.peak_bytes()
        trace = torch.cuda.memory._snapshot(self.index)["device_traces"][self.index]
        return self.non_allocator_bytes() + required_limit_bytes(trace, self._watched_from)

    def num_other_processes(self) -> int:
        """How many processes of others use the device; 0 under ``allocator``, where it is unknown."""
        return self._gauge.num_other_processes() if self._gauge is not None else 0

    def share_cores(self) -> None:
        """The CPU's threads do not set the pace."""

    def cpu_taken(self) -> float:
        """0: what others take of the CPU shows in the loader's pace."""
        return 0.0

    def update_limit(self) -> None:
        """Measure the memory outside the allocator and set the allocator's limit to what is left of the cap."""
        if self._gauge is None or self._sampler is None:
            return
        torch.cuda.synchronize(self.index)
        self._measure_outside(self._sampler)
        allowed = self._limit - self._outside - self._room
        if allowed < SLACK_BYTES:
            least = format_size(self._outside + self._room + 2 * SLACK_BYTES)
            raise OutOfMemory(
                f"{format_size(self._limit)} do not cover the CUDA context and kernels, {format_size(self._outside)}; "
                f"at least {least} are needed, or --memory-accounting allocator, which leaves them out"
            )
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / self._total), self.index)

    def _measure_outside(self, sampler: Sampler) -> None:
        self._outside = max(self._outside, sampler.read() - int(torch.cuda.memory_reserved(self.index)))

    def peak_bytes(self) -> int:
        """The most memory held so far, by the chosen accounting; never less than the driver saw.

        Under ``process`` it is a bound: the allocator's peak with all that lies outside it now.
        """
        reserved = int(torch.cuda.max_memory_reserved(self.index))
        if self._sampler is None:
            return reserved
        self._measure_outside(self._sampler)
        return max(self._sampler.peak, self._outside + reserved)

    def retries(self) -> int:
        """How often the allocator gave memory back and tried again, or refused.

        A library without its workspace silently takes a slower algorithm; while a step is recorded the allocator
        refuses at once. (H100, resnet18 amp at 806 images: 136 ms a step without its workspace, 61 with it.)
        """
        counts = torch.cuda.memory_stats(self.index)
        return int(counts.get("num_alloc_retries", 0)) + int(counts.get("num_ooms", 0))

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.index)

    def empty_cache(self) -> None:
        """Give unused blocks back, so that training's and evaluation's shapes do not add up."""
        torch.cuda.empty_cache()

    def limit_run_ahead(self) -> None:
        """Let the host run at most two steps ahead of the device, so that the pace seen is the device's."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)
        if len(self._marks) > 2:
            self._marks.popleft().synchronize()

    def read_async(self, value: torch.Tensor) -> Callable[[], float | None]:
        """Fetch a scalar without waiting: the returned function gives None until it is there."""
        host = torch.empty((), dtype=value.dtype, pin_memory=True)
        host.copy_(value, non_blocking=True)
        fetched = torch.cuda.Event()  # type: ignore[no-untyped-call]
        fetched.record()
        return lambda: float(host) if fetched.query() else None  # type: ignore[no-untyped-call]

    def guard(self) -> AbstractContextManager[None]:
        """Turn the allocator's and the driver's out-of-memory into OutOfMemory."""
        return guarded((torch.OutOfMemoryError,), OUT_OF_MEMORY, self.memory_taken_by_others)

    def memory_taken_by_others(self) -> bool:
        """Whether the card had less to give at some time than the cap allows: others hold it."""
        free_bytes, _ = torch.cuda.mem_get_info(self.index)
        if self._gauge is None:
            return free_bytes + int(torch.cuda.memory_reserved(self.index)) < self._limit - SLACK_BYTES
        self._gauge.read()
        return self._gauge.min_available_bytes < self._limit - SLACK_BYTES


#: Memory is held in blocks of this size.
HELD_BLOCK_BYTES = 2 * 2**20


def hold(index: int, free_bytes: int) -> torch.Tensor:
    """A tensor that takes the GPU's memory but ``free_bytes``, while it lives.

    Libraries choose algorithms by the free memory (cuDNN's workspaces, pytorch#69688), so a cap alone does not show
    what a smaller card would do.

    Raises:
        DeviceFull: less than that is free.
    """
    torch.cuda.set_device(index)
    torch.zeros(1, device="cuda")
    free, _ = torch.cuda.mem_get_info(index)
    if free < free_bytes:
        raise DeviceFull(
            f"only {format_size(free)} of the device are free, no card of {format_size(free_bytes)} can be emulated"
        )
    blocks = (free - free_bytes) // HELD_BLOCK_BYTES
    return torch.empty(blocks * HELD_BLOCK_BYTES, dtype=torch.uint8, device="cuda")
