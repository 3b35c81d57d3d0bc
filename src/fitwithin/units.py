"""Bytes, seconds and counts: from text, and to text. No other module knows a suffix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from fitwithin.errors import UsageError

_BYTES = {"": 1, "b": 1}
for _power, _prefix in enumerate("kmgt", start=1):
    _BYTES |= {f"{_prefix}b": 1000**_power, f"{_prefix}ib": 1024**_power}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"


def size(value: str | int) -> int:
    """Bytes in a text such as ``6GiB``, ``512 MB`` or ``1073741824``, or in a number.

    Raises:
        UsageError: the text is no positive size.
    """
    text = str(value)
    match = re.fullmatch(_NUMBER + r"\s*([A-Za-z]*)", text.strip())
    factor = _BYTES.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a memory size; write a number and a unit, as in 6GiB, 512MiB or 6GB")
    n_bytes = float(match[1]) * factor
    if not math.isfinite(n_bytes):
        raise UsageError(f"a memory size of {match[1][:12]}... is too large; write something like 6GiB")
    if n_bytes < 1:
        raise UsageError(f"a memory size of {text!r} leaves nothing to work with; write something like 6GiB")
    return int(n_bytes)


def duration(value: str | float) -> float:
    """Seconds in a text such as ``3h``, ``1h30m``, ``90s``, ``5ms`` or ``90``, or in a number.

    Raises:
        UsageError: the text is no positive duration.
    """
    text = str(value)
    cleaned = text.strip().lower().replace(" ", "")
    if re.fullmatch(_NUMBER, cleaned):
        seconds = float(cleaned)
    else:
        parts = re.findall(_NUMBER + r"(ms|min|[smhd])", cleaned)
        if not parts or "".join(number + unit for number, unit in parts) != cleaned:
            raise UsageError(f"{text!r} is not a duration; write a number and a unit, as in 3h, 1h30m, 90s or 5ms")
        seconds = math.fsum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not math.isfinite(seconds):
        raise UsageError(f"a duration of {cleaned[:12]}... is too long; write something like 3h or 90s")
    if seconds <= 0:
        raise UsageError(f"a duration of {text!r} leaves no time; write something like 3h or 90s")
    return seconds


def rate(value: str | float) -> float:
    """The count a second in a text such as ``2000/s`` or ``2000``, or in a number.

    Raises:
        UsageError: the text is no positive rate.
    """
    cleaned = str(value).strip().lower().replace(" ", "").removesuffix("/s")
    if not re.fullmatch(_NUMBER, cleaned) or not 0 < float(cleaned) < math.inf:
        raise UsageError(f"{str(value)!r} is not a rate; write images per second, as in 2000/s")
    return float(cleaned)


def format_size(n_bytes: float) -> str:
    """``6.00 GiB``, ``310 MiB``, ``12 B``: binary units, three significant digits."""
    value = float(n_bytes)
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    digits = 0 if units[0] == "B" or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {units[0]}"


def format_duration(seconds: float) -> str:
    """``3h 00m``, ``4m 10s``, ``12.5s``, ``8.0ms``: two units at the most."""
    sign, value = ("-" if seconds < 0 else ""), abs(seconds)
    if value == 0:
        return "0s"
    if value < 0.9995:
        return f"{sign}{value * 1e3:.1f}ms"
    if value < 59.95:
        return f"{sign}{value:.1f}s"
    if round(value) < 3600:
        minutes, rest = divmod(round(value), 60)
        return f"{sign}{minutes}m {rest:02d}s"
    hours, rest = divmod(round(value / 60), 60)
    return f"{sign}{hours}h {rest:02d}m"


def format_count(count: float) -> str:
    """``23.7M``, ``1.3k``, ``812``: three significant digits."""
    for factor, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= factor:
            return f"{count / factor:.1f}{suffix}"
    return f"{count:.0f}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names in quotes, the first few of many."""
    found = list(names)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(repr(name) for name in found[:most]) + more
