"""The seam to hardware: a memory cap, a peak, a clock and out-of-memory, for CUDA, for the CPU, and for laws in tests.

A device is opened once per process, before the first allocation. Out-of-memory is recognised here and nowhere else.
"""

from __future__ import annotations

import platform
import resource
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fitwithin.errors import DeviceError, OutOfMemory
from fitwithin.machine import cpu_name
from fitwithin.meter import DriverGauge, Sampler, status_bytes
from fitwithin.units import format_size

if TYPE_CHECKING:
    import torch

#: Room between the allocator's limit and the cap for kernels that the driver loads later (measured growth after the
#: warm-up steps stays below it; :meth:`Cuda.settle` measures again).
SLACK_BYTES = 32 * 2**20


#: The allocator's last pages (20 MiB each) are not filled: on an H200 the largest batches of seven candidates ended 4
#: MiB above to 118 MiB below the cap less SLACK_BYTES, 54 below in the median.
EDGE_BYTES = 40 * 2**20


class Device(Protocol):
    """What a worker needs of its hardware."""

    name: str

    def cap(self, limit_bytes: int, accounting: str, outside_bytes: int = 0) -> None:
        """Bound this process's memory on the device; call once, before the first allocation.

        ``outside_bytes`` is what an earlier process like this one came to hold outside the allocator (0: unknown).
        """

    def outside_bytes(self) -> int:
        """What this process holds beside the allocator's memory: context, kernels; 0 where there is no allocator."""

    def usable_bytes(self) -> int:
        """The peak that a batch can be expected to reach: the cap, less what late kernels need or is never filled."""

    def settle(self) -> None:
        """Measure again what lies outside the allocator, after new kernels were loaded."""

    def peak_bytes(self) -> int:
        """The most memory held since :meth:`cap`, by the chosen accounting."""

    def retries(self) -> int:
        """How often the allocator had to give memory back and try again; 0 where there is no such thing."""

    def synchronize(self) -> None:
        """Wait until everything asked for is done."""

    def guard(self) -> Any:
        """A context that turns the backend's out-of-memory into :class:`OutOfMemory`."""

    def now(self) -> float:
        """The present on the device's clock, in seconds."""


class Cpu:
    """The CPU: the cap bounds the growth of this process's own memory, enforced by the kernel (RLIMIT_DATA).

    The peak is the growth of its anonymous resident memory, read every 10 ms and never above the enforced limit.
    Memory-mapped images do not count: they are the page cache's.
    """

    kind = "cpu"

    def __init__(self) -> None:
        import torch

        self.name = cpu_name()
        self.torch_device = torch.device("cpu")
        self.amp_dtype = torch.bfloat16
        self.memory_format = (
            torch.channels_last
        )  # 1.3 to 1.7 times faster for convolutions on the CPU (measured: 64 px, batch 64, two cores)
        self._sampler: Sampler | None = None
        self._base = self._limit = 0

    def cap(self, limit_bytes: int, accounting: str, outside_bytes: int = 0) -> None:
        """Bound memory growth; starts the thread pools first, since under the limit no thread may start."""
        import torch

        del accounting, outside_bytes  # there is one memory and one count of it
        self._limit = limit_bytes
        with torch.no_grad():  # starts OpenMP's threads
            torch.nn.functional.conv2d(torch.zeros(2, 3, 64, 64), torch.zeros(8, 3, 3, 3)).relu().sum()
        self._base = status_bytes("RssAnon")
        self._sampler = Sampler(lambda: status_bytes("RssAnon") - self._base)
        if platform.system() == "Linux":
            held = status_bytes("VmData")
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (held + limit_bytes, hard))

    def outside_bytes(self) -> int:
        """Nothing."""
        return 0

    def usable_bytes(self) -> int:
        """All of the cap."""
        return self._limit

    def settle(self) -> None:
        """Nothing lies outside the limit."""

    def peak_bytes(self) -> int:
        """The largest growth seen."""
        if self._sampler is None:
            return 0
        self._sampler.read()
        return self._sampler.peak

    def retries(self) -> int:
        """The C allocator does not count."""
        return 0

    def synchronize(self) -> None:
        """The CPU is always done."""

    def empty_cache(self) -> None:
        """There is none."""

    def throttle(self) -> None:
        """The CPU cannot run ahead of itself."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn torch's and Python's words for a failed allocation into OutOfMemory."""
        import torch

        told = None
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            told = str(error)
        except RuntimeError as error:
            if not _is_cpu_out_of_memory(error):
                raise
            told = str(error)
        if told is not None:  # outside the except block, so that the traceback lets go of its tensors
            raise OutOfMemory(f"the memory cap was reached ({_first_line(told)})")


#: How libraries below torch say that an allocation failed; none of them has a type of its own.
_CPU_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "could not create a memory",
    "could not create a primitive",
    "can't start new thread",
)
_CUDA_OUT_OF_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def _is_cpu_out_of_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in _CPU_OUT_OF_MEMORY)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no details"


class Cuda:
    """A CUDA device. ``process`` bounds what the driver counts for this process (context, workspaces, allocator);
    ``allocator`` bounds PyTorch's caching allocator alone, as the challenge's organisers did.

    The allocator's limit is the cap less what lies outside it, which is measured (the context is not known to the
    allocator, pytorch#58466) and measured again once the kernels are loaded. A thread reads the driver's count every
    10 ms; the peak is the larger of its reading and of what the allocator's own peak implies.
    """

    kind = "cuda"

    def __init__(self, index: int) -> None:
        import torch

        self.index = index
        self.torch_device = torch.device("cuda", index)
        self.amp_dtype = torch.float16
        self.memory_format = torch.contiguous_format
        self.name = f"cuda:{index}"
        self._limit = 0
        self._accounting = "process"
        self._outside = 0
        self._sampler: Sampler | None = None
        self._marks: deque[torch.cuda.Event] = deque()
        self._gauge: DriverGauge | None = None

    def cap(self, limit_bytes: int, accounting: str, outside_bytes: int = 0) -> None:
        """Bound this process's memory on the device.

        Kernels are loaded while the first steps run, outside the allocator: without ``outside_bytes`` to expect, a
        process at the edge of its cap was seen 117 MB above it for a moment.

        Raises:
            DeviceError: the cap does not even cover the CUDA context, or the driver's count cannot be read.
        """
        import torch

        self._limit, self._accounting, self._outside = limit_bytes, accounting, outside_bytes
        gauge = DriverGauge() if accounting == "process" else None  # before the context, for its baseline
        if not torch.cuda.is_available():
            raise DeviceError(
                "no CUDA device is to be seen here; `fitwithin doctor` says what is, --device cpu trains on it"
            )
        torch.cuda.set_device(self.index)
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
        self._sampler = Sampler(gauge.read)
        self.settle()

    def outside_bytes(self) -> int:
        """Context and kernels, the most that was measured; 0 under ``allocator``, which leaves them out."""
        return self._outside if self._gauge is not None else 0

    def usable_bytes(self) -> int:
        """The cap less EDGE_BYTES, and less SLACK_BYTES under ``process``."""
        return self._limit - EDGE_BYTES - (SLACK_BYTES if self._gauge is not None else 0)

    def settle(self) -> None:
        """Measure what lies outside the allocator and set the allocator's limit to what is left of the cap."""
        import torch

        if self._gauge is None or self._sampler is None:
            return
        torch.cuda.synchronize(self.index)
        outside = self._sampler.read() - torch.cuda.memory_reserved(self.index)
        self._outside = max(self._outside, outside)
        allowed = self._limit - self._outside - SLACK_BYTES
        if allowed < SLACK_BYTES:
            least = format_size(self._outside + 3 * SLACK_BYTES)
            raise OutOfMemory(
                f"{format_size(self._limit)} do not cover the CUDA context and kernels, {format_size(self._outside)}; "
                f"at least {least} are needed, or --memory-accounting allocator, which leaves them out"
            )
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / self._total), self.index)

    def peak_bytes(self) -> int:
        """The peak by the chosen accounting."""
        import torch

        reserved = int(torch.cuda.max_memory_reserved(self.index))
        if self._sampler is None:
            return reserved
        self._sampler.read()
        return max(self._sampler.peak, self._outside + reserved)

    def retries(self) -> int:
        """The allocator's own count of retries."""
        import torch

        return int(torch.cuda.memory_stats(self.index).get("num_alloc_retries", 0))

    def synchronize(self) -> None:
        """Wait for the device."""
        import torch

        torch.cuda.synchronize(self.index)

    def empty_cache(self) -> None:
        """Give unused blocks back, so that training's and evaluation's shapes do not add up."""
        import torch

        torch.cuda.empty_cache()

    def throttle(self) -> None:
        """Let the host run at most two steps ahead of the device, so that the pace seen is the device's."""
        import torch

        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)
        if len(self._marks) > 2:
            self._marks.popleft().synchronize()

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn the allocator's and the driver's out-of-memory into OutOfMemory."""
        import torch

        told = None
        try:
            yield
        except torch.OutOfMemoryError as error:
            told = str(error)
        except RuntimeError as error:
            # cuBLAS and the driver have no type for it; a batch too large for a kernel shows as NOT_SUPPORTED.
            if not any(words in str(error) for words in _CUDA_OUT_OF_MEMORY):
                raise
            told = str(error)
        if told is not None:
            raise OutOfMemory(f"the memory cap was reached ({_first_line(told)})")


def open_device(text: str) -> Cpu | Cuda:
    """The device called ``cpu`` or ``cuda:N``; in a worker process only."""
    return Cpu() if text == "cpu" else Cuda(int(text.partition(":")[2] or 0))
