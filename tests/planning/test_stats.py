"""The interval of a change on the same images, and what so many images tell apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.planning.stats import Accuracy, confidence, format_tells_apart, paired_interval, tells_apart


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


@given(total=st.integers(500, 100_000), percent=st.integers(60, 95))
def test_models_that_differ_by_more_are_told_apart_and_others_are_not(total: int, percent: int) -> None:
    """95 % either way are 97.5 % that one is better."""
    least = tells_apart(total, percent / 100)

    def sure(times: float) -> float:
        better, worse = (round(total * (percent / 100 + side * times * least / 2)) for side in (1, -1))
        found = confidence(Accuracy(correct=better, total=total), Accuracy(correct=worse, total=total))
        assert found is not None
        return found

    assert sure(0.8) < 0.975 < sure(1.2)


def test_it_is_said_in_points() -> None:
    assert tells_apart(341, 0.9) == pytest.approx(0.04503, abs=1e-5)
    assert format_tells_apart(12_341, 0.9) == (
        "12,341 validation images tell apart models that differ by 0.7 points or more, near 90 %"
    )
