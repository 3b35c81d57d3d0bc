"""Which batch an update takes: the largest, the one at the knee of the throughput, or a fixed one in parts. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fitwithin.units import format_count

#: A batch near the knee reaches at least this share of the best throughput.
KNEE = 0.97


def rated_batches(largest: int) -> list[int]:
    """The smaller batches whose throughput is compared with the largest one's: its half, and multiples of 8."""
    found = {largest // 8 * 8, largest // 2, largest // 16 * 8}
    return sorted(batch for batch in found if 2 <= batch < largest)


def knee(rates: Mapping[int, float]) -> tuple[int, str]:
    """The smallest batch that reaches KNEE of the best throughput, and why it is taken.

    Args:
        rates: images per second by batch.
    """
    best = max(rates, key=lambda batch: rates[batch])
    taken = min(batch for batch in rates if rates[batch] >= KNEE * rates[best])
    told = ", ".join(f"{format_count(rates[batch])} at {batch}" for batch in sorted(rates))
    return taken, f"{taken} reaches {rates[taken] / rates[best]:.0%} of the best throughput (images/s: {told})"


def parts(batch: int, largest: int) -> list[int]:
    """Into how many equal parts of two images or more a batch can be divided to fit ``largest``, the fewest first."""
    return [n for n in range(1, batch // 2 + 1) if batch % n == 0 and batch // n <= largest]
