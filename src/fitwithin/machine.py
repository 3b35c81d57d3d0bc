"""What this machine is: its processor and cores, its GPUs, and which device a name means here. CUDA is not started."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from fitwithin.errors import UsageError


def parse(text: str, gpus: int = 1, option: str = "--data-parallel", *, alike: bool = False) -> str:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means here: the first of ``gpus`` in a row.

    Args:
        option: what asked for so many.
        alike: whether they must be of one kind: then a profile made on one holds on the others.

    Raises:
        UsageError: the text names no kind of device, or a GPU that is not there, or they are not ``alike``.
    """
    word = text.strip().lower()
    if word not in ("auto", "cpu", "cuda") and not (word.startswith("cuda:") and word[5:].isdigit()):
        raise UsageError(f"{text!r} is not a device; choose auto, cpu, cuda or cuda:N")
    if word == "cpu":
        return word
    listed = _listed()
    count = _count(listed)
    if word == "auto" and not count:
        return "cpu"
    index = int(word[5:]) if ":" in word else 0
    seen = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
    if index >= count:
        raise UsageError(f"--device {word} was asked for and this machine shows {seen}; --device cpu trains without")
    if index + gpus > count:
        raise UsageError(
            f"{option} {gpus} needs the devices cuda:{index} to cuda:{index + gpus - 1} and this machine shows "
            f"{seen}; {option} {count - index} is the most that it can do from there"
        )
    if alike:
        _check_alike(listed, index, gpus)
    return f"cuda:{index}"


def _check_alike(listed: list[list[str]], first: int, gpus: int) -> None:
    """UsageError unless so many GPUs from the ``first`` on are of one kind.

    torch counts the fastest first unless CUDA_DEVICE_ORDER says otherwise, nvidia-smi by their place: where it matters
    which number is which, the number says nothing, and all that are visible must be alike.
    """
    kinds = _kinds(listed)
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        kinds = kinds[first : first + gpus]
    if len(found := list(dict.fromkeys(kinds))) > 1:
        named = ", ".join(f"{name} ({memory})" for name, memory in found)
        raise UsageError(
            f"--gpus {gpus} needs GPUs of one kind, since what is profiled on one is trained on another, and there are "
            f"{named}; name those of one kind with CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )


def _kinds(listed: list[list[str]]) -> list[tuple[str, str]]:
    """Name and memory of every visible GPU, by its number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = [row[0] for row in listed] if not visible else [word.strip() for word in visible.split(",")]
    by_word = {word: (row[2], row[3]) for row in listed for word in row[:2]}
    return [by_word[word] for word in words if word in by_word]


def cuda_count() -> int:
    """How many CUDA devices torch could use, asked in a process of its own: here CUDA must not start."""
    return _count(_listed())


def _count(listed: list[list[str]]) -> int:
    """How many of those listed are visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(listed) if visible is None else min(len(listed), len(visible.split(",")))


def _listed() -> list[list[str]]:
    """Number, UUID, name and memory of the machine's GPUs, asked for once, since nvidia-smi takes up to a second; none
    where it does not tell, or where none is visible."""
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
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def boot_id() -> str:
    """What identifies this boot of the system, whose monotonic clock all processes share; nothing where it has none."""
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
