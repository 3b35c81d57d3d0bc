"""A trial between its steps: what is due, what a checkpoint holds, and that it ends in time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.candidate import Candidate
from fitwithin.engine.jobs import TrainJob
from fitwithin.errors import TrainingError
from fitwithin.training.progress import MAX_NAN_RESTARTS, NAN_RESTART_RATE, CheckpointState, Due, TrialProgress
from simulated.run import on_cpu

CANDIDATE = Candidate(model="test_efficientnet", train_px=32, precision="fp32")


def trial(*, until_at: float = 100.0, **changed: Any) -> TrialProgress:
    """A hundred steps of a second, ten an epoch, three validations of half a second, a model in 0.1 s."""
    usual: dict[str, Any] = {
        "steps": 100,
        "step_s": 1.0,
        "validation_s": 0.5,
        "save_s": 0.1,
        "checkpoint_every_s": 20.0,
    }
    job = TrainJob(
        setting=on_cpu("upright"), candidate=CANDIDATE, batch=8, folder="", until_at=until_at, **{**usual, **changed}
    )
    return TrialProgress(job, n_train=80, n_val=10, began_at=0.0, now=1.0)


def play(progress: TrialProgress, step_s: float, now: float, *, until_step: int = 10**6) -> float:
    """Take steps, and do what is due, as the trainers do; the instant of its end."""
    while not progress.schedule.done and progress.schedule.step < until_step:
        now += step_s
        progress.take()
        progress.record_loss(progress.schedule.step, 1.0, now)
        due = progress.observe(now)
        if due is Due.VALIDATION and progress.can_validate(now):
            now += progress.job.validation_s
            progress.validated(progress.schedule.step % 7, progress.job.validation_s)
        if due is Due.CHECKPOINT:
            now += progress.job.save_s
            progress.checkpoint_saved(now - progress.job.save_s, now)
        if due:
            progress.schedule.pause()
    return now


@given(st.floats(0.2, 5.0), st.floats(5.0, 300.0), st.booleans())
def test_a_trial_at_any_pace_ends_in_time_at_a_rate_of_nothing(
    slower: float, until_at: float, open_ended: bool
) -> None:
    progress = trial(until_at=until_at, open_ended=open_ended)
    ended_at = play(progress, slower, 1.0)
    result = progress.result(finished=True)
    assert ended_at <= until_at + slower, "only the step that was under way may end later"
    assert result.ended == "cut" or result.curve[-1]["lr"] == 0.0
    assert open_ended or result.steps <= 100
    found = [validation["accuracy"]["correct"] for validation in result.validations]
    assert len(found) <= 3
    assert result.best == max(found, default=None)


@given(st.integers(1, 99), st.floats(0.5, 2.0))
def test_a_checkpoint_in_json_is_all_that_another_process_needs(step: int, slower: float) -> None:
    first = trial()
    now = play(first, slower, 1.0, until_step=step)
    state = CheckpointState(**json.loads(json.dumps(vars(first.state(now)))))
    second = trial()
    second.resume(state)
    assert second.state(1.0) == CheckpointState(**{**vars(first.state(now)), "elapsed_s": first.elapsed_s(now) + 1.0})
    assert second.peak_lr == first.peak_lr


@given(st.lists(st.integers(0, 10), min_size=1, max_size=8))
def test_the_best_model_is_the_last_of_the_best(found: list[int]) -> None:
    progress = trial()
    kept = [progress.validated(correct, 0.5) for correct in found]
    assert progress.best == max(found)
    last = max(place for place, is_best in enumerate(kept) if is_best)
    assert last == max(place for place, correct in enumerate(found) if correct == max(found))


def test_what_is_not_finite_is_taken_back_at_a_lower_rate_and_given_up_at_last() -> None:
    progress = trial()
    now = play(progress, 1.0, 1.0, until_step=10)
    state, peak_lr = progress.state(now), progress.peak_lr
    for restarts in range(1, MAX_NAN_RESTARTS + 1):
        play(progress, 1.0, now, until_step=20)
        progress.restart(state)
        assert progress.schedule.step == 10
        assert progress.curve[-1]["step"] == 10
        assert progress.peak_lr == peak_lr * NAN_RESTART_RATE**restarts
    with pytest.raises(TrainingError, match="in attempt 4 of 4"):
        progress.restart(state)
    with pytest.raises(TrainingError, match="no longer finite at step 0, in attempt 1 of 4"):
        trial().restart(None)


def test_a_checkpoint_is_due_after_the_first_step_and_then_by_the_clock() -> None:
    progress = trial(until_at=1000.0)
    due = []
    for now in range(2, 60):
        progress.take()
        due.append(progress.observe(float(now)))
        if due[-1] is Due.CHECKPOINT:
            progress.checkpoint_saved(now - 0.1, now)
    assert [place for place, found in enumerate(due) if found is Due.CHECKPOINT] == [0, 20, 40]
