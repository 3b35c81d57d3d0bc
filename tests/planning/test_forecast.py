"""Laws of the outlook: more time never promises less, fewer images never promise more surely, nothing beyond 100 %."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fitwithin.candidate import Candidate
from fitwithin.files import decode
from fitwithin.planning.forecast import FACTORS, Forecast, Point, forecast, outlook, slope
from fitwithin.planning.halving import Halving
from fitwithin.planning.search import SearchCandidate
from fitwithin.planning.stats import Score
from simulation import tries

seconds = st.floats(0.1, 1e6)
factors = st.floats(1.0, 100.0)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Point, Point]:
    """Two trainings, the second longer, on the same images."""
    total = draw(st.integers(1, 100_000))
    before_s, longer = draw(seconds), draw(st.floats(1.05, 16.0))
    before, last = (draw(st.integers(0, total)) for _ in range(2))
    return (
        Point(gpu_s=before_s, correct=before, total=total),
        Point(gpu_s=before_s * longer, correct=last, total=total),
    )


@tries(200)
@given(pairs(), factors, factors)
def test_more_time_never_promises_less(pair: tuple[Point, Point], one: float, other: float) -> None:
    less, more = (forecast(*pair, factor) for factor in sorted((one, other)))
    assert less.share <= more.share
    assert less.high <= more.high


@tries(200)
@given(pairs(), factors)
def test_the_interval_holds_the_estimate_within_0_and_100_percent(pair: tuple[Point, Point], factor: float) -> None:
    found = forecast(*pair, factor)
    assert 0.0 <= found.low <= found.share <= found.high <= 1.0
    assert found.low < found.high
    assert found.share >= pair[1].share


@tries(200)
@given(pairs(), factors, st.integers(2, 20))
def test_fewer_images_are_less_sure(pair: tuple[Point, Point], factor: float, times: int) -> None:
    many = [Point(gpu_s=p.gpu_s, correct=p.correct * times, total=p.total * times) for p in pair]
    few, sure = forecast(*pair, factor), forecast(*many, factor)
    assert sure.share == pytest.approx(few.share)
    assert sure.high - sure.low <= few.high - few.low + 1e-12


@tries(100)
@given(pairs(), st.floats(1.1, 100))
def test_further_ahead_is_less_sure(pair: tuple[Point, Point], factor: float) -> None:
    near, far = forecast(*pair, factor), forecast(*pair, factor * 1.5)
    assume(far.low > 0.0 and far.high < 1.0)
    assert far.high - far.low > near.high - near.low


def test_the_line_goes_through_both_trainings() -> None:
    """Where accuracy does grow with the logarithm of the time, the forecast is what comes."""

    def after(gpu_s: float) -> Point:
        return Point(gpu_s=gpu_s, correct=round(10_000 * (0.3 + 0.05 * math.log(gpu_s))), total=10_000)

    for factor in (1.0, 2.0, 4.0):
        assert forecast(after(20), after(80), factor).share == pytest.approx(after(80 * factor).share, abs=3e-4)


def test_the_interval_is_that_of_drawn_counts() -> None:
    """The oracle: counts drawn anew by the binomial law, the line laid through each pair, 2.5 and 97.5 %."""
    before, last = Point(gpu_s=20, correct=700, total=1000), Point(gpu_s=80, correct=780, total=1000)
    rng, further = np.random.default_rng(0), math.log(2) / math.log(4)
    drawn = [rng.binomial(1000, point.share, 200_000) / 1000 for point in (before, last)]
    low, high = np.quantile((1 + further) * drawn[1] - further * drawn[0], (0.025, 0.975))
    found = forecast(before, last, 2.0)
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))


@tries(200)
@given(st.lists(st.tuples(seconds, st.integers(0, 500)), max_size=5))
def test_it_says_why_it_foretells_nothing(trainings: list[tuple[float, int]]) -> None:
    found = outlook([Point(gpu_s=s, correct=correct, total=500) for s, correct in trainings])
    assert found.why.endswith(".")
    if not found.forecasts:
        reasons = ("Nothing can be told", "do not tell that from nothing", "images are right: they can show no gain")
        assert any(reason in found.why for reason in reasons)
        return
    assert found.doubling_low is not None
    assert found.doubling_low > 0
    assert [each.factor for each in found.forecasts] == list(FACTORS)
    assert all(each.share >= found.points[-1].share for each in found.forecasts)


def test_a_gain_that_images_cannot_tell_from_nothing_foretells_nothing() -> None:
    few = [Point(gpu_s=10, correct=90, total=100), Point(gpu_s=40, correct=93, total=100)]
    many = [Point(gpu_s=p.gpu_s, correct=p.correct * 100, total=10_000) for p in few]
    assert outlook(few).forecasts == ()
    assert "100 validation images do not tell that from nothing" in outlook(few).why
    found = outlook(reversed(many))
    assert found.points == tuple(many)
    assert found.doubling == pytest.approx(0.015)
    assert [each.share for each in found.forecasts] == [pytest.approx(0.945), pytest.approx(0.96)]


def test_where_all_images_are_right_no_gain_can_be_seen() -> None:
    found = outlook([Point(gpu_s=10, correct=800, total=1000), Point(gpu_s=40, correct=1000, total=1000)])
    assert found.forecasts == ()
    assert "All 1,000 validation images are right" in found.why
    assert found.doubling == pytest.approx(0.1)


def test_a_line_that_passes_100_percent_is_told() -> None:
    found = outlook([Point(gpu_s=10, correct=8000, total=10_000), Point(gpu_s=40, correct=9800, total=10_000)])
    assert [each.share for each in found.forecasts] == [1.0, 1.0]
    assert found.why.endswith("The line passes 100 % by then, so growth must slow down.")
    found = outlook([Point(gpu_s=10, correct=8000, total=10_000), Point(gpu_s=40, correct=8400, total=10_000)])
    assert "100 %" not in found.why


def test_one_training_alone_tells_nothing() -> None:
    one = Point(gpu_s=10, correct=90, total=100)
    assert "one training only" in outlook([one]).why
    assert "never validated" in outlook([]).why
    assert "equally long" in outlook([one, one]).why
    assert outlook([one]).doubling is None


@pytest.mark.parametrize(("gpu_s", "correct", "total"), [(0.0, 1, 2), (-1.0, 1, 2), (1.0, 3, 2), (1.0, 0, 0)])
def test_a_point_refuses_nonsense(gpu_s: float, correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="is no training"):
        Point(gpu_s=gpu_s, correct=correct, total=total)


@tries(50)
@given(pairs())
def test_an_outlook_comes_back_from_its_json(pair: tuple[Point, Point]) -> None:
    found: Forecast = outlook(pair)
    assert decode(Forecast, asdict(found)) == found


@tries(50)
@given(pairs())
def test_the_search_goes_by_the_same_line(pair: tuple[Point, Point]) -> None:
    """What Halving takes a final training to be worth: there another second gains ``min_gain``, or it is longer."""
    before, last = pair
    candidate = Candidate(model="a", train_px=160, precision="amp")
    search = Halving([SearchCandidate(candidate=candidate)], budget_s=1.0, min_gain=0.5)
    for rung, point in enumerate(pair):
        trial = search._made(candidate, rung, point.gpu_s, "")
        search.trials.append(trial)
        search.tell(trial.number, Score(correct=point.correct, total=point.total))
    worth_s = search.worth_s(candidate)
    per_e = 100 * slope(before.gpu_s, before.share, last.gpu_s, last.share)
    assert worth_s == pytest.approx(max(last.gpu_s, per_e * 3600 / 0.5))
