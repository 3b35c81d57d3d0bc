"""What the allocator's history says it asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.engine.memory import asked_bytes, required_limit_bytes

MIB = 2**20


def entry(action: str, size: int) -> dict[str, object]:
    return {"action": action, "size": size}


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (9 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
    ],
)
def test_requests_are_rounded_as_the_allocator_rounds_them(size: int, asked: int) -> None:
    assert asked_bytes(size) == asked


def test_a_request_counts_whole_though_a_part_of_it_is_there() -> None:
    """20 MiB are mapped for a block of 100 MiB whose other 80 MiB lay free: 300 + 100 were asked for, 320 are held."""
    trace = [entry("segment_map", 20 * MIB), entry("alloc", 100 * MIB)]
    assert required_limit_bytes(trace, 300 * MIB) == 400 * MIB


def test_what_cached_blocks_serve_asks_for_nothing() -> None:
    assert required_limit_bytes([entry("alloc", 500 * MIB), entry("free_completed", 500 * MIB)], 7) == 7


def test_what_was_given_back_does_not_count_on() -> None:
    trace = [
        entry("segment_map", 40 * MIB),
        entry("alloc", 40 * MIB),
        entry("segment_unmap", 40 * MIB),
        entry("segment_map", 20 * MIB),
        entry("alloc", 5 * MIB),
    ]
    assert required_limit_bytes(trace, 0) == 40 * MIB


@given(
    st.lists(
        st.tuples(st.sampled_from(["segment_map", "segment_unmap", "alloc", "free_completed"]), st.integers(0, 9))
    ),
    st.integers(0, 9),
)
def test_it_is_never_less_than_what_was_held(steps: list[tuple[str, int]], start: int) -> None:
    held = most = start
    for action, size in steps:
        held += {"segment_map": size, "segment_unmap": -size}.get(action, 0)
        most = max(most, held)
    assert required_limit_bytes([entry(action, size) for action, size in steps], start) >= most
