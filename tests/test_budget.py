"""A budget needs a cap and a time; whatever it holds is more than nothing."""

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.budget import Budget, Remaining
from fitwithin.errors import UsageError
from fitwithin.machine import process_started_at


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"memory_bytes": 0}, "--memory must be more than 0"),
        ({"memory_bytes": -1}, "--memory must be more than 0"),
        ({"time_s": None}, "give --time 3h"),
        ({"time_s": 0.0}, "--time must be more than 0, got 0"),
        ({"gpu_time_s": -2.5}, "--gpu-time must be more than 0, got -2.5"),
        ({"inference_ms": 0.0}, "--inference must be more than 0"),
        ({"throughput_per_s": -1.0}, "--throughput must be more than 0, got -1; give images per second"),
        ({"inference_bytes": 0}, "--inference-memory must be more than 0"),
        ({"accounting": "driver"}, "'driver' is not a memory accounting; choose from process, allocator"),
        ({"scope": "all"}, "'all' is not a scope; choose from total, candidate"),
    ],
)
def test_what_is_refused_and_how(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Budget(**{"memory_bytes": 1, "time_s": 1.0, **changes})


limits = st.one_of(st.none(), st.floats(1e-3, 1e9))


@given(limits, limits)
def test_the_tighter_limit_counts(time_s: float | None, gpu_time_s: float | None) -> None:
    if time_s is None and gpu_time_s is None:
        return
    limit_s = Budget(memory_bytes=1, time_s=time_s, gpu_time_s=gpu_time_s).limit_s()
    given_s = [value for value in (time_s, gpu_time_s) if value is not None]
    assert limit_s in given_s
    assert all(limit_s <= value for value in given_s)


@given(limits, limits)
def test_a_throughput_is_a_limit_on_the_time_of_an_image(inference_ms: float | None, per_s: float | None) -> None:
    found = Budget(memory_bytes=1, time_s=1.0, inference_ms=inference_ms, throughput_per_s=per_s).image_ms
    assert (found is None) == (inference_ms is None and per_s is None)
    if found is not None:
        assert inference_ms is None or found <= inference_ms
        assert per_s is None or 1e3 / found >= per_s * (1 - 1e-9)


def test_what_remains_is_the_least_of_both() -> None:
    assert Remaining(time_s=5.0, gpu_time_s=math.inf).usable_s == 5.0
    assert Remaining(time_s=5.0, gpu_time_s=-1.0).usable_s == -1.0


def test_this_process_started_before_now_and_not_before_the_machine() -> None:
    started_at = process_started_at()
    assert 0 <= started_at <= time.monotonic()
    assert process_started_at() == pytest.approx(started_at, abs=0.1)


def test_without_proc_a_process_starts_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> str:
        raise OSError

    monkeypatch.setattr("pathlib.Path.read_text", missing)
    before = time.monotonic()
    assert before <= process_started_at() <= time.monotonic()
