"""How much memory this process holds, read from the kernel or the driver; and the one place that recognises
out-of-memory."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fitwithin.errors import DeviceError, DeviceFull, OutOfMemory

SAMPLE_S = 0.01


class Sampler:
    """A thread that reads a memory gauge every ``every_s`` seconds and keeps its largest value."""

    def __init__(self, gauge: Callable[[], int], every_s: float = SAMPLE_S) -> None:
        self.peak = 0
        self._gauge = gauge
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-sampler", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.read()

    def read(self) -> int:
        """The gauge now; it counts towards the peak."""
        value = self._gauge()
        self.peak = max(self.peak, value)
        return value


def status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


class DriverGauge:
    """This process's memory on a GPU as the driver counts it, through NVML; to be made before CUDA starts.

    Where the driver does not list this process (another PID namespace), the growth of the whole device's use counts: an
    upper bound, as long as no other process gives memory back.
    """

    def __init__(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            self._base = {
                pynvml.nvmlDeviceGetUUID(h): (h, int(pynvml.nvmlDeviceGetMemoryInfo(h).used)) for h in handles
            }
        except pynvml.NVMLError as error:
            raise DeviceError(
                f"the driver's memory count cannot be read ({error}); --memory-accounting allocator does without it"
            ) from error
        self._nvml = pynvml
        self._pid = os.getpid()
        self._listed: bool | None = None
        #: The least that this process could ever have come to hold: its own and what was free.
        self.min_available_bytes = sys.maxsize

    def select(self, uuid: str) -> None:
        """Look at the device that torch knows by this UUID; NVML's own numbering ignores CUDA_VISIBLE_DEVICES."""
        for name, (handle, base) in self._base.items():
            if name.removeprefix("GPU-") == uuid.removeprefix("GPU-"):
                self._handle = handle
                self._used_before = base
                return
        raise DeviceError(f"the driver does not list the device {uuid}; --memory-accounting allocator does without it")

    def read(self) -> int:
        """Bytes held by this process now."""
        own = self._own()
        free = int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).free)
        self.min_available_bytes = min(self.min_available_bytes, own + free)
        return own

    def num_other_processes(self) -> int:
        """How many processes of others use the device now, as far as the driver shows them."""
        listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return sum(not _is_sibling_process(int(process.pid)) for process in listed if process.pid != self._pid)

    def _own(self) -> int:
        if self._listed is not False:
            for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == self._pid and process.usedGpuMemory:
                    self._listed = True
                    return int(process.usedGpuMemory)
            self._listed = self._listed or False
        return max(0, int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used) - self._used_before)


def _is_sibling_process(pid: int) -> bool:
    """Whether that process has the same parent as this one: the server forks all workers of a run."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return int(stat.rpartition(")")[2].split()[1]) == os.getppid()
    return False


_MIB = 2**20


def asked_bytes(size: int) -> int:
    """The bytes that PyTorch's allocator asks the driver for when no cached block serves a request of ``size`` bytes
    (c10/core/CachingDeviceAllocator.h: kSmallSize, kSmallBuffer, kMinLargeAlloc, kLargeBuffer, kRoundLarge)."""
    if size <= _MIB:
        return 2 * _MIB
    if size < 10 * _MIB:
        return 20 * _MIB
    return -(-size // (2 * _MIB)) * 2 * _MIB


def required_limit_bytes(trace: Iterable[Mapping[str, Any]], reserved_bytes: int) -> int:
    """The least limit under which the allocator's recorded history passes without giving memory back.

    Before the allocator maps new pages for a request it checks that its memory plus the *whole* request stay within the
    limit, though a part of the request may lie in its own pages (CUDACachingAllocator.cpp, alloc_block). So a size can
    fail below the limit; with this figure memory is a line up to the limit.

    Args:
        trace: the entries of ``torch.cuda.memory._snapshot()["device_traces"]``, oldest first.
        reserved_bytes: what the allocator held when the history began.
    """
    held = before = demanded = reserved_bytes
    mapped = False
    for entry in trace:
        action, size = entry["action"], int(entry["size"])
        if action in ("segment_map", "segment_alloc"):
            before = before if mapped else held
            held += size
            mapped = True
            demanded = max(demanded, held)
        elif action in ("segment_unmap", "segment_free"):
            held -= size
        elif action == "alloc":
            if mapped:
                demanded = max(demanded, before + asked_bytes(size))
            mapped = False
    return demanded


@contextmanager
def guarded(
    kinds: tuple[type[Exception], ...], words: tuple[str, ...], taken_by_others: Callable[[], bool]
) -> Iterator[None]:
    """Turn a failed allocation, known by one of ``kinds`` or ``words``, into OutOfMemory.

    Raises:
        OutOfMemory: an allocation failed; DeviceFull if the memory was ``taken_by_others``.
    """
    try:
        yield
        return
    except (RuntimeError, SystemError, MemoryError) as error:
        # A recording that is broken off complains too, of what came after: the cause is its context.
        causes = (error.__context__, error)
        found = [str(each) for each in causes if isinstance(each, kinds) or any(word in str(each) for word in words)]
        if not found:
            raise
        cause: BaseException | None = error
        while cause is not None:  # its frames would keep all tensors of the work that failed
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
    if taken_by_others():
        raise DeviceFull("other processes hold so much of the device's memory that the cap could not be reached")
    lines = found[0].strip().splitlines()
    raise OutOfMemory(f"the memory cap was reached ({lines[0][:200] if lines else 'no details'})")
