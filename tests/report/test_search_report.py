"""The report of a search is a fold of its trials and the books: nothing is lost, and every candidate has its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin import ledger as ledgers
from fitwithin.inference.ensemble import read_ensemble
from fitwithin.ledger import EntryOpened, EntrySettled, Ledger
from fitwithin.pipeline import run
from fitwithin.planning.halving import Halving
from fitwithin.planning.plan import SearchPlan
from fitwithin.planning.search import Score, SearchCandidate, Trial
from fitwithin.planning.stats import Accuracy, FailedTrial
from fitwithin.report import build
from fitwithin.report.schema import Report, from_json
from fitwithin.report.search_report import SearchReport, TrialState, build_search_report
from planning.test_search import entrants, play, steady
from simulated.law import Fault, SimulatedMachine
from simulated.run import CountedImages, Stage, request, without_pages

MODELS = ("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "vgg13")

Begin = Callable[..., Stage]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Stages of a search, with a cache of their own and no pages."""
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)

    def stage(
        *, time_s: float = 900.0, folder: str = "run", law: SimulatedMachine | None = None, **recipe: Any
    ) -> Stage:
        asked = request(models=MODELS, sizes=(160, 224), test_sizes=(160, 224), time_s=time_s)
        asked = replace(asked, search="halving", recipe=replace(asked.recipe, **recipe))
        return Stage(law or SimulatedMachine(half_epochs=20), asked, tmp_path / folder, CountedImages())

    return stage


def holds(report: Report) -> SearchReport:
    """The search of a report, in which everything adds up."""
    search = report.search
    assert search is not None
    phase = next(phase for phase in report.receipt.phases if phase.phase == "train")
    assert sum(trial.charged_s for trial in search.trials) == pytest.approx(phase.spent_s)
    assert sum(trial.gpu_s for trial in search.trials) == pytest.approx(phase.gpu_s)
    assert [trial.number for trial in search.trials] == list(range(1, len(search.trials) + 1))
    tried = {trial.candidate for trial in search.trials}
    out = [verdict.candidate for verdict in search.eliminations]
    assert len(out) == len(set(out))
    assert tried <= {*out, report.winner}
    assert {verdict.candidate for verdict in search.eliminations if verdict.rung is None}.isdisjoint(tried)
    for trial in search.trials:
        assert (trial.state == TrialState.FAILED) == (trial.accuracy is None)
        assert (trial.state == TrialState.DELIVERED) == (trial.name == search.delivered)
    rows = {row.name: row for row in report.candidates}
    for name in tried:
        own = [trial for trial in search.trials if trial.candidate == name]
        assert rows[name].actual_s == pytest.approx(sum(trial.charged_s for trial in own))
        if rows[name].validation is not None:
            assert rows[name].validation in [trial.accuracy for trial in own]
            assert rows[name].inference_ms is not None
            assert (rows[name].front is True) == (rows[name].dominated_by is None)
    return search


def test_a_search_is_reported_whole(begin: Begin) -> None:
    stage = begin()
    report = run.execute(stage.run())
    search = holds(report)
    assert from_json((stage.folder / "report.json").read_text()).search == search
    assert [rung.count for rung in search.rungs] == [16, 4]
    assert sorted(trial.rung for trial in search.trials) == [-1] + [0] * 16 + [1] * 4
    assert all(trial.charged_s <= trial.promised_s for trial in search.trials)
    final = search.trials[-1]
    assert (final.state, final.name) == (TrialState.DELIVERED, f"{report.winner}-final")
    assert Path(read_ensemble(stage.folder).trial).name == search.delivered
    assert search.delivered_why.startswith("the model of the final training: ")
    assert search.runner_up is not None
    assert search.runner_up.rung == 1
    ranked = sorted((t for t in search.trials if t.rung == 1), key=lambda t: -t.accuracy.correct)
    assert search.runner_up.accuracy == ranked[1].accuracy
    assert search.runner_up.winner_accuracy == ranked[0].accuracy
    assert sum(trial.state == TrialState.PROMOTED for trial in search.trials) == 5
    assert search.summary not in report.notes, "it stands in the search's own section"


def test_predicted_and_actual_time_are_of_the_same_trials(begin: Begin) -> None:
    report = run.execute(begin().run())
    for row in report.candidates:
        assert row.predicted_low_s * 0.98 <= row.actual_s <= row.predicted_high_s * 1.02, row.name


def test_the_forecast_goes_by_the_winners_last_two_trials(begin: Begin) -> None:
    for warm_start in (False, True):
        report = run.execute(begin(folder=str(warm_start), warm_start=warm_start).run())
        assert report.search is not None
        assert report.forecast is not None
        own = [trial for trial in report.search.trials if trial.candidate == report.winner]
        assert [point.accuracy.correct for point in report.forecast.points] == [trial.accuracy.correct for trial in own]
        spent = [trial.gpu_s for trial in own]
        expected = [sum(spent[: n + 1]) for n in range(3)] if warm_start else spent
        assert [point.gpu_s for point in report.forecast.points] == pytest.approx(expected)


def test_without_a_search_one_training_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)
    report = run.execute(Stage(SimulatedMachine(), request(time_s=300.0), tmp_path).run())
    assert report.search is None
    assert report.forecast is not None
    assert len(report.forecast.points) == 1
    assert report.forecast.forecasts == ()


def test_a_trial_that_died_has_its_reason(begin: Begin) -> None:
    """The first trial of a run that goes as the calm one did until then dies again and again."""
    report = run.execute(begin(folder="calm").run())
    calm = holds(report)
    profiled_s = sum(phase.spent_s for phase in report.receipt.phases if phase.phase == "profile")
    troubles = tuple(Fault(at_s=profiled_s + at_s, kind="died") for at_s in (0.5, 0.6, 0.7))
    search = holds(run.execute(begin(folder="troubled", law=SimulatedMachine(half_epochs=20, troubles=troubles)).run()))
    assert search.trials[0].candidate == calm.trials[0].candidate
    assert search.trials[0].state == TrialState.FAILED
    assert search.trials[0].why.startswith("simulated: died")
    verdict = next(verdict for verdict in search.eliminations if verdict.candidate == calm.trials[0].candidate)
    assert (verdict.rung, verdict.confidence, verdict.cutoff) == (0, None, None)


def test_a_plan_has_its_bracket_and_no_trials(begin: Begin) -> None:
    stage = begin()
    plan = run.make_plan(stage.run())
    report = build.report(stage.request, plan, stage.store, ledgers.read(stage.store))
    assert report.search is not None
    assert report.search.summary == plan.search.summary
    assert (report.search.trials, report.search.eliminations, report.search.delivered) == ((), (), None)
    assert report.forecast is None


def described(
    search: Halving, truth: Callable[[Trial], Score], budget_s: float = 100.0, ledger: Ledger | None = None
) -> SearchReport:
    """A search played through with these truths, reported with or without a ledger."""
    play(search, truth, budget_s=budget_s)
    counts, seconds = (search.bracket.counts, search.bracket.seconds) if search.bracket else ((), ())
    facts = SearchPlan(
        entrants=search.entrants, budget_s=budget_s, counts=counts, seconds=seconds, final_s=search.final_s
    )
    return build_search_report(facts, search, ledger or Ledger())


def test_a_final_training_that_did_harm_is_reported() -> None:
    fine = steady(2)
    found = described(
        Halving(entrants(4), budget_s=100.0), lambda t: Accuracy(correct=1, total=1000) if t.final else fine(t)
    )
    assert found.delivered == next(t.name for t in reversed(found.trials[:-1]) if t.candidate == "model0002-amp-160")
    assert found.trials[-1].state == TrialState.STOPPED
    assert found.delivered_why.endswith("the final training reached only 0.1 %")


def test_a_final_training_that_failed_is_reported() -> None:
    fine = steady(2)
    found = described(
        Halving(entrants(4), budget_s=100.0), lambda t: FailedTrial(reason="it died") if t.final else fine(t)
    )
    assert found.trials[-1].state == TrialState.FAILED
    assert found.delivered_why.endswith("the final training left no model (it died)")


def test_whom_the_time_does_not_pay_for_was_never_tried() -> None:
    found = described(Halving(entrants(20, overhead_s=5.0), budget_s=200.0), steady(0), 200.0)
    left_out = [verdict for verdict in found.eliminations if verdict.rung is None]
    assert len(left_out) == 20 - len({trial.candidate for trial in found.trials})
    assert all(verdict.reason.startswith("left out") for verdict in left_out)


def test_where_all_failed_nothing_is_handed_over() -> None:
    found = described(Halving(entrants(4), budget_s=100.0), lambda trial: FailedTrial(reason="it died"))
    assert (found.delivered, found.delivered_why, found.runner_up) == (None, "", None)
    assert {trial.state for trial in found.trials} == {TrialState.FAILED}
    assert len(found.eliminations) == 4


def test_charges_are_summed_by_trial_whatever_stands_between() -> None:
    one, other = (each.candidate.name for each in entrants(2))
    ledger = Ledger()
    for number, (key, phase, charged_s, gpus) in enumerate(
        (
            (one, "profile", 5.0, 1),
            (one, "train", 2.0, 2),
            (other, "train", 1.0, 1),
            (one, "train", 3.0, 2),
            (one, "evaluate", 7.0, 1),
            (other, "train", None, 1),
        ),
        1,
    ):
        reserved_s = 10.0 - number  # what is reserved when it is taken up again is less
        ledger.add(EntryOpened(number=number, phase=phase, key=key, gpus=gpus, reserved_s=reserved_s))
        if charged_s is not None:
            ledger.add(EntrySettled(number=number, charged_s=charged_s))
    found = described(Halving(entrants(2), budget_s=100.0), steady(0), ledger=ledger)
    charged = {trial.name: (trial.charged_s, trial.gpu_s, trial.promised_s) for trial in found.trials}
    assert charged[one] == (5.0, 10.0, 8.0)
    assert charged[other] == (1.0, 1.0, 7.0)
    assert charged[f"{one}-final"] == (0.0, 0.0, found.trials[-1].promised_s)


def test_trials_have_the_names_of_their_folders() -> None:
    search = Halving([SearchCandidate(candidate=each.candidate) for each in entrants(4)], budget_s=100.0)
    found = described(search, steady(1))
    assert [trial.name for trial in found.trials] == [trial.name for trial in search.trials]
