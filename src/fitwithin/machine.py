"""What this machine is: its processor and cores, its GPUs, and which device a name means here. CUDA is not started."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

from fitwithin.errors import UsageError


def parse(text: str, gpus: int = 1) -> str:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means here: the first of ``gpus`` in a row.

    Raises:
        UsageError: the text names no kind of device, or a GPU that is not there.
    """
    word = text.strip().lower()
    if word not in ("auto", "cpu", "cuda") and not (word.startswith("cuda:") and word[5:].isdigit()):
        raise UsageError(f"{text!r} is not a device; choose auto, cpu, cuda or cuda:N")
    if word == "cpu":
        return word
    count = cuda_count()
    if word == "auto" and not count:
        return "cpu"
    index = int(word[5:]) if ":" in word else 0
    seen = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
    if index >= count:
        raise UsageError(f"--device {word} was asked for and this machine shows {seen}; --device cpu trains without")
    if index + gpus > count:
        raise UsageError(
            f"--data-parallel {gpus} needs the devices cuda:{index} to cuda:{index + gpus - 1} and this machine shows "
            f"{seen}; --data-parallel {count - index} is the most that it can do from there"
        )
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
