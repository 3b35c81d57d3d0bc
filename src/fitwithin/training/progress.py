"""A trial between its steps, without torch, clock or files: what is due, what a checkpoint holds, and the result.

:mod:`fitwithin.training.trainer` and the tests' simulated machines both train by it. All instants are passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fitwithin.engine.jobs import TrainJob
from fitwithin.engine.results import Ended, Progress, TrainResult
from fitwithin.errors import TrainingError
from fitwithin.training.schedule import make_schedule, rate_factor, reading_every_s, steps_end_at

#: If a loss is not finite a trial goes back to its checkpoint, MAX_NAN_RESTARTS times at most, each time at
#: NAN_RESTART_RATE times the learning rate.
MAX_NAN_RESTARTS, NAN_RESTART_RATE = 3, 0.5


class Due(IntEnum):
    """What must be done before the next step."""

    NOTHING = 0
    VALIDATION = 1
    CHECKPOINT = 2


@dataclass(frozen=True, kw_only=True)
class EvalEstimate:
    """Seconds of the evaluation of all views, of its first size, and of a validation at the training size."""

    whole_s: float
    first_s: float
    validation_s: float


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """A checkpoint's plain values beside the weights.

    ``step`` of ``planned`` steps were taken, the last one at ``lr_factor`` times the peak rate; ``reached`` of the last
    epochs have ended. ``elapsed_s`` and ``training_s`` are the seconds of the trial and of its steps so far.
    """

    step: int
    planned: int
    reached: int
    lr_factor: float
    best: int | None
    validations: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    elapsed_s: float
    training_s: float
    nan_restarts: int


class TrialProgress:
    """How far a trial is, on ``n_train`` and ``n_val`` images; its process was asked for at ``began_at`` and has its
    model on the device ``now``."""

    def __init__(self, job: TrainJob, *, n_train: int, n_val: int, began_at: float, now: float) -> None:
        self.job = job
        self.n_val = n_val
        self.steps_per_epoch = n_train / job.batch
        self.schedule = make_schedule(job)
        #: Correct images of the best validation; None before the first.
        self.best: int | None = None
        self.validations: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self.lr_factor = 1.0
        self.nan_restarts = 0
        self.peak_bytes = 0
        self.cpu_taken = 0.0
        #: Whether the best weights are the mean of the first and the last ones.
        self.averaged = False
        self.startup_s = now - began_at
        #: Seconds of steps, with those of earlier processes.
        self.training_s = 0.0
        #: Seconds between readings of the loss.
        self.reading_s = reading_every_s(job.until_at - began_at)
        #: Seconds of the next validation, model and checkpoint: the profile's until one was measured.
        self.validation_s = job.validation_s
        self.model_s = self.checkpoint_s = job.save_s
        #: Seconds of recording the step anew after a validation; part of ``validation_s`` until one was measured.
        self.recapture_s = 0.0
        #: Seconds of the evaluation that follows, and of its first size.
        self.evaluation_s, self.first_size_s = job.evaluation_s, 0.0
        self._began_at, self._earlier_s = began_at, 0.0
        self._saved_at = now
        #: Whether no checkpoint was written yet.
        self._first = True

    @property
    def peak_lr(self) -> float:
        """The recipe's peak learning rate, lowered by every restart."""
        return self.job.setting.recipe.learning_rate(self.job.batch) * NAN_RESTART_RATE**self.nan_restarts

    def elapsed_s(self, now: float) -> float:
        """Seconds of the trial, with those of earlier processes."""
        return self._earlier_s + now - self._began_at

    # --- checkpoints

    def state(self, now: float) -> CheckpointState:
        """What a later process needs to go on."""
        return CheckpointState(
            step=self.schedule.step,
            planned=max(self.schedule.planned, self.schedule.total),
            reached=self.schedule.reached,
            lr_factor=self.lr_factor,
            best=self.best,
            validations=self.validations,
            curve=self.curve,
            elapsed_s=self.elapsed_s(now),
            training_s=self.training_s,
            nan_restarts=self.nan_restarts,
        )

    def resume(self, state: CheckpointState) -> None:
        """Go on from what an earlier process left."""
        self.schedule.resume(state.step, state.planned, state.reached)
        self._first = False
        self.lr_factor = state.lr_factor
        self.best = state.best
        self.validations = state.validations
        self.curve = state.curve
        self.nan_restarts = state.nan_restarts
        self.training_s = state.training_s
        self._earlier_s = state.elapsed_s

    def restart(self, state: CheckpointState | None) -> None:
        """Go back to a checkpoint of this process, and on at a lower rate: a loss or a weight is not finite.

        Raises:
            TrainingError: there is no checkpoint, or lower rates did not help.
        """
        if state is None or self.nan_restarts == MAX_NAN_RESTARTS:
            raise TrainingError(
                f"the loss or a weight was no longer finite at step {self.schedule.step}, in attempt "
                f"{self.nan_restarts + 1} of {MAX_NAN_RESTARTS + 1}; a lower learning rate or fp32 may help"
            )
        self.nan_restarts += 1
        self.curve = [point for point in self.curve if point["step"] <= state.step]
        self.schedule.resume(state.step, max(self.schedule.planned, self.schedule.total), state.reached)

    def checkpoint_saved(self, begun_at: float, now: float) -> None:
        """A checkpoint was begun and done at these instants."""
        self._saved_at, self._first = now, False
        self.checkpoint_s = now - begun_at

    # --- what is due

    def take(self, steps: int = 1) -> None:
        """So many steps were taken."""
        schedule = self.schedule
        self.lr_factor = rate_factor(schedule.step + steps - 1, schedule.total, schedule.shape, schedule.warmup)
        schedule.step += steps

    def observe(self, now: float) -> Due:
        """Move the schedule's end to where the time lasts; what is due now."""
        self.schedule.observe(now, self.overhead_s())
        if self.schedule.validation_due(self.steps_per_epoch, self.job.setting.recipe.validate_last_epochs):
            return Due.VALIDATION
        if self.schedule.done:
            return Due.NOTHING
        due = self._first or now - self._saved_at >= self.job.checkpoint_every_s
        return Due.CHECKPOINT if due else Due.NOTHING

    def validation_steps(self) -> list[int]:
        """The steps after which a validation will be due, as the end stands now."""
        return self.schedule.validation_steps(self.steps_per_epoch, self.job.setting.recipe.validate_last_epochs)

    def overhead_s(self) -> float:
        """Seconds that the trial still needs beside its steps, slowed down as the steps were: validations, checkpoints,
        and what its evaluation will take longer than planned."""
        schedule = self.schedule
        slow = max(1.0, schedule.slowdown)
        ahead = sum(step > schedule.step for step in self.validation_steps()) + self.job.averages
        saves = int(max(0.0, schedule.training_ends_at - self._saved_at) / self.job.checkpoint_every_s)
        between_s = max(0, ahead - 1) * (self.model_s + self.recapture_s)
        overhead_s = 1.2 * (ahead * self.validation_s + between_s) + saves * self.checkpoint_s
        return slow * overhead_s + (slow - 1) * self.evaluation_s

    def expect_evaluation(self, estimate: EvalEstimate) -> None:
        """The trial ends in time for an evaluation by its own process, whose seconds are estimated now.

        The plan's seconds, which are for another process and its start, are the upper limit: an estimate above them was
        made on a busy machine.
        """
        self.evaluation_s = min(estimate.whole_s, self.job.evaluation_s)
        self.first_size_s = min(estimate.first_s, self.evaluation_s)
        self.validation_s = max(self.validation_s, min(estimate.validation_s, self.evaluation_s))
        self.schedule.training_ends_at = steps_end_at(self.job, self.model_s, self.evaluation_s)

    # --- validations and models

    @property
    def validation_ends_at(self) -> float:
        """The instant by which a validation must be done.

        A trial without a validation has lost, so its last chance may take the time of all sizes of the evaluation but
        the first. (A training of 48 s was not validated in time, and the model of another, of 7 s, was delivered.)
        """
        last_chance = self.schedule.done and self.best is None
        return steps_end_at(self.job, 0.0, self.first_size_s if last_chance else self.evaluation_s)

    def can_validate(self, now: float) -> bool:
        """Whether a validation begun now would be done in time."""
        return now + self.validation_s <= self.validation_ends_at

    def validated(self, correct: int, seconds: float, recapture_s: float = 0.0) -> bool:
        """A validation found so many correct images; whether the model is the best so far (on a tie the later is)."""
        self.validation_s, self.recapture_s = seconds, recapture_s
        step = self.schedule.step
        accuracy = {"correct": correct, "total": self.n_val}
        self.validations.append({"step": step, "epoch": step / self.steps_per_epoch, "accuracy": accuracy})
        is_best = self.best is None or correct >= self.best
        self.best = max(correct, self.best or 0)
        return is_best

    def model_saved(self, seconds: float) -> None:
        """Writing a model took so long: the steps end in time for the last one."""
        self.model_s = seconds
        self.schedule.training_ends_at = steps_end_at(self.job, self.model_s, self.evaluation_s)

    # --- what is reported

    def record_loss(self, step: int, loss: float, now: float) -> Progress:
        """Note the mean loss up to a step, and the last learning rate; the message about it."""
        epoch = step / self.steps_per_epoch
        lr = self.peak_lr * self.lr_factor
        self.curve.append({"step": step, "epoch": epoch, "elapsed_s": self.elapsed_s(now), "loss": loss, "lr": lr})
        facts = {"loss": loss, "peak_bytes": self.peak_bytes}
        text = f"epoch {epoch:.1f}  loss {loss:.3f}"
        return Progress(step=step, total=self.schedule.total, text=text, facts=facts)

    def result(self, *, finished: bool = False) -> TrainResult:
        """The trial's result; before it is ``finished``, as if time were over now."""
        schedule = self.schedule
        whole: Ended = "complete" if schedule.step >= self.job.steps else "shortened"
        return TrainResult(
            steps=schedule.step,
            planned_steps=self.job.steps,
            epochs=schedule.step / self.steps_per_epoch,
            ended=whole if finished and not schedule.cut else "cut",
            best=self.best,
            validations=tuple(self.validations),
            curve=tuple(self.curve),
            peak_bytes=self.peak_bytes,
            startup_s=self.startup_s,
            training_s=self.training_s,
            nan_restarts=self.nan_restarts,
            evaluation_s=None if self.job.evaluation is None else self.evaluation_s,
            cpu_taken=self.cpu_taken,
            averaged=self.averaged,
        )


def first_and_pace(marks: Sequence[float], ahead: int) -> tuple[float, float]:
    """The extra seconds of the first batches, and the seconds per batch of the others; ``marks`` are the instants at
    which the first of two or more batches began and each was done.

    The pace leaves out the first batch, in which a pass may be recorded; and where there are many, also those that the
    loaders made ``ahead``.
    """
    since = 1 + ahead if len(marks) > 2 * (1 + ahead) else 1
    batch_s = (marks[-1] - marks[since]) / (len(marks) - 1 - since)
    return max(0.0, marks[since] - marks[0] - since * batch_s), batch_s
