"""Laws of the schedule: within the plan, within the time, and down to a learning rate of exactly 0."""

import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fitwithin.engine.jobs import Stage
from fitwithin.recipe import SCHEDULES
from fitwithin.training.schedule import PRIOR_STEPS, Schedule, rate_factor


def cosine(step: int, total: int) -> float:
    """The factor of a cosine without warm-up."""
    return rate_factor(step, total, "cosine", 0.0)


def schedule_of(planned: int, ends_at: float, step_s: float = 1.0, **more: Any) -> Schedule:
    """A schedule of one image size."""
    stages = (Stage(since=0.0, px=0, step_s=step_s),)
    return Schedule(planned=planned, training_ends_at=ends_at, stages=stages, **more)


@given(st.integers(2, 10**6))
def test_the_rate_is_full_at_the_first_step_and_zero_at_the_last(total: int) -> None:
    assert cosine(0, total) == 1.0
    assert cosine(total - 1, total) == 0.0
    assert cosine(total + 5, total) == 0.0


@given(st.integers(2, 10**6), st.data())
def test_the_rate_never_rises(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 2))
    assert 0.0 <= cosine(step + 1, total) <= cosine(step, total) <= 1.0


def test_a_trial_of_one_step_trains() -> None:
    assert cosine(0, 1) == 1.0


def play(schedule: Schedule, paces: list[float], now: float = 0.0) -> tuple[list[float], float]:
    """Take steps of these paces (the last one goes on) until the schedule is done; the factors, and the time."""
    factors, at = [], 0
    schedule.observe(now)
    while not schedule.done:
        factors.append(schedule.lr_factor)
        now += paces[min(at, len(paces) - 1)]
        at += 1
        schedule.step += 1
        schedule.observe(now)
    return factors, now


paces = st.lists(st.floats(0.01, 30), min_size=1, max_size=60)


@given(st.integers(2, 300), st.floats(1, 600), st.floats(0.05, 5), paces)
def test_never_beyond_the_plan_and_annealed_unless_cut(
    planned: int, ends_at: float, planned_step_s: float, taken: list[float]
) -> None:
    schedule = schedule_of(planned, ends_at, planned_step_s)
    factors, now = play(schedule, taken)
    assert schedule.step == schedule.total <= planned
    assert len(factors) == schedule.step
    if not schedule.cut:
        assert factors[-1] == 0.0 or schedule.step == 1
    # Time can only be passed by the one step that was under way.
    assert now <= max(ends_at, 0) + max(taken)


@given(st.integers(2, 300), st.floats(0.05, 5), paces)
def test_a_frozen_schedule_keeps_its_steps_while_there_is_time(
    planned: int, planned_step_s: float, taken: list[float]
) -> None:
    """However slow it is: only the deadline ends it."""
    schedule = schedule_of(planned, 1e9, planned_step_s, frozen=True)
    factors, _ = play(schedule, taken)
    assert schedule.step == planned
    assert not schedule.cut
    assert factors == [cosine(step, planned) for step in range(planned)]


@given(st.integers(2, 50), st.floats(0.1, 5), st.booleans())
def test_when_time_is_over_the_trial_is_cut(planned: int, step_s: float, frozen: bool) -> None:
    schedule = schedule_of(planned, 0.0, step_s, frozen=frozen)
    schedule.step = 1
    schedule.observe(0.0)
    assert schedule.cut
    assert schedule.done
    assert schedule.step == 1


def test_overhead_alone_never_cuts() -> None:
    schedule = schedule_of(1000, 100.0)
    schedule.step = 90
    schedule.observe(99.0, 40.0)
    assert (schedule.total, schedule.cut, schedule.lr_factor) == (91, False, 0.0)


def test_overhead_shortens_what_is_left() -> None:
    def total(overhead_s: float) -> int:
        schedule = schedule_of(1000, 100.0)
        schedule.observe(0.0, overhead_s)
        return schedule.total

    assert (total(0.0), total(40.0)) == (100, 60)


@given(st.integers(60, 400), st.floats(0.05, 1), st.floats(1, 15))
@example(planned=60, step_s=1.0, slower=15.0)
def test_a_slow_start_does_not_shorten_for_good(planned: int, step_s: float, slower: float) -> None:
    """The first three steps (compilation, a cold loader) may be slow; if time allows for all steps, all are taken."""
    lost_s = 3 * (slower - 1) * step_s
    schedule = schedule_of(planned, planned * step_s * 1.02 + lost_s, step_s)
    factors, _ = play(schedule, [slower * step_s] * 3 + [step_s])
    assert schedule.step == planned
    assert factors[-1] == 0.0


def test_one_wild_reading_counts_ten_times_at_most() -> None:
    schedule = schedule_of(1000, 1e9)
    schedule.observe(0.0)
    schedule.step = 1
    schedule.observe(1e6)
    assert schedule.slowdown == (10 + PRIOR_STEPS) / (1 + PRIOR_STEPS)


def test_a_pause_is_no_step() -> None:
    schedule = schedule_of(1000, 1e9)
    schedule.observe(0.0)
    schedule.step = 1
    schedule.pause()
    schedule.observe(500.0)
    assert schedule.slowdown == 1.0


@given(st.floats(1.0, 3.0))
def test_a_machine_that_slows_down_gets_fewer_annealed_steps(slower: float) -> None:
    schedule = schedule_of(1000, 1020.0)
    factors, now = play(schedule, [1.0] * 300 + [slower])
    assert factors[-1] == 0.0
    assert now <= 1020.0 + slower
    assert schedule.step >= math.floor(300 + 700 / slower) - 30


@given(
    total=st.integers(2, 3000),
    shape=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 0.99),
)
def test_a_rate_rises_and_then_falls_to_exactly_nothing(total: int, shape: str, warmup: float) -> None:
    factors = [rate_factor(step, total, shape, warmup) for step in range(total)]
    assert factors[-1] == 0.0
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[0] > 0.0
    assert top <= warmup * total + 1


@given(step=st.integers(0, 500), total=st.integers(1, 500))
def test_without_a_warm_up_the_cosine_is_the_papers(step: int, total: int) -> None:
    paper = 0.5 * (1.0 + math.cos(math.pi * min(step, total - 1) / (total - 1))) if total > 1 else 1.0
    assert cosine(step, total) == paper


# --- progressive resizing ---------------------------------------------------------------------------------------------


def staged(
    planned: int, ends_at: float, *, open_ended: bool = False, frozen: bool = False, change_s: float = 0.0
) -> Schedule:
    """Three sizes: a second, two and four a step at 96, 128 and 160 px."""
    return Schedule(
        planned=planned,
        training_ends_at=ends_at,
        frozen=frozen,
        open_ended=open_ended,
        stages=(
            Stage(since=0.0, px=96, step_s=1.0),
            Stage(since=0.4, px=128, step_s=2.0, change_s=change_s),
            Stage(since=0.7, px=160, step_s=4.0, change_s=change_s),
        ),
    )


def act(schedule: Schedule, slower: float = 1.0, *, change_s: float = 0.0, since: int = 0) -> tuple[list[int], float]:
    """Take every step, ``slower`` than planned from step ``since`` on; the sizes, and the time."""
    sizes: list[int] = []
    now = 0.0
    schedule.observe(now)
    while not schedule.done:
        stage = schedule.stage
        if sizes and stage.px != sizes[-1]:
            now += change_s
        sizes.append(stage.px)
        now += stage.step_s * (slower if schedule.step >= since else 1.0)
        last = schedule.lr_factor
        schedule.step += 1
        schedule.observe(now)
    assert schedule.cut or last == 0.0
    return sizes, now


@given(st.integers(10, 2000))
def test_a_frozen_trial_spends_the_shares_of_its_steps_at_each_size(planned: int) -> None:
    sizes, _ = act(staged(planned, 1e9, frozen=True))
    counts = [sizes.count(px) for px in (96, 128, 160)]
    assert sizes == sorted(sizes)
    assert counts == [
        math.ceil(0.4 * planned),
        math.ceil(0.7 * planned) - math.ceil(0.4 * planned),
        planned - math.ceil(0.7 * planned),
    ]


@given(st.integers(50, 1500), st.floats(0.5, 4), st.floats(0, 1), st.floats(0, 5))
def test_whatever_the_pace_sizes_never_fall_and_time_is_kept(
    planned: int, slower: float, share: float, change_s: float
) -> None:
    """The whole trial at its planned pace takes 2.2 s a step."""
    for open_ended in (False, True):
        ends_at = 2.3 * planned + 2 * change_s
        schedule = staged(planned, ends_at, open_ended=open_ended, change_s=change_s)
        sizes, now = act(schedule, slower, change_s=change_s, since=int(share * planned))
        assert sizes == sorted(sizes)
        assert open_ended or len(sizes) <= planned
        assert now <= ends_at + 4 * slower
        assert sizes[-1] == 160 or schedule.cut


@given(st.integers(100, 1500), st.floats(0.4, 1.5))
def test_an_open_ended_trial_fills_its_time_at_any_steady_pace(planned: int, slower: float) -> None:
    ends_at = 2.2 * planned
    sizes, now = act(staged(planned, ends_at, open_ended=True), slower)
    assert now >= ends_at - 8 * slower, "time for a step or more was left over"
    assert len(sizes) >= 0.9 * planned / slower


def test_the_first_steps_at_a_size_say_nothing_of_the_pace() -> None:
    schedule = staged(1000, 1e9, open_ended=False)
    now = 0.0
    schedule.observe(now)
    while schedule.step < 420:
        now += 1.0 if schedule.step < 400 else 50.0 if schedule.step < 403 else 2.0
        schedule.step += 1
        schedule.observe(now)
    assert schedule.stage.px == 128
    assert schedule.slowdown == 1.0


@given(st.integers(40, 800), st.floats(0.3, 1.4), st.integers(1, 3), st.floats(0, 20))
def test_an_open_ended_trial_validates_its_last_epochs_once_each(
    planned: int, slower: float, validate_last_epochs: int, validation_s: float
) -> None:
    """The end moves on while validations take less than was kept for them; the last one is at the end."""
    epoch, kept_s = planned / 8, 1.5 * validation_s
    ends_at = planned + validate_last_epochs * kept_s
    schedule = schedule_of(planned, ends_at, open_ended=True)
    made: list[int] = []
    now = 0.0

    def due() -> list[int]:
        return schedule.validation_steps(epoch, validate_last_epochs)

    schedule.observe(now, validate_last_epochs * kept_s)
    while not schedule.done:
        now, schedule.step = now + slower, schedule.step + 1
        schedule.observe(now, kept_s * sum(mark > schedule.step for mark in due()))
        if schedule.validation_due(epoch, validate_last_epochs):
            made.append(schedule.step)
            now += validation_s
            schedule.pause()
    assert len(made) == validate_last_epochs
    assert made[-1] == schedule.total
    assert ends_at - 0.5 * validation_s - 3 * slower <= now <= ends_at + slower
