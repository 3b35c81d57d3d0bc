"""Laws of the forecast: more time never promises less, fewer images never promise more surely, nothing beyond 100 %."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fitwithin.candidate import Candidate
from fitwithin.files import decode
from fitwithin.planning.forecast import (
    FACTORS,
    Forecast,
    MeasuredPoint,
    forecast_point,
    make_forecast,
    slope,
)
from fitwithin.planning.halving import Halving
from fitwithin.planning.search import SearchCandidate
from fitwithin.planning.stats import Accuracy
from simulated.run import tries

seconds = st.floats(0.1, 1e6)
factors = st.floats(1.0, 100.0)


def point(gpu_s: float, correct: int, total: int) -> MeasuredPoint:
    return MeasuredPoint(gpu_s=gpu_s, accuracy=Accuracy(correct=correct, total=total))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[MeasuredPoint, MeasuredPoint]:
    """Two trainings, the second longer, on the same images."""
    total = draw(st.integers(1, 100_000))
    before_s, longer = draw(seconds), draw(st.floats(1.05, 16.0))
    before, last = (draw(st.integers(0, total)) for _ in range(2))
    return (
        point(before_s, before, total),
        point(before_s * longer, last, total),
    )


@tries(200)
@given(pairs(), factors, factors)
def test_more_time_never_promises_less(pair: tuple[MeasuredPoint, MeasuredPoint], one: float, other: float) -> None:
    less, more = (forecast_point(*pair, factor) for factor in sorted((one, other)))
    assert less.share <= more.share
    assert less.high <= more.high


@tries(200)
@given(pairs(), factors)
def test_the_interval_holds_the_estimate_within_0_and_100_percent(
    pair: tuple[MeasuredPoint, MeasuredPoint], factor: float
) -> None:
    found = forecast_point(*pair, factor)
    assert 0.0 <= found.low <= found.share <= found.high <= 1.0
    assert found.low < found.high
    assert found.share >= pair[1].accuracy.share


@tries(200)
@given(pairs(), factors, st.integers(2, 20))
def test_fewer_images_are_less_sure(pair: tuple[MeasuredPoint, MeasuredPoint], factor: float, times: int) -> None:
    many = [point(p.gpu_s, p.accuracy.correct * times, p.accuracy.total * times) for p in pair]
    few, sure = forecast_point(*pair, factor), forecast_point(*many, factor)
    assert sure.share == pytest.approx(few.share)
    assert sure.high - sure.low <= few.high - few.low + 1e-12


@tries(100)
@given(pairs(), st.floats(1.1, 100))
def test_further_ahead_is_less_sure(pair: tuple[MeasuredPoint, MeasuredPoint], factor: float) -> None:
    near, far = forecast_point(*pair, factor), forecast_point(*pair, factor * 1.5)
    assume(far.low > 0.0 and far.high < 1.0)
    assert far.high - far.low > near.high - near.low


def test_the_line_goes_through_both_trainings() -> None:
    """Where accuracy does grow with the logarithm of the time, the forecast is what comes."""

    def after(gpu_s: float) -> MeasuredPoint:
        return point(gpu_s, round(10_000 * (0.3 + 0.05 * math.log(gpu_s))), 10_000)

    for factor in (1.0, 2.0, 4.0):
        assert forecast_point(after(20), after(80), factor).share == pytest.approx(
            after(80 * factor).accuracy.share, abs=3e-4
        )


def test_the_interval_is_that_of_drawn_counts() -> None:
    """The oracle: counts drawn anew by the binomial law, the line laid through each pair, 2.5 and 97.5 %."""
    before, last = point(20, 700, 1000), point(80, 780, 1000)
    rng, further = np.random.default_rng(0), math.log(2) / math.log(4)
    drawn = [rng.binomial(1000, each.accuracy.share, 200_000) / 1000 for each in (before, last)]
    low, high = np.quantile((1 + further) * drawn[1] - further * drawn[0], (0.025, 0.975))
    found = forecast_point(before, last, 2.0)
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))


@tries(200)
@given(st.lists(st.tuples(seconds, st.integers(0, 500)), max_size=5))
def test_it_says_why_there_is_no_forecast(trainings: list[tuple[float, int]]) -> None:
    found = make_forecast([point(s, correct, 500) for s, correct in trainings])
    assert found.why.endswith(".")
    if not found.forecasts:
        assert "No forecast: " in found.why
        return
    assert found.doubling_low is not None
    assert found.doubling_low > 0
    assert [each.factor for each in found.forecasts] == list(FACTORS)
    assert all(each.share >= found.points[-1].accuracy.share for each in found.forecasts)


def test_from_a_gain_that_may_be_chance_there_is_no_forecast() -> None:
    few = [point(10, 90, 100), point(40, 93, 100)]
    many = [point(p.gpu_s, p.accuracy.correct * 100, 10_000) for p in few]
    assert make_forecast(few).forecasts == ()
    assert "No forecast: with 100 validation images this gain may be chance." in make_forecast(few).why
    found = make_forecast(reversed(many))
    assert found.points == tuple(many)
    assert found.doubling == pytest.approx(0.015)
    assert [each.share for each in found.forecasts] == [pytest.approx(0.945), pytest.approx(0.96)]


def test_where_all_images_are_right_no_gain_can_be_seen() -> None:
    found = make_forecast([point(10, 800, 1000), point(40, 1000, 1000)])
    assert found.forecasts == ()
    assert "No forecast: all 1,000 validation images are right" in found.why
    assert found.doubling == pytest.approx(0.1)


def test_where_the_line_passes_100_percent_it_says_so() -> None:
    found = make_forecast([point(10, 8000, 10_000), point(40, 9800, 10_000)])
    assert [each.share for each in found.forecasts] == [1.0, 1.0]
    assert found.why.endswith("Here the line even passes 100 %, so growth must slow down.")
    found = make_forecast([point(10, 8000, 10_000), point(40, 8400, 10_000)])
    assert "100 %" not in found.why


def test_from_one_training_alone_there_is_no_forecast() -> None:
    one = point(10, 90, 100)
    assert "one training only" in make_forecast([one]).why
    assert "never validated" in make_forecast([]).why
    assert "equally long" in make_forecast([one, one]).why
    assert make_forecast([one]).doubling is None


@pytest.mark.parametrize(("correct", "total"), [(3, 2), (0, 0)])
def test_a_point_refuses_nonsense(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        point(1.0, correct, total)


@tries(50)
@given(pairs())
def test_a_forecast_comes_back_from_its_json(pair: tuple[MeasuredPoint, MeasuredPoint]) -> None:
    found: Forecast = make_forecast(pair)
    assert decode(Forecast, asdict(found)) == found


@tries(50)
@given(pairs())
def test_the_search_goes_by_the_same_line(pair: tuple[MeasuredPoint, MeasuredPoint]) -> None:
    """What Halving takes a final training to be worth: there another second gains ``min_gain``, or it is longer."""
    candidate = Candidate(model="a", train_px=160, precision="amp")
    search = Halving([SearchCandidate(candidate=candidate)], budget_s=1.0, min_gain=0.5)
    for rung, each in enumerate(pair):
        trial = search._new_trial(candidate, rung, each.gpu_s, "")
        search.trials.append(trial)
        search.tell(trial.number, each.accuracy)
    worth_s = search.worth_s(candidate)
    per_e = 100 * slope(*pair)
    assert worth_s == pytest.approx(max(pair[1].gpu_s, per_e * 3600 / 0.5))
