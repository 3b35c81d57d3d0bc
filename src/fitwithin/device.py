"""The seam to hardware: a memory cap, a peak, a clock and out-of-memory, for CUDA, for the CPU, and for laws in tests.

A device is opened once per process, before the first allocation. Out-of-memory is recognised here and nowhere else.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fitwithin.errors import DeviceError, OutOfMemory, UsageError
from fitwithin.meter import DriverGauge, Sampler, status_bytes
from fitwithin.units import format_size

if TYPE_CHECKING:
    import torch

#: Room between the allocator's limit and the cap for kernels that the driver loads later (measured growth after the
#: warm-up steps stays below it; :meth:`Cuda.settle` measures again).
SLACK_BYTES = 32 * 2**20


class Device(Protocol):
    """What a worker needs of its hardware."""

    name: str

    def cap(self, limit_bytes: int, accounting: str) -> None:
        """Bound this process's memory on the device; call once, before the first allocation."""

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
        self._base = 0

    def cap(self, limit_bytes: int, accounting: str) -> None:
        """Bound memory growth; starts the thread pools first, since under the limit no thread may start."""
        import torch

        del accounting  # one and the same on the CPU
        with torch.no_grad():  # starts OpenMP's threads
            torch.nn.functional.conv2d(torch.zeros(2, 3, 64, 64), torch.zeros(8, 3, 3, 3)).relu().sum()
        self._base = status_bytes("RssAnon")
        self._sampler = Sampler(lambda: status_bytes("RssAnon") - self._base)
        if platform.system() == "Linux":
            held = status_bytes("VmData")
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (held + limit_bytes, hard))

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

    def cap(self, limit_bytes: int, accounting: str) -> None:
        """Bound this process's memory on the device.

        Raises:
            DeviceError: the cap does not even cover the CUDA context, or the driver's count cannot be read.
        """
        import torch

        self._limit, self._accounting = limit_bytes, accounting
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


def parse(text: str) -> str:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means here.

    Raises:
        UsageError: the text names no kind of device.
        DeviceError: it names a GPU that is not there.
    """
    word = text.strip().lower()
    if word not in ("auto", "cpu", "cuda") and not (word.startswith("cuda:") and word[5:].isdigit()):
        raise UsageError(f"{text!r} is not a device; choose auto, cpu, cuda or cuda:N")
    if word == "cpu":
        return word
    count = cuda_count()
    if word == "auto":
        return "cuda:0" if count else "cpu"
    index = int(word[5:]) if ":" in word else 0
    if index >= count:
        seen = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
        raise UsageError(f"--device {word} was asked for and this machine shows {seen}; --device cpu trains without")
    return f"cuda:{index}"


def cuda_count() -> int:
    """How many CUDA devices torch could use, asked in a process of its own: here CUDA must not start."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        there = sum(line.startswith("GPU ") for line in listing.splitlines())
        return there if visible is None else min(there, len(visible.split(",")))
    return 0


def open_device(text: str) -> Cpu | Cuda:
    """The device called ``cpu`` or ``cuda:N``; in a worker process only."""
    return Cpu() if text == "cpu" else Cuda(int(text.partition(":")[2] or 0))


def cpu_name() -> str:
    """The processor's own name and how many of its cores this process may use."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model} ({cores()} cores)"


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
