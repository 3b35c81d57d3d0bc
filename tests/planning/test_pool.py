"""The laws of what is tried where nobody named it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwithin import recipe as recipes
from fitwithin.data.dataset import DataFacts
from fitwithin.planning import prior
from fitwithin.planning.pool import SIZES, Machine, Pool, Task, expected_best, least_s, make_pool, sizes_for

GIB = 2**30

TABLE = prior.load()
FAST = recipes.load("fast")
DATA = DataFacts(train=8_000, val=900, test=4_000, classes=10)

machines = st.builds(
    Machine, kind=st.sampled_from(["cuda", "cpu"]), dense=st.floats(0.3, 20), depthwise=st.floats(0.3, 20)
)


def pool(
    seconds: float, machine: Machine | None = None, *, data_px: int = 224, named: bool = False, **more: Any
) -> Pool:
    names = more.pop("names", TABLE.tried)
    task = Task(
        data=more.pop("data", DATA),
        data_px=data_px,
        recipe=FAST,
        machine=machine or Machine(kind="cuda"),
        seconds=seconds,
        memory_bytes=more.pop("memory_bytes", 6 * GIB),
        profile_share=0.1 if seconds < 600 else 0.05,
        **more,
    )
    return make_pool(TABLE, names, sizes_for(data_px), task, named=named)


def best(found: Pool) -> float:
    return max(prospect.logit(found.seconds) for prospect in found.taken)


def test_a_short_time_pays_for_one_backbone_and_hours_for_dozens() -> None:
    counts = [len(pool(seconds).taken) for seconds in (80.0, 590.0, 4 * 3600.0)]
    assert counts[0] == 1
    assert 2 <= counts[1] <= 12
    assert counts[2] >= 24


@settings(deadline=None)
@given(machines, st.floats(20, 20_000), st.integers(32, 600))
def test_images_are_not_enlarged_and_one_size_is_taken(machine: Machine, seconds: float, data_px: int) -> None:
    found = pool(seconds, machine, data_px=data_px)
    assert len(found.sizes) == 1
    assert found.sizes[0] <= data_px
    assert found.taken == found.prospects[: len(found.taken)], "the best expected first"
    assert all(prospect.reason for prospect in found.prospects)
    assert len({prospect.model for prospect in found.prospects}) == len(found.prospects)


@settings(deadline=None)
@given(machines, st.floats(30, 5_000), st.floats(1.1, 10))
def test_more_time_or_a_faster_machine_never_promises_less(machine: Machine, seconds: float, times: float) -> None:
    usual = best(pool(seconds, machine))
    assert best(pool(seconds * times, machine)) >= usual - 1e-9
    faster = replace(machine, dense=machine.dense / times, depthwise=machine.depthwise / times)
    assert best(pool(seconds, faster)) >= usual - 1e-9


def test_a_slow_machine_takes_smaller_images_and_no_heavier_backbones() -> None:
    fast, slow = pool(80.0), pool(80.0, Machine(kind="cuda", dense=20, depthwise=20))
    assert slow.sizes < fast.sizes
    macs = [TABLE.of(found.taken[0].model).macs for found in (fast, slow)]
    assert macs[1] <= macs[0]


def test_what_cannot_fit_within_the_cap_is_left_with_the_reason() -> None:
    found = pool(20_000.0, memory_bytes=GIB // 2)
    left = {prospect.model: prospect.reason for prospect in found.prospects if not prospect.taken}
    assert "would not fit within the memory cap" in left["vgg11_bn"]


@settings(deadline=None)
@given(st.floats(60, 5_000), st.floats(0.01, 2.0))
def test_what_is_taken_keeps_the_inference_budget_if_anything_does(seconds: float, limit_ms: float) -> None:
    found = pool(seconds, inference_ms=limit_ms)
    usual = pool(seconds)
    if found.taken[0].excess <= 1:
        assert all(prospect.excess <= 1 for prospect in found.taken)
        assert best(found) <= best(usual) + 1e-9, "a limit never promises more"
    else:
        assert len(found.taken) == 1
        assert "comes nearest" in found.why
        cheapest = min(pool(seconds, inference_ms=limit_ms, data_px=32).prospects, key=lambda each: each.excess)
        assert found.taken[0].excess <= cheapest.excess


def test_a_tighter_inference_budget_leaves_the_dearer_backbones_with_the_reason() -> None:
    usual = pool(3_600.0)
    quick, small = pool(3_600.0, inference_ms=0.05), pool(3_600.0, inference_bytes=60_000_000)
    for tight, words in ((quick, "an image is expected to take"), (small, "its weights take")):
        left = {prospect.model: prospect.reason for prospect in tight.prospects if not prospect.taken}
        assert words in left["resnet101"]
        assert {prospect.model for prospect in tight.taken} != {prospect.model for prospect in usual.taken}


def test_named_backbones_are_all_tried_the_best_expected_first() -> None:
    found = pool(90.0, names=("efficientnet_b1", "resnet18d", "no_such_net"), named=True)
    assert {prospect.model for prospect in found.taken} == {"efficientnet_b1", "resnet18d", "no_such_net"}
    assert found.taken[0].model == "resnet18d"


@settings(deadline=None)
@given(st.floats(60, 5_000), st.integers(2, 8))
def test_each_slot_has_work(seconds: float, slots: int) -> None:
    found = pool(seconds, slots=slots)
    assert len(found.taken) >= min(slots, 2) or seconds < 200


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 1)), min_size=1, max_size=8))
def test_the_best_of_several_is_expected_above_each(found: list[tuple[float, float]]) -> None:
    means, deviations = zip(*found, strict=True)
    assert expected_best(means, deviations) >= max(means) - 1e-2
    if len(found) == 1:
        assert expected_best(means, deviations) == pytest.approx(means[0], abs=1e-2)


def test_the_least_time_grows_with_the_machine() -> None:
    usual, slow = pool(80.0), pool(80.0, Machine(kind="cuda", dense=8, depthwise=8))
    assert 0 < least_s(usual, DATA) < least_s(slow, DATA)


def test_sizes_end_at_the_images_own() -> None:
    assert sizes_for(84)[-1] == 84
    assert sizes_for(4000) == SIZES
    assert max(sizes_for(200)) == 192
    assert sizes_for(20) == (32,)
