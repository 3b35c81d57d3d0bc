"""The course of one trial: its steps, the image size of each, and a learning rate that ends at exactly 0.

A trial is planned in steps. While it runs, the pace is measured; where the steps left no longer fit before the
deadline, the end moves forward and the rate is drawn to the new end (Li, Yumer, Ramanan, "Budgeted Training", ICLR
2020: a schedule must span exactly the budget). Where more would fit, an open-ended schedule moves it back. A frozen
schedule keeps its steps, so that it can be replayed.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from fitwithin.engine.jobs import CURVE_POINTS, READING_S, Stage, TrainJob
from fitwithin.engine.margins import EXIT_S, HANDOVER_S, REHEARSED_MARGIN


def cosine(step: int, total: int) -> float:
    """The learning-rate factor of step ``step`` (0-based) of ``total``: 1 at the first, exactly 0 at the last."""
    if total <= 1:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total - 1) / (total - 1)))


def rate_factor(step: int, total: int, shape: str = "cosine", warmup: float = 0.0) -> float:
    """The learning-rate factor of step ``step`` (0-based) of ``total``: it rises over the share ``warmup``, then falls.

    The first of n warm-up steps has 1/n; the last step has exactly 0. In a total of one step the factor is 1.
    """
    rising = min(math.ceil(warmup * total), total - 1) if total > 1 else 0
    if step < rising:
        return (step + 1) / rising
    step, total = step - rising, total - rising
    if shape == "linear" and total > 1:
        return 1.0 - min(step, total - 1) / (total - 1)
    return cosine(step, total) if total > 1 or not rising else 0.0


#: The planned pace counts like this many measured steps, so that a slow start does not end a trial early; in a short
#: trial like this share of its steps.
PRIOR_STEPS, PRIOR_SHARE = 20, 1 / 3

#: Steps over which the pace is measured; a single reading counts at most OUTLIER times the planned pace.
WINDOW, OUTLIER = 100, 10.0


#: The first steps at another size are part of the change.
UNSTEADY_STEPS = 3


@dataclass(kw_only=True)
class Schedule:
    """Steps of one trial against its deadline.

    ``training_ends_at`` is the deadline less everything that must follow the last step; ``planned_step_s`` the pace
    that was planned, or that of each of the ``stages``. An ``open_ended`` schedule goes beyond its plan while time
    lasts. ``cut``: the time ended before a last step at rate 0 could be taken.
    """

    planned: int
    training_ends_at: float
    planned_step_s: float
    frozen: bool = False
    shape: str = "cosine"
    warmup: float = 0.0
    stages: tuple[Stage, ...] = ()
    open_ended: bool = False
    step: int = 0
    reached: int = field(default=0, init=False)
    total: int = field(init=False)
    cut: bool = field(default=False, init=False)
    _stage: int = field(default=0, init=False)
    _unsteady: int = field(default=0, init=False)
    _slow: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW), init=False)
    _seen_at: float | None = field(default=None, init=False)
    _seen_step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.total = self.planned
        if not self.stages:
            self.stages = (Stage(since=0.0, px=0, step_s=self.planned_step_s),)

    @property
    def done(self) -> bool:
        """Whether the last step has been taken."""
        return self.step >= self.total

    @property
    def lr_factor(self) -> float:
        """The learning-rate factor of the step about to be taken."""
        return rate_factor(self.step, self.total, self.shape, self.warmup)

    @property
    def stage(self) -> Stage:
        """The stage of the step about to be taken. A trial never goes back to an earlier one."""
        return self.stages[self._stage]

    @property
    def slowdown(self) -> float:
        """How many times as long as planned the last steps took, on average; the plan counts as a prior."""
        seen = sum(min(slow, OUTLIER) for slow in self._slow)
        prior = max(1.0, min(PRIOR_STEPS, PRIOR_SHARE * self.planned))
        return (seen + prior) / (len(self._slow) + prior)

    def _ahead(self, total: int) -> Iterator[tuple[Stage, int]]:
        """The stages from this one on, each with the steps left in it if the last step is ``total``."""
        later = [math.ceil(stage.since * total) for stage in self.stages[self._stage + 1 :]]
        for stage, begin, end in zip(self.stages[self._stage :], [self.step, *later], [*later, total], strict=True):
            yield stage, max(0, min(end, total) - max(begin, self.step))

    def _planned_s(self, total: int) -> float:
        """Seconds of the steps until ``total`` at the planned pace."""
        return sum(steps * stage.step_s for stage, steps in self._ahead(total))

    def validation_steps(self, steps_per_epoch: float, validate_last_epochs: int) -> list[int]:
        """The steps that end the last epochs, as the end stands now, ascending, without those that were reached."""
        steps = {self.total - round(k * steps_per_epoch) for k in range(validate_last_epochs - self.reached)}
        return sorted(step for step in steps if step > 0)

    def validation_due(self, steps_per_epoch: float, validate_last_epochs: int) -> bool:
        """Whether the end of one of the last epochs has been reached now, wherever the end of the trial moves then:
        validation is due, once for each."""
        ends = {k: self.total - round(k * steps_per_epoch) for k in range(validate_last_epochs - self.reached)}
        over = [k for k, step in ends.items() if 0 < step <= self.step]
        self.reached = validate_last_epochs - min(over, default=validate_last_epochs - self.reached)
        return bool(over)

    def resume(self, step: int, planned: int, reached: int) -> None:
        """Go on from ``step`` of an earlier process, with the end ``planned`` at the furthest and ``reached`` ends of
        the last epochs behind."""
        self.step, self.planned, self.total, self.reached = step, planned, planned, reached
        self._enter()

    def state(self) -> tuple[int, int, int]:
        """What :meth:`sync` takes."""
        return self.total, self.cut, self._stage

    def sync(self, total: int, cut: bool, stage: int) -> None:
        """End where another schedule of the same trial ends, and be in the same stage."""
        self.total, self.cut, self._stage = total, cut, stage

    def pause(self) -> None:
        """Forget the last reading: what follows (a validation, a checkpoint) is no step."""
        self._seen_at = None

    def stop(self) -> None:
        """No more steps can be taken."""
        self.total, self.cut = self.step, True

    def observe(self, now: float, overhead_s: float = 0.0) -> None:
        """Take note that ``step`` steps are done at ``now``, and draw the end anew.

        ``overhead_s`` is what the steps left will need beside themselves (validations, checkpoints). The end is where
        the time lasts to at the measured pace, never beyond the plan's, and at least one step ahead, so that the last
        step is taken at learning rate 0; only when the time itself is over already, the trial ends here. (A validation
        that no longer fits is left out, so its overhead alone must not cut a trial: on machines that slowed down,
        simulated, it did so to 56 of 244 trials; 2 are left.)
        """
        if self._unsteady:
            self._unsteady -= 1
        elif self._seen_at is not None and self.step > self._seen_step:
            self._slow.append((now - self._seen_at) / (self.step - self._seen_step) / self.stage.step_s)
        self._seen_at, self._seen_step = now, self.step
        if self.done:
            return
        left_s = self.training_ends_at - now
        if left_s <= 0:
            self.stop()
        elif not self.frozen:
            self.total = max(self.step + 1, self._affordable(left_s - overhead_s))
        self._enter()

    def _affordable(self, left_s: float) -> int:
        """The last step that can be taken within ``left_s``, no further than allowed."""
        changes_s = sum(stage.change_s for stage in self.stages[self._stage + 1 :])
        planned_s = max(0.0, left_s - changes_s) / self.slowdown
        furthest = self.planned
        if self.open_ended:
            furthest = self.step + math.floor(planned_s / min(stage.step_s for stage in self.stages))
        totals = range(self.step, max(self.step, furthest) + 1)
        return self.step + bisect.bisect_right(totals, planned_s, key=self._planned_s) - 1

    def _enter(self) -> None:
        """Go on to the stage in which the next step lies."""
        while (later := self._stage + 1) < len(self.stages) and self.step >= self.stages[later].since * self.total:
            self._stage, self._unsteady = later, UNSTEADY_STEPS
            self.pause()


def make_schedule(job: TrainJob) -> Schedule:
    """The course of a job's training; its last model must be saved and its process end by ``job.until_at``."""
    whole = Stage(since=0.0, px=job.candidate.train_px, step_s=job.step_s)
    return Schedule(
        planned=job.steps,
        training_ends_at=steps_end_at(job, job.save_s),
        planned_step_s=job.step_s,
        frozen=job.frozen,
        shape=job.setting.recipe.schedule,
        warmup=job.setting.recipe.warmup,
        stages=job.stages or (whole,),
        open_ended=job.open_ended,
    )


def steps_end_at(job: TrainJob, model_s: float, evaluation_s: float = 0.0) -> float:
    """The instant by which steps and validations must have ended: writing the last model takes ``model_s`` seconds, and
    the evaluation by the same process, if there is one, ``evaluation_s``."""
    if job.evaluation is None:
        return job.until_at - EXIT_S - 1.2 * model_s
    return job.until_at - 1.2 * model_s - HANDOVER_S - (1 + REHEARSED_MARGIN) * evaluation_s


def reading_every_s(trial_s: float) -> float:
    """Seconds between readings of the loss in a trial of ``trial_s`` seconds."""
    return max(READING_S, trial_s / CURVE_POINTS)
