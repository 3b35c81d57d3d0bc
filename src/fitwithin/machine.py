"""This machine's processor and GPUs, and the names of devices. CUDA is not started here."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fitwithin.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DeviceName:
    """A device by its name: the CPU, or the GPU that torch counts as ``index``. As text it is ``cpu`` or ``cuda:1``."""

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, text: str | DeviceName) -> DeviceName:
        """The device called ``cpu``, ``cuda`` or ``cuda:1``, there or not; UsageError for any other text."""
        if isinstance(text, DeviceName):
            return text
        kind, colon, index = text.strip().lower().partition(":")
        if (kind, colon) == ("cpu", "") or (kind == "cuda" and (index.isdecimal() or not colon)):
            return cls(kind=kind, index=int(index or 0))
        raise UsageError(f"{text!r} is not a device; choose auto, cpu, cuda or cuda:N")

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.kind == "cuda"

    def next(self, places: int) -> DeviceName:
        """The device so many places further. There is only one CPU."""
        return replace(self, index=self.index + places) if self.is_cuda else self

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.is_cuda else "cpu"


CPU = DeviceName(kind="cpu")


def resolve_device(
    text: str | DeviceName, gpus: int = 1, option: str = "--data-parallel", *, same_kind: bool = False
) -> DeviceName:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means here: the first of ``gpus`` in a row.

    Args:
        option: the option that asked for this number of GPUs.
        same_kind: whether they must be of one kind, so that a profile made on one holds on the others.

    Raises:
        UsageError: the text names no kind of device, or a GPU that this machine lacks, or the kinds differ.
    """
    auto = isinstance(text, str) and text.strip().lower() == "auto"
    device = DeviceName(kind="cuda") if auto else DeviceName.parse(text)
    if not device.is_cuda:
        return device
    listed = _listed()
    count = _count(listed)
    if auto and not count:
        return CPU
    seen = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
    if device.index >= count:
        raise UsageError(f"--device {text} was given, but this machine shows {seen}; give --device cpu")
    if device.index + gpus > count:
        raise UsageError(
            f"{option} {gpus} needs the devices {device} to {device.next(gpus - 1)}, but this machine shows {seen}; "
            f"give {option} {count - device.index} at most"
        )
    if same_kind:
        _check_same_kind(listed, device.index, gpus)
    return device


def _check_same_kind(listed: list[list[str]], first: int, gpus: int) -> None:
    """UsageError unless so many GPUs from the ``first`` on are of one kind.

    torch counts the fastest GPU first, nvidia-smi by slot. Their numbers agree with CUDA_DEVICE_ORDER=PCI_BUS_ID;
    otherwise all visible GPUs must be of one kind.
    """
    kinds = _kinds(listed)
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        kinds = kinds[first : first + gpus]
    if len(found := list(dict.fromkeys(kinds))) > 1:
        named = ", ".join(f"{name} ({memory})" for name, memory in found)
        raise UsageError(
            f"--gpus {gpus} needs GPUs of one kind, because a profile made on one is used on the others, but this "
            f"machine has {named}; choose GPUs of one kind with CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )


def _kinds(listed: list[list[str]]) -> list[tuple[str, str]]:
    """Name and memory of every visible GPU, by its number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = [row[0] for row in listed] if not visible else [word.strip() for word in visible.split(",")]
    by_word = {word: (row[2], row[3]) for row in listed for word in row[:2]}
    return [by_word[word] for word in words if word in by_word]


def cuda_count() -> int:
    """How many CUDA devices are visible."""
    return _count(_listed())


def _count(listed: list[list[str]]) -> int:
    """How many of those listed are visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(listed) if visible is None else min(len(listed), len(visible.split(",")))


def _listed() -> list[list[str]]:
    """Number, UUID, name and memory of the machine's GPUs; none if nvidia-smi fails, or if none is visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[part.strip() for part in line.split(",")] for line in listing.splitlines() if line.count(",") == 3]


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
    """The cores this process may use: those that it may run on, and no more than a container's quota of time."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(found, int(_quota() or found)))


def _quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """The CPUs whose time this process's control groups may use, by cgroup v2 or v1; None without a limit."""
    quotas = []
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "cpu" if controllers else root
            inner = top / own.lstrip("/")
            for folder in (inner, *inner.parents):
                quotas += _quota_of(folder)
                if folder == top:
                    break
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    """The quota that stands in a control group's folder, if any."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return [int(quota) / int(period)]
    with suppress(OSError, ValueError):
        quota_us = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return [quota_us / period_us] if quota_us > 0 else []
    return []


class CpuMeter:
    """How many of the cores that this process may run on are free for a run: idle, or used by the run itself.

    To the run belong ``root`` and all processes that descend from it. Linux counts what every core and every process
    does (proc(5): stat); elsewhere nothing is known.
    """

    def __init__(self, root: int | None = None, proc: Path = Path("/proc")) -> None:
        self._root = os.getpid() if root is None else root
        self._proc = proc
        self._before = self._read()

    def restart(self) -> None:
        """Measure from now on."""
        self._before = self._read()

    @property
    def measured_s(self) -> float:
        """Seconds since the measurement began."""
        return time.monotonic() - self._before[0]

    def free(self) -> float | None:
        """The cores that others left free on average since the measurement began; None where that cannot be known."""
        (began_at, busy, idle, own), (now, busy_now, idle_now, own_now) = self._before, self._read()
        seconds, spent = now - began_at, busy_now - busy + idle_now - idle
        if seconds <= 0 or spent <= 0:  # some sandboxes show zeros
            return None
        taken = max(0.0, busy_now - busy - max(0.0, own_now - own)) / seconds
        return max(0.0, spent / seconds - taken)

    def _read(self) -> tuple[float, float, float, float]:
        """The instant, the seconds that our cores were busy and idle, and those that the run's processes computed."""
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        busy = idle = 0
        with suppress(OSError, ValueError):
            allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            for line in (self._proc / "stat").read_text(encoding="ascii").splitlines():
                name, _, counts = line.partition(" ")
                if name in allowed:
                    ticks = [int(count) for count in counts.split()[:8]]  # what guests take is part of the first
                    idle += ticks[3] + ticks[4]
                    busy += sum(ticks) - ticks[3] - ticks[4]
        return time.monotonic(), busy * tick_s, idle * tick_s, self._own_ticks() * tick_s

    def _own_ticks(self) -> int:
        """Of the root, of what descends from it, and of their children that have ended."""
        ticks: dict[int, int] = {}
        parents: dict[int, int] = {}
        for folder in self._proc.glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):
                # From the third field of proc(5) on: state, parent; the times are fields 14 to 17.
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
                ticks[int(folder.name)] = sum(int(field) for field in fields[11:15])
        own: dict[int, bool] = {self._root: True}

        def belongs(pid: int) -> bool:
            if pid not in own:
                own[pid] = False  # a parent's number can be used anew while we read
                own[pid] = pid in parents and belongs(parents[pid])
            return own[pid]

        return sum(count for pid, count in ticks.items() if belongs(pid))


def boot_id() -> str:
    """The name of this boot of the system, all of whose processes share one monotonic clock; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def process_started_at() -> float:
    """The instant this process started, on the monotonic clock; the present where the system does not tell."""
    now = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        since_boot = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        # Field 22 of proc(5), counted from the state after the parenthesis: start in clock ticks since boot.
        age_s = since_boot - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return now
    return now - max(0.0, age_s)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, even by kill -9; elsewhere this does nothing."""
    with suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
