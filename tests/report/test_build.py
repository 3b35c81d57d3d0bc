"""The report is a fold of the store: rows, limits and phases from events, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin import events
from fitwithin import ledger as ledgers
from fitwithin.candidate import Candidate
from fitwithin.engine.margins import ENDING_S
from fitwithin.engine.results import TrainResult
from fitwithin.errors import BudgetError
from fitwithin.events import CandidateProfiled, CandidateRejected, TrialEnded
from fitwithin.pipeline import finish
from fitwithin.pipeline import run as flow
from fitwithin.profiling.profile import Rejection
from fitwithin.report import build, candidate_row
from fitwithin.report.schema import Report, from_json
from fitwithin.store import Store
from simulated.law import Fault, SimulatedMachine
from simulated.run import GIB, Stage, profile, request, without_pages


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own; no pages, whose charts take a second each (test_page.py draws them)."""
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)


def told(tmp_path: Path, law: SimulatedMachine | None = None, **asked: Any) -> tuple[Stage, Report]:
    stage = Stage(law or SimulatedMachine(), request(**{"time_s": 300.0, **asked}), tmp_path)
    return stage, flow.execute(stage.run())


def test_every_candidate_has_its_row_and_its_reason(tmp_path: Path) -> None:
    _, report = told(tmp_path, models=("resnet18", "resnet50"), precisions=("amp", "fp32"), time_s=120.0)
    assert len(report.candidates) == 4
    assert all(row.reason for row in report.candidates)
    trained = [row for row in report.candidates if row.status == "trained"]
    assert trained
    for row in trained:
        assert row.reason.startswith(("complete: ", "planned"))
        assert row.validations[-1].accuracy.total == 100
        assert row.curve[-1].step == row.steps
        assert row.predicted_low_s <= row.actual_s <= row.predicted_high_s
    for row in report.candidates:
        if row.status == "rejected":
            assert row.batch or "no time was left to profile it" in row.reason
            assert row.actual_s is None


def test_slow_probes_reject_no_candidate_that_has_a_budget_of_its_own(tmp_path: Path) -> None:
    law = SimulatedMachine(warmup_s=15.0)
    _, report = told(tmp_path, law, models=("resnet18", "resnet50"), scope="candidate", time_s=60.0)
    assert [row.status for row in report.candidates] == ["trained", "trained"]
    assert min(row.profile_s for row in report.candidates) > 60.0


def test_the_report_on_disk_is_the_report(tmp_path: Path) -> None:
    _, report = told(tmp_path)
    assert from_json((tmp_path / "report.json").read_text()).to_json() == report.to_json()
    assert json.loads((tmp_path / "receipt.json").read_text()) == json.loads(json.dumps(asdict(report.receipt)))
    assert report.receipt.finished
    assert report.receipt.starts == 1


def test_phases_add_up_to_what_was_spent(tmp_path: Path) -> None:
    stage, report = told(tmp_path)
    (limit,) = (limit for limit in report.receipt.limits if limit.name == "time")
    assert sum(phase.spent_s for phase in report.receipt.phases) == pytest.approx(limit.spent)
    assert limit.spent == pytest.approx(stage.engine.now() - 1000.0 + ENDING_S)
    assert [phase.phase for phase in report.receipt.phases] == [
        "start-up",
        "data",
        "profile",
        "train",
        "evaluate",
        "report",
    ]
    peaks = {phase.phase: phase.peak_bytes for phase in report.receipt.phases}
    assert peaks["report"] is None
    assert 0 < peaks["train"] <= GIB


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"time_s": 300.0}, ["memory", "time"]),
        ({"gpu_time_s": 300.0}, ["memory", "device time"]),
        ({"time_s": 300.0, "gpu_time_s": 300.0}, ["memory", "time", "device time"]),
        ({"time_s": 300.0, "scope": "candidate"}, ["memory", "time per candidate"]),
        ({"time_s": 300.0, "inference_ms": 50.0}, ["memory", "time", "inference"]),
        ({"time_s": 300.0, "throughput_per_s": 20.0}, ["memory", "time", "throughput"]),
        ({"time_s": 300.0, "inference_bytes": GIB}, ["memory", "time", "inference memory"]),
    ],
)
def test_every_limit_that_was_set_is_answered_for(tmp_path: Path, asked: dict[str, Any], names: list[str]) -> None:
    stage = Stage(SimulatedMachine(), request(**asked), tmp_path)
    report = flow.execute(stage.run())
    assert [limit.name for limit in report.receipt.limits] == names
    assert all(limit.kept and 0 < limit.used_pct <= 100 for limit in report.receipt.limits)
    assert all(limit.spent <= limit.limit for limit in report.receipt.limits if limit.unit != "images/s")


def test_less_memory_where_the_model_is_used_makes_smaller_passes(tmp_path: Path) -> None:
    _, whole = told(tmp_path)
    assert whole.usage is not None
    folder = tmp_path / "second"
    folder.mkdir()
    least = whole.usage.used_bytes // 2
    _, half = told(folder, inference_bytes=least)
    assert half.usage is not None
    assert half.usage.batch < whole.usage.batch
    assert half.usage.used_bytes <= least


def test_an_inference_limit_that_nothing_keeps_is_not_called_kept(tmp_path: Path) -> None:
    _, report = told(tmp_path, inference_ms=1e-6)
    (limit,) = (limit for limit in report.receipt.limits if limit.name == "inference")
    assert not limit.kept


def test_a_failed_trial_keeps_its_reason(tmp_path: Path) -> None:
    """The first trial dies before its first step, again and again; the other one wins."""
    models = ("resnet18", "resnet50")
    _, calm = told(tmp_path, models=models)
    first = next(row for row in calm.candidates if row.status == "trained")
    profiled_s = sum(phase.spent_s for phase in calm.receipt.phases if phase.phase == "profile")
    law = SimulatedMachine(troubles=tuple(Fault(at_s=profiled_s + at_s, kind="died") for at_s in (0.5, 0.6, 0.7)))
    folder = tmp_path / "second"
    folder.mkdir()
    _, report = told(folder, law, models=models)
    row = next(row for row in report.candidates if row.name == first.name)
    assert (row.status, row.validation) == ("failed", None)
    assert row.reason == f"simulated: died {profiled_s + 0.7:g} s after the start"
    assert report.winner not in (None, first.name)


def test_a_rescue_is_told_of(tmp_path: Path) -> None:
    stage, report = told(tmp_path)
    row = next(row for row in report.candidates if row.status == "trained")
    (ended,) = stage.store.read(TrialEnded)
    assert ended.trained is not None
    stage.store.append(replace(ended, trained=replace(ended.trained, nan_restarts=2)))
    plan = flow.make_plan(stage.run())
    again = build.report(stage.request, plan, stage.store, ledgers.read(stage.store))
    assert again.row(row.name).reason.startswith(
        f"{row.reason}; 2 times the loss was not a number: training went back to the checkpoint"
    )


def test_a_plan_alone_has_no_limits_and_no_winner(tmp_path: Path) -> None:
    stage = Stage(SimulatedMachine(), request(time_s=300.0), tmp_path)
    run = stage.run()
    plan = flow.make_plan(run)
    report = build.report(stage.request, plan, stage.store, ledgers.read(stage.store))
    assert (report.winner, report.receipt.limits, report.receipt.finished) == (None, (), False)
    assert [row.status for row in report.candidates] == ["planned"]
    assert report.candidates[0].reason == plan.trials[0].why["epochs"]


def test_missing_views_are_noted(tmp_path: Path) -> None:
    """A machine that stands still during the evaluation."""
    calm_stage, calm = told(tmp_path, test_sizes=(160, 224))
    end_s = calm_stage.engine.now() - 1000.0
    evaluated_s = next(p.spent_s for p in calm.receipt.phases if p.phase == "evaluate")
    folder = tmp_path / "second"
    folder.mkdir()
    law = SimulatedMachine(stalls=((end_s - evaluated_s * 0.6, 100.0),))
    try:
        _, report = told(folder, law, test_sizes=(160, 224))
    except BudgetError:  # pragma: no cover - the stall comes after the plan
        pytest.fail("the plan was drawn up before")
    assert any("views were evaluated on" in note or "evaluation" in note for note in report.notes)
    assert all(limit.kept for limit in report.receipt.limits)


def test_the_store_is_read_back_into_nouns() -> None:
    store = Store()
    found = profile()
    rejected = Candidate(model="vgg19", train_px=224, precision="fp32")
    store.append(CandidateProfiled(profile=found))
    store.append(CandidateRejected(rejection=Rejection(candidate=rejected, reason="2 images do not fit")))
    store.append(TrialEnded(name="a", reason="it died"))
    assert events.profiled(store) == {found.candidate.name: found}
    assert events.rejected(store)[rejected.name].candidate == rejected
    assert events.outcomes(store) == ({}, {"a": "it died"})


def test_a_report_that_takes_long_to_write_is_charged_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a slow disk: the receipt holds no less than the clock says."""
    stage = Stage(SimulatedMachine(), request(time_s=300.0), tmp_path)
    written: list[Report] = []

    def slowly(report: Report, folder: Path, pictures: object) -> None:
        stage.engine.sleep(2.0 if not written else 0.1)
        written.append(report)

    monkeypatch.setattr(finish, "write_report", slowly)
    report = flow.execute(stage.run())
    assert written[-1] == report
    assert len(written) == 2
    (limit,) = (each for each in report.receipt.limits if each.name == "time")
    assert stage.engine.now() - 1000.0 <= limit.spent <= stage.engine.now() - 1000.0 + ENDING_S


def test_a_trial_of_less_than_an_epoch_tells_how_much_less(tmp_path: Path) -> None:
    """To the digit that was planned: "planned 0.071 epochs, took 0.1: slower than profiled" told nothing."""
    (trial,) = flow.make_plan(Stage(SimulatedMachine(), request(), tmp_path).run()).trials
    trained = TrainResult(
        steps=30,
        planned_steps=36,
        epochs=0.0694,
        ended="shortened",
        best=None,
        validations=(),
        curve=(),
        peak_bytes=1,
        startup_s=1.0,
    )
    told = candidate_row._how_it_ended(replace(trial, epochs=0.071), trained)
    assert told.startswith("planned 0.071 epochs, took 0.069: the machine was slower")


def test_a_busy_machine_is_named_with_the_trial(tmp_path: Path) -> None:
    (trial,) = flow.make_plan(Stage(SimulatedMachine(), request(), tmp_path).run()).trials
    trained = TrainResult(
        steps=trial.steps,
        planned_steps=trial.steps,
        epochs=trial.epochs,
        ended="complete",
        best=None,
        validations=(),
        curve=(),
        peak_bytes=1,
        startup_s=1.0,
    )
    assert "other programs" not in candidate_row._how_it_ended(trial, replace(trained, cpu_taken=0.05))
    said = candidate_row._how_it_ended(trial, replace(trained, cpu_taken=0.5))
    assert said.endswith("; other programs took 50% of the CPU meanwhile")
