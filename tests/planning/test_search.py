"""Laws of the search: it spends no more than it has, is fair, does not wait for nothing, and goes on as it was."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from fitwithin.candidate import Candidate
from fitwithin.planning.halving import ETA, MIN_OVERHEAD_RATIO, Halving, make_bracket
from fitwithin.planning.prior import LearningCurve
from fitwithin.planning.search import FINAL, Score, SearchCandidate, Trial
from fitwithin.planning.stats import Accuracy, FailedTrial, confidence, format_confidence
from simulated.run import tries

N_VAL = 1000

Truth = Callable[[Trial], Score]


def entrants(count: int, overhead_s: float = 0.0) -> list[SearchCandidate]:
    return [
        SearchCandidate(candidate=Candidate(model=f"model{n:04}", train_px=160, precision="amp"), overhead_s=overhead_s)
        for n in range(count)
    ]


def steady(best: int, *, fails: Sequence[int] = ()) -> Truth:
    """All learn with the logarithm of the time, ``best`` fastest of all, whatever the time."""

    def score(trial: Trial) -> Score:
        place = int(trial.candidate.model[5:])
        if place in fails:
            return FailedTrial(reason="simulated")
        skill = 1.0 if place == best else 0.9 - 0.0001 * place
        accuracy = skill * (1 - 0.5 / math.log(math.e + trial.seconds))
        return Accuracy(correct=round(accuracy * N_VAL), total=N_VAL)

    return score


@dataclass
class Played:
    """What a search did on some devices."""

    order: list[Trial] = field(default_factory=list)
    makespan_s: float = 0.0
    busy_s: float = 0.0
    least_left_s: float = math.inf


def play(search: Halving, truth: Truth, *, budget_s: float, gpus: int = 1) -> Played:
    """Hand trials to devices as they come free, until there is nothing to do."""
    told = Played()
    left_s, free, now = budget_s, gpus, 0.0
    at_work: list[tuple[float, int, Trial]] = []
    while not search.finished or at_work:
        while free and (trial := search.ask(left_s=left_s)) is not None:
            left_s -= trial.seconds
            free -= 1
            told.order.append(trial)
            told.busy_s += trial.seconds
            told.least_left_s = min(told.least_left_s, left_s)
            heapq.heappush(at_work, (now + trial.seconds, trial.number, trial))
        if not at_work:
            assert search.finished, "it waits for nothing"
            break
        now, _, trial = heapq.heappop(at_work)
        free += 1
        search.tell(trial.number, truth(trial))
    told.makespan_s = now
    return told


counts, budgets, devices = st.integers(1, 40), st.floats(1.0, 1e5), st.integers(1, 8)


@tries(100)
@given(counts, budgets, devices, st.floats(0, 20), st.data())
def test_halving_keeps_its_budget_and_its_ladder(
    count: int, budget_s: float, gpus: int, overhead_s: float, data: st.DataObject
) -> None:
    fails = data.draw(st.sets(st.integers(0, count - 1)))
    best = data.draw(st.integers(0, count - 1))
    search = Halving(entrants(count, overhead_s), budget_s=budget_s, devices=gpus)
    told = play(search, steady(best, fails=sorted(fails)), budget_s=budget_s, gpus=gpus)
    assert told.least_left_s >= -1e-6 * budget_s, "more was promised than there is"
    finals = [trial for trial in told.order if trial.final]
    failing = {search.entrants[n].candidate for n in fails}
    assert sum(trial.candidate not in failing for trial in finals) <= gpus
    by_candidate: dict[Candidate, list[Trial]] = {}
    for trial in told.order:
        assert trial.seconds > 0
        before = by_candidate.setdefault(trial.candidate, [])
        assert trial.previous == (before[-1].number if before and trial.candidate not in failing else None)
        before.append(trial)
    for trials in by_candidate.values():
        assert [trial.rung for trial in trials if not trial.final] == list(
            range(len([t for t in trials if not t.final]))
        )
    if search.bracket is not None:
        event(f"{len(search.bracket.counts)} rungs")
        for rung, seconds in enumerate(search.bracket.seconds):
            on = [trial for trial in told.order if trial.rung == rung]
            assert len(on) <= search.bracket.counts[rung]
            assert all(trial.seconds == seconds for trial in on), "candidates of a rung are compared after equal time"
    if finals and search.bracket is not None and not {one.candidate for one in search.admitted} <= failing:
        assert search.best is not None


@tries(100)
@given(counts, budgets, devices, st.floats(0, 20))
def test_where_some_are_left_out_no_device_is_idle_in_the_last_round_of_the_only_rung(
    count: int, budget_s: float, gpus: int, overhead_s: float
) -> None:
    search = Halving(entrants(count, overhead_s), budget_s=budget_s, devices=gpus)
    if search.bracket is None or len(search.bracket.counts) > 1 or search.bracket.counts[0] == count:
        return
    event("some are left out")
    assert search.bracket.counts[0] % gpus == 0


def test_of_two_devices_none_is_idle_because_a_tenth_candidate_takes_longer_to_start() -> None:
    tried = {}
    for gpus in (1, 2):
        admitted = [*entrants(9, 2.0), *entrants(16, 4.0)[9:]]
        search = Halving(admitted, budget_s=50.0, devices=gpus)
        assert search.bracket is not None
        tried[gpus] = search.bracket.counts
    assert tried == {1: (9,), 2: (8,)}


@tries(50)
@given(st.integers(2, 40), devices, st.data())
def test_the_fastest_learner_wins_and_all_others_have_their_reason(count: int, gpus: int, data: st.DataObject) -> None:
    best = data.draw(st.integers(0, count - 1))
    search = Halving(entrants(count), budget_s=10_000.0, devices=gpus)
    play(search, steady(best), budget_s=10_000.0, gpus=gpus)
    assert search.best is not None
    assert search.best.candidate == search.entrants[best].candidate
    assert search.best.final or gpus > 1, "in several shares it may be shorter than the rung before"
    out = [each.candidate for each in search.eliminations()]
    assert sorted(out) == sorted(entrant.candidate for place, entrant in enumerate(search.entrants) if place != best)
    assert all(each.reason for each in search.eliminations())


@tries(50)
@given(counts, budgets, devices, st.integers(0, 200))
def test_told_the_same_again_it_goes_on_as_it_was(count: int, budget_s: float, gpus: int, cut: int) -> None:
    """A run that was interrupted asks and tells once more what happened, and is where it was."""

    def fresh() -> Halving:
        return Halving(entrants(count, 0.5), budget_s=budget_s)

    first = fresh()
    whole = play(first, steady(0), budget_s=budget_s, gpus=1).order
    again, left_s = fresh(), budget_s
    for trial in whole[:cut]:
        assert again.ask(left_s=left_s) == trial
        left_s -= trial.seconds
        again.tell(trial.number, steady(0)(trial))
    rest = play(again, steady(0), budget_s=left_s, gpus=1).order
    assert whole[:cut] + rest == whole
    assert again.best == first.best


@tries(50)
@given(st.integers(2, 60), st.floats(10, 1e5), st.floats(0.01, 20))
def test_a_ladder_spends_its_budget_on_rungs_that_are_worth_it(count: int, budget_s: float, overhead_s: float) -> None:
    found = make_bracket(count, budget_s, overhead_s)
    assume(found is not None)
    assert found is not None
    assert found.total_s == pytest.approx(budget_s)
    assert found.seconds[0] >= MIN_OVERHEAD_RATIO * overhead_s
    assert found.counts[0] == count
    for (many, some), (short, longer) in zip(
        zip(found.counts, found.counts[1:], strict=False),
        zip(found.seconds, found.seconds[1:], strict=False),
        strict=True,
    ):
        assert some == -(-many // ETA)
        assert longer - overhead_s == pytest.approx(ETA * (short - overhead_s)), "so many times the steps"


@tries(30)
@given(st.integers(2, 30), st.floats(100, 1e4))
def test_more_devices_do_the_same_work_sooner(count: int, budget_s: float) -> None:
    alone = play(Halving(entrants(count, 0.1), budget_s=budget_s), steady(1), budget_s=budget_s)
    pair = play(Halving(entrants(count, 0.1), budget_s=budget_s, devices=2), steady(1), budget_s=budget_s, gpus=2)
    assert pair.busy_s <= alone.busy_s * (1 + 1e-9)
    assert pair.makespan_s <= alone.makespan_s


@tries(30)
@given(st.integers(2, 40), st.integers(1, 6), st.data())
def test_the_best_of_several_finals_is_handed_over(count: int, finals: int, data: st.DataObject) -> None:
    best = data.draw(st.integers(0, count - 1))
    search = Halving(entrants(count), budget_s=10_000.0, devices=finals)
    told = play(search, steady(best), budget_s=10_000.0, gpus=finals)
    last = [trial for trial in told.order if trial.final]
    if count <= finals:
        assert (search.bracket, len(last)) == (None, count), "each has devices of its own until the end"
        assert told.busy_s == pytest.approx(10_000.0)
    else:
        assert search.bracket is not None
        assert len(last) == min(finals, search.bracket.counts[-1])
        idle_s = 6_000.0 - search.bracket.total_s  # while the last trials of a rung end
        assert sum(trial.seconds for trial in last) == pytest.approx(4_000.0 + idle_s)
    assert len({round(trial.seconds, 6) for trial in last}) == 1
    assert search.best is not None
    assert search.best.candidate == search.entrants[best].candidate


@tries(100)
@given(st.integers(1, 40), st.floats(10.0, 1e5), st.integers(1, 8), st.floats(0, 20), st.data())
def test_side_by_side_all_is_over_in_time_and_the_finals_have_theirs(
    count: int, time_s: float, slots: int, overhead_s: float, data: st.DataObject
) -> None:
    """Devices that take a trial each until one instant: nobody's trial is cut by it, and no final by another trial."""
    fails = data.draw(st.sets(st.integers(0, count - 1)))
    early = data.draw(st.floats(0.5, 1.0))
    search = Halving(entrants(count, overhead_s), budget_s=slots * time_s, devices=slots)
    truth, now, at_work = steady(0, fails=sorted(fails)), 0.0, []
    while not search.finished or at_work:
        busy_s = math.fsum(ends_at - now for ends_at, _, _ in at_work)
        given = {"left_s": slots * (time_s - now) - busy_s, "time_left_s": time_s - now}
        if len(at_work) < slots and (trial := search.ask(**given)) is not None:
            assert trial.seconds <= (time_s - now) * (1 + 1e-9), "its time would be over before it ends"
            if trial.final and not any(other.final for other in search.trials[:-1]):
                assert now <= 0.6 * time_s * (1 + 1e-9) or search.bracket is None
                event("a ladder" if search.bracket is not None else "no ladder")
            heapq.heappush(at_work, (now + trial.seconds, trial.number, trial))
            continue
        if not at_work:
            break
        ends_at, number, trial = heapq.heappop(at_work)
        now += early * (ends_at - now)  # it may be through before its time is over
        search.tell(number, truth(trial))
    assert search.finished
    finals = [trial for trial in search.trials if trial.final]
    failing = {search.entrants[n].candidate for n in fails}
    assert sum(trial.candidate not in failing for trial in finals) <= slots
    if search.bracket is not None and len(fails) < count and overhead_s < 0.4 * time_s:
        assert finals
        assert max(trial.seconds for trial in finals) >= 0.4 * time_s * (1 - 1e-9)


def test_without_time_for_all_the_last_are_left_out() -> None:
    search = Halving(entrants(20, overhead_s=5.0), budget_s=200.0)
    play(search, steady(0), budget_s=200.0)
    tried = {trial.candidate for trial in search.trials}
    assert 2 <= len(tried) < 20
    assert tried == {entrant.candidate for entrant in search.entrants[: len(tried)]}
    left_out = [verdict for verdict in search.eliminations() if verdict.reason.startswith("left out")]
    assert len(left_out) == 20 - len(tried)


def test_with_time_for_one_only_it_is_trained_at_once() -> None:
    search = Halving(entrants(20, overhead_s=5.0), budget_s=12.0)
    told = play(search, steady(0), budget_s=12.0)
    assert [trial.final for trial in told.order] == [True]
    assert told.order[0].seconds == 12.0


def test_where_no_trial_could_be_validated_one_after_the_other_has_all_that_is_left() -> None:
    """On a machine far slower than profiled every short trial may end before its validation: that is not the end."""

    def told(trial: Trial) -> Score:
        validated = trial.final and trial.candidate.model == "model0001"
        return Accuracy(correct=90, total=N_VAL) if validated else FailedTrial(reason="its time was over")

    search = Halving(entrants(4), budget_s=100.0)
    finals = [trial for trial in play(search, told, budget_s=100.0).order if trial.final]
    assert [trial.candidate.model for trial in finals] == ["model0000"], "it took all that was left"
    again = Halving(entrants(4), budget_s=100.0)
    left_s = 100.0
    while (trial := again.ask(left_s=left_s)) is not None:
        left_s -= 0.1 * trial.seconds  # it fails early
        again.tell(trial.number, told(trial))
    assert [trial.candidate.model for trial in again.trials if trial.final] == ["model0000", "model0001"]
    assert again.best is not None
    assert again.best.final
    assert again.finished


def test_where_all_that_entered_failed_those_left_out_are_tried() -> None:
    search = Halving(entrants(20, overhead_s=5.0), budget_s=200.0)
    assert search.bracket is not None
    first, left_s = search.bracket.counts[0], 200.0
    while (trial := search.ask(left_s=left_s)) is not None:
        left_s -= 1.0  # it fails early
        works = trial.candidate.model == f"model{first:04}"
        search.tell(trial.number, Accuracy(correct=90, total=N_VAL) if works else FailedTrial(reason="it died"))
    assert first < 20
    assert search.best is not None
    assert search.best.candidate == search.entrants[first].candidate
    assert search.best.seconds == pytest.approx(200.0 - 2 * first), "all that is left"
    left_out = [verdict for verdict in search.eliminations() if verdict.reason.startswith("left out")]
    assert [verdict.candidate for verdict in left_out] == [one.candidate for one in search.entrants[first + 1 :]]


@pytest.mark.parametrize("rungs", [1, 2])
def test_what_a_final_training_that_fails_leaves_is_the_next_ones(rungs: int) -> None:
    search, fine, left_s = Halving(entrants(4 if rungs == 1 else 16), budget_s=100.0), steady(2), 100.0
    assert search.bracket is not None
    assert len(search.bracket.counts) == rungs
    while (trial := search.ask(left_s=left_s)) is not None:
        dies = trial.final and trial.candidate.model == "model0002"
        left_s -= 0.1 * trial.seconds if dies else trial.seconds
        well = Accuracy(correct=N_VAL, total=N_VAL) if trial.final else fine(trial)
        search.tell(trial.number, FailedTrial(reason="it died") if dies else well)
    died, final = (trial for trial in search.trials if trial.final)
    assert final.candidate.model == "model0000", "the second best"
    assert final.seconds == pytest.approx(0.9 * died.seconds)
    assert search.trials[(final.previous or 0) - 1].candidate == final.candidate, "its model is there to go on from"
    assert "in place of a final training that failed" in final.why
    assert search.best == final
    (told,) = (verdict for verdict in search.eliminations() if verdict.candidate == died.candidate)
    assert told.reason == "it died"
    assert (left_s, search.finished) == (pytest.approx(0.0), True)


def test_side_by_side_another_takes_the_place_of_a_final_training_that_failed_at_once() -> None:
    search, fine, left_s = Halving(entrants(8), budget_s=200.0, devices=2), steady(2), 200.0
    finals: list[Trial] = []
    while len(finals) < 2:
        trial = search.ask(left_s=left_s)
        assert trial is not None
        left_s -= trial.seconds
        if trial.final:
            finals.append(trial)
        else:
            search.tell(trial.number, fine(trial))
    assert search.ask(left_s=left_s) is None, "both devices have theirs"
    search.tell(finals[0].number, FailedTrial(reason="it died"))
    third = search.ask(left_s=left_s + 0.9 * finals[0].seconds)
    assert third is not None
    assert third.final
    assert third.candidate not in {trial.candidate for trial in finals}
    assert third.seconds == pytest.approx(0.9 * finals[0].seconds)
    assert search.ask(left_s=0.0) is None


def test_for_want_of_time_nobody_takes_a_better_ones_place() -> None:
    heavy, light = entrants(2)
    search = Halving([replace(heavy, overhead_s=10.0), replace(light, overhead_s=1.0)], budget_s=100.0)
    left_s = 100.0
    while (trial := search.ask(left_s=left_s)) is not None:
        search.tell(trial.number, Accuracy(correct=90 if trial.candidate == heavy.candidate else 80, total=N_VAL))
        # The machine was slow: what is left pays for no other start of the better one.
        left_s = 100.0 if len(search.trials) < 2 else 5.0
    assert [trial.final for trial in search.trials] == [False, False]
    assert search.finished
    assert search.best is not None
    assert search.best.candidate == heavy.candidate


def test_a_final_training_that_did_harm_is_not_handed_over() -> None:
    search = Halving(entrants(4), budget_s=100.0)
    fine = steady(2)
    play(search, lambda trial: Accuracy(correct=1, total=N_VAL) if trial.final else fine(trial), budget_s=100.0)
    assert search.trials[-1].final
    assert search.best is not None
    assert not search.best.final


def test_what_gains_too_little_is_left_unspent() -> None:
    def flat(trial: Trial) -> Score:
        """0.1 points for every doubling: an hour more at an hour's length gains 0.14 points."""
        return Accuracy(correct=round(8000 + 10 * math.log2(trial.seconds)), total=10_000)

    greedy = Halving(entrants(16), budget_s=100_000.0)
    assert play(greedy, flat, budget_s=100_000.0).busy_s == pytest.approx(100_000.0)
    frugal = Halving(entrants(16), budget_s=100_000.0, min_gain=0.1)
    told = play(frugal, flat, budget_s=100_000.0)
    final = told.order[-1]
    assert final.final
    assert final.seconds < 0.9 * greedy.trials[-1].seconds
    assert "0.1 points" in final.why
    assert final.seconds + final.unspent_s == pytest.approx(greedy.trials[-1].seconds)


def test_a_search_of_nobody_is_over() -> None:
    search = Halving([], budget_s=10.0)
    assert search.finished
    assert search.ask(left_s=10.0) is None
    assert search.best is None


def test_how_sure_a_difference_is() -> None:
    def of(correct: int, total: int) -> Accuracy:
        return Accuracy(correct=correct, total=total)

    assert confidence(of(520, 1000), of(500, 1000)) == pytest.approx(0.81, abs=0.01)  # 2 points, standard error 2.2
    assert confidence(of(500, 1000), of(520, 1000)) == pytest.approx(0.19, abs=0.01)
    sure = confidence(of(5200, 10_000), of(5000, 10_000))
    assert sure is not None
    assert sure > 0.99
    assert confidence(of(500, 1000), of(500, 1000)) is confidence(of(10, 10), of(10, 10)) is None
    assert [format_confidence(each) for each in (0.5, 0.8149, 0.9951)] == ["50 %", "81 %", "more than 99 %"]


def correct(search: Halving, trial: Trial) -> int:
    """How many images were right after it; 0 where it failed."""
    accuracy = search.accuracy(trial)
    return 0 if accuracy is None else accuracy.correct


@tries(50)
@given(st.integers(2, 40), devices, st.data())
def test_the_runner_up_is_the_best_of_the_others_after_equal_time(count: int, gpus: int, data: st.DataObject) -> None:
    fails = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 2))
    best = data.draw(st.integers(0, count - 1).filter(lambda n: n not in fails))
    search = Halving(entrants(count), budget_s=10_000.0, devices=gpus)
    play(search, steady(best, fails=sorted(fails)), budget_s=10_000.0, gpus=gpus)
    assert search.best is not None
    assert search.runner_up is not None
    own, other = search.runner_up
    assert own.candidate == search.best.candidate != other.candidate
    assert own.rung == other.rung
    others = [t for t in search.trials if t.rung == own.rung and t not in (own, other)]
    right = {trial.number: correct(search, trial) for trial in (own, other, *others)}
    assert right[own.number] >= right[other.number] >= max((right[t.number] for t in others), default=0)
    shared = [t.rung for t in search.trials if t.candidate == search.best.candidate]
    above = set(shared[shared.index(own.rung) + 1 :]) - ({FINAL} if not search.best.final else set())
    rivals = [t for t in search.trials if t.rung in above and t.candidate != search.best.candidate]
    assert not any(search.accuracy(t) for t in rivals), "they were compared later than that"


def test_who_is_alone_has_no_runner_up() -> None:
    search = Halving(entrants(20, overhead_s=5.0), budget_s=12.0)
    assert search.runner_up is None
    play(search, steady(0), budget_s=12.0)
    assert search.best is not None
    assert search.runner_up is None


def test_as_many_images_right_are_said_in_words() -> None:
    search = Halving(entrants(4), budget_s=100.0)
    play(search, lambda trial: Accuracy(correct=900, total=N_VAL), budget_s=100.0)
    eliminations = search.eliminations()
    assert len(eliminations) == 3
    for verdict in eliminations:
        assert verdict.confidence is None
        assert verdict.cutoff == Accuracy(correct=900, total=N_VAL)
        assert "1,000 validation images cannot tell them apart" in verdict.reason
        assert "confidence" not in verdict.reason


def with_curves(levels: Sequence[tuple[float, float]], budget_s: float) -> Halving:
    """A search of entrants with these levels and growths, known beforehand."""
    found = [
        replace(
            entrant,
            curve=LearningCurve(
                overhead_s=0.0,
                images_per_s=1000.0,
                train_images=10_000,
                level=level,
                growth=growth,
                error=0.15,
                rate=1.0,
                knee=15.0,
            ),
        )
        for entrant, (level, growth) in zip(entrants(len(levels)), levels, strict=True)
    ]
    return Halving(found, budget_s=budget_s, final_share=0.6)


def as_expected(trial: Trial, search: Halving, surprise: float = 0.0) -> Accuracy:
    """What the trial's curve says, as a count of images; more by ``surprise``."""
    curve = next(entrant.curve for entrant in search.entrants if entrant.candidate == trial.candidate)
    assert curve is not None
    share = 1 / (1 + math.exp(-curve.logit(trial.seconds) - surprise))
    return Accuracy(correct=round(share * N_VAL), total=N_VAL)


def test_a_slow_starter_goes_on_where_it_is_known_to_end_higher() -> None:
    """It is behind after the trial, and would have lost to the other."""
    search = with_curves([(0.0, -0.25), (0.05, 0.25)], budget_s=200.0)
    told = play(search, lambda trial: as_expected(trial, search), budget_s=200.0)
    first = {trial.candidate: search.accuracy(trial) for trial in told.order if trial.rung == 0}
    fast, slow = (entrant.candidate for entrant in search.entrants)
    fast_score, slow_score = first[fast], first[slow]
    assert fast_score is not None
    assert slow_score is not None
    assert fast_score.share > slow_score.share
    (final,) = [trial for trial in told.order if trial.final]
    assert final.candidate == slow
    assert "expected to reach more in the end" in next(
        out.reason for out in search.eliminations() if out.candidate == fast
    )


def test_a_trial_that_is_clear_enough_decides_against_what_was_known() -> None:
    search = with_curves([(0.3, 0.0), (0.0, 0.0)], budget_s=200.0)
    worse, better = (entrant.candidate for entrant in search.entrants)
    told = play(
        search,
        lambda trial: as_expected(trial, search, surprise=1.5 if trial.candidate == better else 0.0),
        budget_s=200.0,
    )
    (final,) = [trial for trial in told.order if trial.final]
    assert final.candidate == better
    assert worse in {out.candidate for out in search.eliminations()}


@tries(50)
@given(st.lists(st.tuples(st.floats(-0.5, 0.5), st.floats(-0.3, 0.3)), min_size=2, max_size=12), st.data())
def test_with_curves_the_search_keeps_its_budget_and_its_share(
    levels: list[tuple[float, float]], data: st.DataObject
) -> None:
    search = with_curves(levels, budget_s=500.0)
    surprises = data.draw(st.lists(st.floats(-1, 1), min_size=len(levels), max_size=len(levels)))
    told = play(
        search,
        lambda trial: as_expected(trial, search, surprises[int(trial.candidate.model[5:])]),
        budget_s=500.0,
    )
    assert told.least_left_s >= -1e-6
    assert sum(trial.seconds for trial in told.order if trial.final) >= 0.6 * 500.0 - 1e-6
    assert search.finished
