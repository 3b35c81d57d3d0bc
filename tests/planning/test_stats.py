"""What so many images tell apart, by the confidence that the reports state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.planning.stats import Accuracy, confidence, format_tells_apart, tells_apart


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
