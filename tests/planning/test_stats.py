"""The interval of a change on the same images."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fitwithin.planning.stats import paired_interval


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 100_000))
def test_the_interval_of_a_paired_change(lost: int, won: int, more: int) -> None:
    total = lost + won + more
    low, high = paired_interval(lost=lost, won=won, total=total)
    assert -1 <= low < (won - lost) / (total + 2) < high <= 1
    assert paired_interval(lost=won, won=lost, total=total) == (-high, -low)
    even = paired_interval(lost=lost, won=lost, total=2 * lost + more)
    assert even[0] < 0 < even[1]


def test_the_interval_is_that_of_a_textbook() -> None:
    """Approval by 944 of 1,600 people and later by 880 of them; 150 and 86 changed sides (A. Agresti, Categorical Data
    Analysis, 10.1.1: -0.059 to -0.021)."""
    low, high = paired_interval(lost=150, won=86, total=1600)
    assert (round(low, 3), round(high, 3)) == (-0.059, -0.021)
