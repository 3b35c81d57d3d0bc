"""What the answers of processes that work together come to."""

from __future__ import annotations

import pytest

from fitwithin.engine.results import Failure, Outcome, Probe, TrainResult
from fitwithin.engine.worker_process import merged


def passed(**of: int) -> Probe:
    return Probe(batch=4, passed=True, **of)  # type: ignore[arg-type]


def trained(peak_bytes: int, startup_s: float) -> TrainResult:
    return TrainResult(
        steps=9,
        planned_steps=9,
        epochs=1.0,
        ended="complete",
        best=None,
        validations=(),
        curve=(),
        peak_bytes=peak_bytes,
        startup_s=startup_s,
    )


def test_a_probe_needs_what_the_largest_of_them_needs() -> None:
    first = passed(peak_bytes=10, needed_bytes=9, usable_bytes=30, non_allocator_bytes=5)
    second = passed(peak_bytes=12, needed_bytes=8, usable_bytes=28, non_allocator_bytes=6)
    assert merged([first, second]) == passed(peak_bytes=12, needed_bytes=9, usable_bytes=28, non_allocator_bytes=6)
    assert merged([first]) is not None
    assert merged([first]) == first


def test_a_trial_is_told_by_the_first_with_the_peak_of_the_largest() -> None:
    assert merged([trained(10, 0.5), trained(20, 0.7)]) == trained(20, 0.5)


FULL = Probe(batch=4, passed=False, reason="the memory cap was reached")
CROWDED = Probe(batch=4, passed=False, reason="others hold it", memory_taken_by_others=True)
MEMORY, DIED, HUNG, ERROR, DESERTED = (
    Failure(kind=kind, reason=kind) for kind in ("memory", "died", "hung", "error", "deserted")
)


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ([passed(), FULL], FULL),
        ([FULL, CROWDED], CROWDED),
        ([DESERTED, FULL], FULL),
        ([DESERTED, DIED], DIED),
        ([DESERTED, MEMORY], MEMORY),
        ([DESERTED, HUNG], HUNG),
        ([ERROR, DESERTED], ERROR),
        ([None, DIED], DIED),
        ([trained(1, 1.0), ERROR], ERROR),
        ([DESERTED, None], Failure(kind="died", reason="deserted")),
    ],
)
def test_of_several_failures_the_one_that_tells_most_counts(told: list[Outcome | None], what: Outcome) -> None:
    assert merged(told) == what
