"""A planned trial is trained, come what may: out of memory, dead workers, deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin.engine.jobs import EvaluateJob, Job, TrainJob, evaluates_in_process
from fitwithin.engine.margins import WATCHDOG_S
from fitwithin.engine.results import CHECKPOINT, OUTCOME, SALVAGE, WEIGHTS, Failure, Outcome, Progress, TrainResult
from fitwithin.pipeline import run as flow
from fitwithin.pipeline import train_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.planning.cost import evaluation_reserve_s
from fitwithin.planning.plan import Plan
from fitwithin.report.schema import Report
from simulated.engine import Simulated
from simulated.law import Fault, SimulatedMachine
from simulated.run import CountedImages, Stage, request, without_pages


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RunContext, Plan]]:
    """A run whose plan is drawn up; ``law`` holds from then on, its instants counting from the trial's start."""
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))

    def build(law: SimulatedMachine | None = None, **asked: Any) -> tuple[RunContext, Plan]:
        made = Stage(SimulatedMachine(), request(**{"time_s": 300.0, **asked}), tmp_path, CountedImages())
        run = made.run()
        plan = flow.make_plan(run)
        made.engine.law = law or SimulatedMachine()
        made.engine.started_at = made.engine.now()
        made.engine.jobs.clear()
        return run, plan

    return build


def train(run: RunContext, plan: Plan, *, ends_at: float | None = None, frozen: bool = False) -> TrainResult | Failure:
    (trial,) = plan.trials
    with run.accountant.entry("train", trial.candidate.name, gpus=1) as opened:
        ends_at = run.engine.now() + trial.allotted_s if ends_at is None else ends_at
        return train_phase.train(run, trial, opened, ends_at=ends_at, frozen=frozen)


def folder(run: RunContext, plan: Plan) -> Path:
    return train_phase.trial_folder(run.folder, plan.trials[0])


def test_a_calm_trial_takes_its_planned_steps_and_those_that_fit_beside_them(stage: Any) -> None:
    run, plan = stage()
    (trial,), begun_at = plan.trials, run.engine.now()
    outcome = train(run, plan)
    assert isinstance(outcome, TrainResult)
    assert (outcome.ended, outcome.planned_steps) == ("complete", trial.steps)
    assert trial.steps < outcome.steps < 1.05 * trial.steps
    left_s = begun_at + trial.allotted_s - run.engine.now()
    assert 0 < left_s < 0.01 * trial.allotted_s + WATCHDOG_S
    assert outcome.best == round(outcome.validations[-1]["accuracy"]["correct"])
    assert len(outcome.validations) == 3  # the last three epochs
    (entry,) = (e for e in run.accountant.ledger().entries if e.phase == "train")
    assert entry.peak_bytes == outcome.peak_bytes
    assert len(run.engine.jobs) == 1


def test_out_of_memory_goes_on_with_a_smaller_batch(stage: Any) -> None:
    run, plan = stage(SimulatedMachine(fixed_bytes=400e6))  # more than was profiled
    outcome = train(run, plan)
    assert isinstance(outcome, TrainResult)
    batches = [job.batch for job in run.engine.jobs]
    assert batches[0] == plan.trials[0].batch
    assert batches[1:] == [max(2, int(b * train_phase.SMALLER)) for b in batches[:-1]]
    assert 2 <= len(batches) <= train_phase.ATTEMPTS
    images = [job.batch * job.steps for job in run.engine.jobs]
    assert images[-1] == pytest.approx(images[0], rel=0.05)  # as many epochs as planned
    assert outcome.peak_bytes <= run.setting.memory_bytes


def test_without_any_room_it_fails_after_its_attempts(stage: Any) -> None:
    run, plan = stage(SimulatedMachine(fixed_bytes=2e9))
    outcome = train(run, plan)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "memory"
    assert len(run.engine.jobs) == train_phase.ATTEMPTS


def test_a_worker_that_died_is_taken_up_at_its_checkpoint(stage: Any) -> None:
    run, plan = stage(SimulatedMachine(troubles=(Fault(at_s=100.0, kind="died"),)))
    outcome = train(run, plan)
    assert isinstance(outcome, TrainResult)
    assert len(run.engine.jobs) == 2
    steps = [point["step"] for point in outcome.curve]
    assert steps == sorted(set(steps))  # what was lost after the checkpoint was done again, and is told once
    assert outcome.ended in ("complete", "shortened")
    elapsed = [point["elapsed_s"] for point in outcome.curve]
    assert elapsed == sorted(elapsed)


def test_a_worker_that_dies_again_and_again_leaves_its_checkpoint(stage: Any) -> None:
    run, plan = stage(SimulatedMachine(troubles=tuple(Fault(at_s=at, kind="died") for at in (60.0, 90.0, 120.0))))
    outcome = train(run, plan)
    assert isinstance(outcome, TrainResult)
    assert outcome.ended == "cut"
    assert len(run.engine.jobs) == train_phase.ATTEMPTS
    assert (folder(run, plan) / WEIGHTS).is_file()


def test_a_worker_that_hangs_is_replaced_and_goes_on_from_its_checkpoint(stage: Any) -> None:
    run, plan = stage(SimulatedMachine(troubles=(Fault(at_s=100.0, kind="hang"),)))
    outcome = train(run, plan)
    assert isinstance(outcome, TrainResult)
    assert outcome.ended == "shortened"
    assert outcome.curve[-1]["lr"] == 0.0
    first, second = run.engine.jobs
    assert first == second
    lost_s = first.heartbeat_timeout_s + first.checkpoint_every_s + plan.trials[0].startup_s
    assert outcome.steps * first.step_s > 0.9 * (plan.trials[0].allotted_s - lost_s)


@pytest.mark.parametrize("at_s", [0.5, 100.0])
def test_a_worker_that_hangs_when_there_is_no_time_for_another_is_ended(stage: Any, at_s: float) -> None:
    run, plan = stage(SimulatedMachine(troubles=(Fault(at_s=at_s, kind="hang"),)))
    ends_at = run.engine.now() + at_s + 5.0
    outcome = train(run, plan, ends_at=ends_at)
    assert run.engine.now() == pytest.approx(ends_at - train_phase.KILL_BEFORE_S)
    if at_s < 1:  # before its first step
        assert isinstance(outcome, Failure)
        assert outcome.kind == "deadline"
    else:
        assert isinstance(outcome, TrainResult)
        assert outcome.ended == "cut"
        assert 0 < outcome.steps < plan.trials[0].steps


def test_no_time_is_no_start(stage: Any) -> None:
    run, plan = stage()
    outcome = train(run, plan, ends_at=run.engine.now() + WATCHDOG_S)
    assert isinstance(outcome, Failure)
    assert outcome.reason == "its time was over before it could start"
    assert run.engine.jobs == []


def test_a_frozen_trial_does_not_change_its_batch(stage: Any) -> None:
    run, plan = stage(SimulatedMachine(fixed_bytes=400e6))
    outcome = train(run, plan, frozen=True)
    assert isinstance(outcome, Failure)
    assert len(run.engine.jobs) == 1


def test_an_error_is_not_tried_again(stage: Any) -> None:
    run, plan = stage()
    calls: list[Job] = []

    def broken(job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        calls.append(job)
        return Failure(kind="error", reason="the loss became nan")

    run.engine.run = broken
    assert train(run, plan) == Failure(kind="error", reason="the loss became nan")
    assert len(calls) == 1


def test_a_finished_trial_is_not_trained_again(stage: Any) -> None:
    """The process was killed after the worker had ended and before the store knew."""
    run, plan = stage()
    first = train(run, plan)
    now = run.engine.now()
    assert train(run, plan) == first
    assert run.engine.now() == now


def test_cleaning_leaves_the_model(stage: Any) -> None:
    run, plan = stage()
    train(run, plan)
    assert (folder(run, plan) / OUTCOME).is_file()
    # A process that was killed over them leaves these, and the one that goes on may have no need to write them again.
    for name in (CHECKPOINT, WEIGHTS):
        (folder(run, plan) / f"{name}.new").touch()
    train_phase.clean(folder(run, plan))
    left = {path.name for path in folder(run, plan).iterdir()}
    assert not left & {CHECKPOINT, OUTCOME, SALVAGE}
    assert not [name for name in left if name.endswith(".new")]
    assert WEIGHTS in left
    train_phase.clean(folder(run, plan))  # twice does no harm


@pytest.mark.parametrize("scope", ["total", "candidate"])
def test_a_trial_ends_within_its_allotment_and_within_the_run(stage: Any, scope: str) -> None:
    run, plan = stage(scope=scope, time_s=300.0)
    (trial,) = plan.trials
    now = run.engine.now()
    kept_s = 0.0 if scope == "candidate" else 20.0
    ends_at = train_phase.trial_ends_at(run, trial, kept_s=kept_s, later_s=[])
    if scope == "candidate":
        assert ends_at - now == pytest.approx(trial.allotted_s - evaluation_reserve_s(trial.evaluation_s))
    else:
        assert ends_at - now == pytest.approx(run.accountant.remaining().usable_s - kept_s)
    with run.accountant.entry("train", trial.candidate.name, gpus=1):
        run.engine.clock.sleep(50.0)
    later = train_phase.trial_ends_at(run, trial, kept_s=kept_s, later_s=[])
    assert later == pytest.approx(ends_at)  # what was spent on it before counts
    waiting_s = run.accountant.remaining().usable_s
    if scope == "total":  # a trial that follows keeps its share
        sooner = train_phase.trial_ends_at(run, replace(trial, allotted_s=60.0), kept_s=20.0, later_s=[waiting_s])
        assert sooner - run.engine.now() == pytest.approx(10.0)


def test_a_short_trial_augments_less_than_it_was_profiled_with(stage: Any) -> None:
    run, plan = stage(recipe="fast", time_s=28.0)
    trial = plan.trials[0]
    wanted = run.request.recipe
    assert trial.epochs < wanted.augment_epochs
    train(run, plan)
    (job,) = run.engine.jobs
    assert job.setting.recipe.cutmix == pytest.approx(wanted.cutmix * trial.epochs / wanted.augment_epochs)
    assert run.setting.recipe == wanted


def test_jobs_are_told_the_profiles_figures(stage: Any) -> None:
    run, plan = stage()
    train(run, plan)
    (job,) = run.engine.jobs
    assert isinstance(job, TrainJob)
    assert job.step_s == pytest.approx(plan.trials[0].batch / plan.trials[0].images_per_s)
    assert job.steps == plan.trials[0].steps


@pytest.mark.parametrize("slower", [1.3, 2.0])
def test_on_a_machine_that_has_become_slower_there_is_time_for_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slower: float
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    law = SimulatedMachine(eval_share=60.0)
    made = Stage(law, request(recipe="fast", time_s=300.0), tmp_path, CountedImages())
    run = made.run()
    assert flow.make_plan(run).trials[0].evaluation_s > 10
    made.engine.law = replace(law, drifts=((0.0, slower),))
    report = flow.execute(run)
    (delivered,) = (row for row in report.methods if row.delivered)
    assert delivered.test is not None
    assert not any("time was over" in note for note in report.notes), "all views were evaluated on both splits"
    assert all(limit.kept for limit in report.receipt.limits)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RunContext, Report]]:
    """A run whose plan is one trial, under a law that holds from the trial's start on."""
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)

    def told(law: SimulatedMachine, **asked: Any) -> tuple[RunContext, Report]:
        before = replace(law, troubles=(), drifts=())
        made = Stage(before, request(**{"recipe": "fast", "time_s": 300.0, **asked}), tmp_path, CountedImages())
        run = made.run()
        (_,) = flow.make_plan(run).trials
        made.engine.law, made.engine.started_at = law, made.engine.now()
        made.engine.jobs.clear()
        return run, flow.execute(run)

    return told


def whole(report: Report) -> bool:
    """Whether all views were evaluated on both splits."""
    (delivered,) = (row for row in report.methods if row.delivered)
    return delivered.test is not None and not any("time was over" in note for note in report.notes)


@pytest.mark.parametrize("scope", ["total", "candidate"])
def test_whoever_has_no_rival_evaluates_what_it_trained_and_no_time_is_lost(alone: Any, scope: str) -> None:
    law = SimulatedMachine(startup_s=5.0)
    run, report = alone(law, scope=scope)
    assert whole(report)
    job, evaluation = run.engine.jobs
    assert job.evaluation is not None
    assert (evaluation.folder, evaluation.views, evaluation.splits) == (job.folder, run.request.views, ("val", "test"))
    books = run.accountant.ledger()
    (evaluated,) = (entry for entry in books.entries if entry.phase == "evaluate")
    assert evaluated.charged_s is not None
    assert evaluated.charged_s < law.startup_s, "no process was started for it"
    assert all(limit.kept for limit in report.receipt.limits)
    if scope == "total":
        assert books.spent_s() > 300.0 - run.closing_s - 1.0


@pytest.mark.parametrize(("time_s", "at_s"), [(300.0, 100.0), (300.0, 200.0), (60.0, 10.0)])
def test_one_that_hangs_is_replaced_while_there_is_time(alone: Any, time_s: float, at_s: float) -> None:
    run, report = alone(SimulatedMachine(startup_s=3.0, troubles=(Fault(at_s=at_s, kind="hang"),)), time_s=time_s)
    assert whole(report)
    assert evaluates_in_process(run.engine.jobs[0])
    assert [type(job) for job in run.engine.jobs] == [TrainJob, TrainJob, EvaluateJob]
    assert all(limit.kept for limit in report.receipt.limits)


@pytest.mark.parametrize(("time_s", "at_s"), [(300.0, 250.0), (300.0, 263.0), (60.0, 20.0), (60.0, 30.0), (60.0, 40.0)])
def test_of_one_that_hangs_later_the_last_saved_model_is_handed_over(alone: Any, time_s: float, at_s: float) -> None:
    """One heartbeat timeout is not over before the evaluation must begin; the run ends in time all the same."""
    run, report = alone(SimulatedMachine(startup_s=3.0, troubles=(Fault(at_s=at_s, kind="hang"),)), time_s=time_s)
    (trial,) = (row for row in report.candidates if row.status == "trained")
    assert "its time was over" in trial.reason
    assert report.winner == trial.name
    assert (run.folder / train_phase.CANDIDATES / trial.name / WEIGHTS).is_file()
    assert all(limit.kept for limit in report.receipt.limits)


def test_in_a_long_run_another_process_evaluates(alone: Any) -> None:
    """And has some seconds more for it."""
    run, report = alone(SimulatedMachine(startup_s=5.0), time_s=600.0)
    assert whole(report)
    assert [evaluates_in_process(job) for job in run.engine.jobs] == [False, False]
    job, evaluation = run.engine.jobs
    (trial,) = flow.make_plan(run).trials
    assert evaluation.until_at - job.until_at >= trial.evaluation_s + train_phase.SEPARATE_MARGIN_S
    assert all(limit.kept for limit in report.receipt.limits)


def test_a_trial_too_short_for_that_is_evaluated_by_another_process(alone: Any) -> None:
    run, report = alone(SimulatedMachine(startup_s=8.0), time_s=60.0)
    assert whole(report)
    assert [evaluates_in_process(job) for job in run.engine.jobs] == [False, False]


def test_where_processes_cannot_stay_another_one_evaluates(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Simulated, "evaluates_in_process", False)
    run, report = alone(SimulatedMachine(startup_s=5.0))
    assert whole(report)
    assert [evaluates_in_process(job) for job in run.engine.jobs] == [False, False]
    assert all(limit.kept for limit in report.receipt.limits)
