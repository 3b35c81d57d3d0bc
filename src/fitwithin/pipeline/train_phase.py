"""The instantiation phase: every planned trial is trained within its allotment, come what may."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

from fitwithin.accountant import OpenEntry
from fitwithin.engine.jobs import EvaluateJob, TrainJob
from fitwithin.engine.margins import (
    IN_PROCESS_BELOW_S,
    IN_PROCESS_FROM,
    KILL_BEFORE_S,
    PATIENCE_S,
    PATIENCE_SHARE,
    PATIENCE_STEPS,
    SEPARATE_MARGIN_S,
    SILENCE_FACTOR,
    WATCHDOG_S,
)
from fitwithin.engine.results import CARD, CHECKPOINT, OUTCOME, SALVAGE, WEIGHTS, Failure, Progress, TrainResult
from fitwithin.events import TrialEnded
from fitwithin.files import NEW, read_json
from fitwithin.pipeline.context import RunContext
from fitwithin.planning.cost import checkpoint_every_s, evaluation_reserve_s
from fitwithin.planning.plan import TrialPlan
from fitwithin.training.schedule import reading_every_s

#: The folder of the trials in a run's folder.
CANDIDATES = "candidates"

#: After running out of memory in spite of its certificate, a trial goes on with this share of its batch.
SMALLER = 7 / 8

#: The number of processes that a trial, or an evaluation, may have one after the other.
ATTEMPTS = 3


def trial_folder(run: Path, trial: TrialPlan) -> Path:
    """Where a trial keeps its checkpoint and leaves its model."""
    return run / CANDIDATES / trial.name


def allotment_left_s(run: RunContext, trial: TrialPlan) -> float:
    """What is left of a trial's allotment. Profiling is charged to the run, as in the paper."""
    ledger = run.accountant.ledger()
    return trial.allotted_s - ledger.charged_s(trial.name) + ledger.charged_s(trial.name, phase="profile")


def trial_ends_at(
    run: RunContext,
    trial: TrialPlan,
    *,
    kept_s: float,
    later_s: Sequence[float],
    others_free_at: Sequence[float] = (),
    evaluates_in_process: bool = False,
) -> float:
    """The instant by which a trial must have ended, with the evaluation of its model if it ``evaluates_in_process``.

    Scope ``candidate``: it has what is left of its allotment, less the evaluation by another process. Scope ``total``:
    it also has what earlier trials left over, which is all that remains of the run but ``kept_s`` for its end and
    ``later_s`` for each trial to come. The other slots, free at the instants ``others_free_at``, do some of those.
    """
    now, own_s = run.engine.now(), allotment_left_s(run, trial)
    if run.request.budget.scope == "candidate":
        return now + own_s - (0.0 if evaluates_in_process else evaluation_reserve_s(trial.evaluation_s))
    left = run.accountant.remaining(run.request.data_parallel).less(kept_s)
    here_s = _left_to_one(later_s, others_free_at, now + left.time_s)
    by_clock_s, by_device_s = max(own_s, left.time_s - here_s), max(own_s, left.slot_s - sum(later_s))
    return now + min(left.usable_s, by_clock_s, by_device_s)


def _left_to_one(trials_s: Sequence[float], others_free_at: Sequence[float], until_at: float) -> float:
    """The seconds of those trials for which the other slots have no time before ``until_at``."""
    free_at, left_s = list(others_free_at), 0.0
    heapq.heapify(free_at)
    for trial_s in trials_s:
        if free_at and free_at[0] + trial_s <= until_at:
            heapq.heapreplace(free_at, free_at[0] + trial_s)
        else:
            left_s += trial_s
    return left_s


def train(
    run: RunContext,
    trial: TrialPlan,
    opened: OpenEntry,
    *,
    slot: int = 0,
    ends_at: float,
    frozen: bool,
    evaluated: bool = False,
    evaluates_in_process: bool = False,
) -> TrainResult | Failure:
    """Train one trial until ``ends_at`` at the latest; if its process fails, another one goes on from its checkpoint.

    If the model is to be ``evaluated`` next, time for that is kept, or its process ``evaluates_in_process`` by then.
    """

    def note(progress: Progress) -> None:
        opened.peak(progress.facts.get("peak_bytes"))
        run.progress(progress, slot)

    setting, folder = run.seated(slot), trial_folder(run.folder, trial)
    step_s = trial.batch / trial.images_per_s
    least_s, most_s = PATIENCE_S
    loader_timeout_s = max(least_s, PATIENCE_STEPS * step_s, min(most_s, PATIENCE_SHARE * trial.allotted_s))
    silent_s = trial.startup_s + trial.warmup_s + trial.validation_s + 2 * trial.save_s
    job = TrainJob(
        setting=replace(setting, recipe=setting.recipe.for_epochs(trial.epochs)),
        candidate=trial.candidate,
        batch=trial.batch,
        steps=trial.steps,
        folder=str(folder),
        until_at=ends_at - WATCHDOG_S,
        step_s=step_s,
        validation_s=trial.validation_s,
        save_s=trial.save_s,
        checkpoint_every_s=checkpoint_every_s(trial.allotted_s, trial.save_s),
        loader_timeout_s=loader_timeout_s,
        heartbeat_timeout_s=SILENCE_FACTOR * silent_s + loader_timeout_s + reading_every_s(trial.allotted_s),
        open_ended=not frozen,
        frozen=frozen,
        non_allocator_bytes=trial.non_allocator_bytes,
        cuda_graph=trial.cuda_graph,
        accum_steps=trial.accum_steps,
        stages=trial.stages,
        init_from=str(folder.parent / trial.warm_start_from) if trial.warm_start_from else "",
        evaluation_s=trial.evaluation_s if evaluated else 0.0,
        evaluation=evaluation(run, trial, until_at=ends_at) if evaluates_in_process else None,
    )
    outcome: TrainResult | Failure = Failure(kind="deadline", reason="its time was over before it could start")
    for _ in range(ATTEMPTS):
        if run.engine.now() >= job.until_at:
            break
        answer = run.engine.run(job, until_at=ends_at - KILL_BEFORE_S, on_progress=note)
        assert isinstance(answer, TrainResult | Failure)
        outcome = answer
        opened.peak(answer.peak_bytes)
        if isinstance(answer, TrainResult) or answer.kind in ("error", "deadline"):
            break
        if answer.kind == "memory":
            if frozen:
                break  # a smaller batch would be another plan
            parts = job.accum_steps * setting.data_parallel
            batch = max(2, int(job.batch * SMALLER) // parts) * parts
            # Fewer images a step take no longer than as many; the schedule measures the rest.
            job = replace(job, batch=batch, steps=max(2, job.steps * job.batch // batch))
            (folder / CHECKPOINT).unlink(missing_ok=True)
    if isinstance(outcome, Failure) and (folder / WEIGHTS).is_file():
        # The trial did not end by itself: its model is that of its last checkpoint.
        return read_json(TrainResult, folder / OUTCOME) or read_json(TrainResult, folder / SALVAGE) or outcome
    return outcome


def evaluates_in_process(run: RunContext, trial: TrialPlan) -> bool:
    """Whether the process of a trial without rivals also evaluates its model."""
    short = run.request.limit_s < IN_PROCESS_BELOW_S and run.request.data_parallel == 1
    least_s = IN_PROCESS_FROM * (trial.startup_s + trial.warmup_s + trial.evaluation_s)
    return run.engine.evaluates_in_process and short and trial.allotted_s >= least_s


def evaluation_margin_s(run: RunContext) -> float:
    """Seconds kept for the winner's evaluation beyond :func:`evaluation_reserve_s`."""
    return 0.0 if run.request.limit_s < IN_PROCESS_BELOW_S else SEPARATE_MARGIN_S


def evaluation(run: RunContext, trial: TrialPlan, *, until_at: float) -> EvaluateJob:
    """The evaluation of a trial's model under all views."""
    return EvaluateJob(
        setting=run.setting,
        candidate=trial.candidate,
        batch=trial.batch // (run.request.data_parallel * trial.accum_steps),
        folder=str(trial_folder(run.folder, trial)),
        views=run.request.views,
        splits=("val", "test") if run.data.test else ("val",),
        until_at=until_at,
        cuda_graph=trial.cuda_graph,
        inference_bytes=run.request.budget.inference_bytes,
    )


def start_trial(
    run: RunContext,
    trial: TrialPlan,
    slot: int,
    *,
    ends_at: float,
    frozen: bool,
    label: str,
    last: bool,
    evaluates_in_process: bool = False,
) -> Callable[[], tuple[TrialPlan, TrainResult | Failure]]:
    """Reserve a trial's time until ``ends_at`` from now on; the function that is returned trains it in its slot.

    An evaluation follows the ``last`` trial of the run, and each one under scope ``candidate``.
    """
    opened = run.book("train", trial.name, reserved_s=ends_at - run.engine.now())
    place = f" ({label})" if label else ""
    run.reporter.begin(f"training {trial.name}{place}", trial.steps, run.lane(slot))

    def carry_out() -> tuple[TrialPlan, TrainResult | Failure]:
        with opened:
            outcome = train(
                run,
                trial,
                opened,
                slot=slot,
                ends_at=ends_at,
                frozen=frozen,
                evaluated=last or run.request.budget.scope == "candidate",
                evaluates_in_process=evaluates_in_process,
            )
        return trial, outcome

    return carry_out


def record_trial(run: RunContext, trial: TrialPlan, outcome: TrainResult | Failure) -> None:
    """Store and report how a trial ended, and remove what only it needed."""
    name = trial.name
    if isinstance(outcome, Failure):
        ended = TrialEnded(name=name, reason=outcome.reason)
        run.reporter.say(f"  {name}: failed, {outcome.reason}")
    else:
        ended = TrialEnded(name=name, trained=outcome)
        share = "no validation" if outcome.best is None else f"{outcome.best / run.data.val:.1%} on validation data"
        run.reporter.say(f"  {name}: {share} after {outcome.epochs:.1f} epochs ({outcome.ended})")
    run.store.append(ended)
    # Removing a checkpoint of 180 MB takes 50 ms, in which the evaluation can begin; clean_trials repeats it.
    Thread(target=clean, args=(trial_folder(run.folder, trial),), name="clean", daemon=True).start()


def clean_trials(run: RunContext) -> None:
    """Remove the checkpoints that an interrupt left behind; all trials have ended."""
    for event in run.store.read(TrialEnded):
        clean(run.folder / CANDIDATES / event.name)


def clean(folder: Path) -> None:
    """Remove what only an unfinished trial needs, and files that a killed process had not finished."""
    written = (CHECKPOINT, OUTCOME, SALVAGE, WEIGHTS, CARD)
    for name in (CHECKPOINT, OUTCOME, SALVAGE, *(name + NEW for name in written)):
        (folder / name).unlink(missing_ok=True)
