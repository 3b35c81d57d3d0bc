"""A smaller size's profile from a larger one's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.results import Probe
from fitwithin.planning.cost import Workload, costs
from fitwithin.profiling.interpolate import interpolate_profile, interpolate_profiles, interpolate_step_s, largest
from fitwithin.profiling.profile import Profile
from simulated.run import profile, tries

FAST = recipes.load("fast")
DATA = DataFacts(train=8000, val=900, test=900, classes=10)
VIEWS = (128, 160, 192)


def at_160(**changed: object) -> Profile:
    """A profile at 160 px, measured at the sizes of progressive resizing."""
    found = profile()
    timing = replace(
        found.timing,
        step_s=0.02,
        step_low_s=0.019,
        step_high_s=0.021,
        dummy_step_s=0.018,
        stage_step_s={96: 0.010, 128: 0.014},
        stage_change_s={128: 0.3, 160: 0.4},
        eval_image_s={160: 1e-4, 192: 2e-4},
        eval_first_s={160: 0.1, 192: 0.2},
    )
    usual = replace(found, candidate=Candidate(model="resnet18", train_px=160, precision="amp"), timing=timing)
    return replace(usual, **changed)  # type: ignore[arg-type]


def test_what_was_measured_at_a_smaller_size_is_its_pace_there() -> None:
    large = at_160()
    small = interpolate_profile(large, replace(large.candidate, train_px=128), FAST, VIEWS)
    assert small is not None
    assert small.timing.step_s == 0.014
    assert small.timing.step_low_s < 0.014 < small.timing.step_high_s
    assert sorted(small.timing.stage_step_s) == [px for _, px in FAST.stages(128)][:-1]
    assert small.timing.stage_step_s[96] == 0.010
    assert small.timing.eval_image_s == {128: 1e-4, 160: 1e-4, 192: 2e-4}
    assert small.batch == large.batch
    assert small.quick
    assert "ran at 160 px" in small.batch_why
    workload = Workload(data=DATA, recipe=FAST, view_sizes=(160, 192))
    assert costs(small, replace(workload, view_sizes=VIEWS)).step_s < costs(large, workload).step_s


def test_another_backbone_a_larger_size_and_a_limit_of_memory_say_nothing() -> None:
    large = at_160()
    assert interpolate_profile(large, replace(large.candidate, train_px=128, model="resnet50"), FAST, VIEWS) is None
    assert interpolate_profile(large, replace(large.candidate, train_px=128, precision="fp32"), FAST, VIEWS) is None
    assert interpolate_profile(large, replace(large.candidate, train_px=192), FAST, VIEWS) is None
    assert interpolate_profile(large, large.candidate, FAST, VIEWS) is None
    full = Probe(batch=large.batch + 1, passed=False, reason="out of memory")
    assert (
        interpolate_profile(
            replace(large, probes=(*large.probes, full)), replace(large.candidate, train_px=128), FAST, VIEWS
        )
        is None
    )


def test_a_size_takes_after_the_nearest_larger_one() -> None:
    large = at_160()
    larger = at_160(candidate=replace(large.candidate, train_px=224), batch=64)
    wanted = [replace(large.candidate, train_px=px) for px in (96, 192, 256)]
    found = interpolate_profiles([larger, large], wanted, FAST, VIEWS)
    assert [(one.candidate.train_px, one.batch) for one in found] == [(96, large.batch), (192, 64)]


def test_each_backbone_is_measured_at_its_largest_size() -> None:
    grid = [Candidate(model=model, train_px=px, precision="amp") for model in ("a", "b") for px in (160, 128)]
    assert [(one.model, one.train_px) for one in largest(grid)] == [("a", 160), ("b", 160)]


@tries(200)
@given(
    st.dictionaries(st.integers(1, 12).map(lambda n: 32 * n), st.floats(1e-4, 1.0), min_size=1, max_size=4),
    st.integers(1, 48),
)
def test_paces_are_positive_and_pass_through_what_was_measured(paces: dict[int, float], eighths: int) -> None:
    rising = dict(zip(sorted(paces), sorted(paces.values()), strict=True))
    px = 8 * eighths
    found = interpolate_step_s(rising, px)
    assert found > 0
    below = [step_s for size, step_s in rising.items() if size <= px]
    above = [step_s for size, step_s in rising.items() if size >= px]
    assert not below or found >= max(below) * (1 - 1e-9)
    assert not above or found <= min(above) * (1 + 1e-9)
    for size, step_s in rising.items():
        assert interpolate_step_s(rising, size) == step_s


@pytest.mark.parametrize("known", [{96: 0.01, 160: 0.01}, {96: 0.012, 160: 0.01}])
def test_noise_gives_no_falling_line(known: dict[int, float]) -> None:
    assert interpolate_step_s(known, 128) >= 0.01
    assert 0 < interpolate_step_s(known, 64) <= known[96]
