"""What this machine can do for fitwithin, and what is missing."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

from fitwithin.files import cache_root
from fitwithin.machine import cores, cpu_name, cuda_count
from fitwithin.units import format_size

_NEEDED = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "typer", "rich", "jinja2")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked."""

    name: str
    found: str
    ok: bool = True
    #: Whether a run needs it.
    needed: bool = True
    #: What to do where it is missing.
    hint: str = ""


def examine() -> list[Finding]:
    """All findings; CUDA is asked in a process of its own, so that it does not start in this one."""
    return [
        Finding(name="python", found=platform.python_version(), ok=sys.version_info >= (3, 11)),
        *(_package(name, f"pip install {name}") for name in _NEEDED),
        Finding(name="processor", found=cpu_name(), ok=cores() > 1, needed=False),
        _memory_cap(),
        *_gpus(),
        _package("nvidia-ml-py", "--memory-accounting process needs it: pip install nvidia-ml-py", needed=False),
        _cache(),
        _package("pyarrow", "Parquet and saved data sets need it: pip install 'fitwithin[data]'", needed=False),
        _package("scikit-learn", "the demo needs it: pip install 'fitwithin[demo]'", needed=False),
    ]


def _package(name: str, hint: str, *, needed: bool = True) -> Finding:
    try:
        return Finding(name=name, found=metadata.version(name), needed=needed)
    except metadata.PackageNotFoundError:
        return Finding(name=name, found="not installed", ok=False, needed=needed, hint=hint)


def _memory_cap() -> Finding:
    enforced = platform.system() == "Linux"
    found = "enforced by the kernel (RLIMIT_DATA)" if enforced else "measured only, not enforced"
    return Finding(name="memory cap on the CPU", found=found, ok=enforced, needed=False)


def _gpus() -> list[Finding]:
    count = cuda_count()
    if not count:
        return [Finding(name="CUDA", found="no device; runs use the CPU", ok=False, needed=False)]
    code = (
        "import torch; print(torch.version.cuda, torch.backends.cudnn.version());"
        "[print(torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory, sep='|')"
        " for i in range(torch.cuda.device_count())]"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    lines = asked.stdout.strip().splitlines()
    if asked.returncode or not lines:
        last = asked.stderr.strip().splitlines()[-1:] or ["no answer"]
        hint = "compare the driver's version with the CUDA version of torch"
        return [Finding(name="CUDA", found=f"torch cannot use it: {last[0]}", ok=False, hint=hint)]
    findings = [Finding(name="CUDA", found=f"torch's CUDA and cuDNN {lines[0]}")]
    for number, line in enumerate(lines[1:]):
        name, _, total = line.partition("|")
        findings.append(Finding(name=f"cuda:{number}", found=f"{name}, {format_size(int(total))}"))
    return findings


def _cache() -> Finding:
    root = cache_root()
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Finding(name="cache", found=f"{root}, {format_size(free)} free", ok=free > 2**30, needed=False)
