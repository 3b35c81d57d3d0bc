"""The course of one trial: its steps, the image size of each, and a learning rate that ends at exactly 0.

A trial is planned in steps, and its pace is measured. If the steps left no longer fit before the deadline, the end
moves forward and the rate follows it (Li, Yumer, Ramanan, "Budgeted Training", ICLR 2020: a schedule must span exactly
the budget). If more would fit, an open-ended schedule moves it back. A frozen schedule keeps its steps, so that it can
be replayed.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from dataclasses import dataclass, field

from fitwithin.engine.jobs import CURVE_POINTS, READING_S, Stage, TrainJob
from fitwithin.engine.margins import EXIT_S, HANDOVER_S, REHEARSED_MARGIN


def rate_factor(step: int, total: int, shape: str, warmup: float) -> float:
    """The learning-rate factor of step ``step`` (0-based) of ``total``: it rises over the share ``warmup``, then falls
    as a ``cosine`` or ``linear``.

    The first of n warm-up steps has 1/n; the last step has exactly 0. In a total of one step the factor is 1.
    """
    rising = min(math.ceil(warmup * total), total - 1) if total > 1 else 0
    if step < rising:
        return (step + 1) / rising
    last = total - rising - 1
    if not last:
        return 0.0 if rising else 1.0
    step = min(step - rising, last)
    return 1.0 - step / last if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * step / last))


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

    ``training_ends_at`` is the deadline less everything that must follow the last step. ``stages`` have the planned
    pace. An ``open_ended`` schedule goes beyond its plan while time lasts. ``reached`` counts the last epochs that have
    ended. ``cut``: the time ended before a last step at rate 0 could be taken.
    """

    planned: int
    training_ends_at: float
    stages: tuple[Stage, ...]
    frozen: bool = False
    shape: str = "cosine"
    warmup: float = 0.0
    open_ended: bool = False
    step: int = field(default=0, init=False)
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

    def _planned_s(self, total: int) -> float:
        """Seconds of the steps until ``total`` at the planned pace."""
        left = self.stages[self._stage :]
        later = [math.ceil(stage.since * total) for stage in left[1:]]
        spans = zip(left, [self.step, *later], [*later, total], strict=True)
        return sum(max(0, min(end, total) - max(begin, self.step)) * stage.step_s for stage, begin, end in spans)

    def _ends(self, steps_per_epoch: float, validate_last_epochs: int) -> dict[int, int]:
        """The last epochs that are left, counted from the end, and the step that ends each, as the end stands now."""
        return {k: self.total - round(k * steps_per_epoch) for k in range(validate_last_epochs - self.reached)}

    def validation_steps(self, steps_per_epoch: float, validate_last_epochs: int) -> list[int]:
        """The steps that end the last epochs, as the end stands now, ascending, without those that were reached."""
        return sorted({step for step in self._ends(steps_per_epoch, validate_last_epochs).values() if step > 0})

    def validation_due(self, steps_per_epoch: float, validate_last_epochs: int) -> bool:
        """Whether the end of one of the last epochs has just been reached; true once for each of them."""
        over = [k for k, step in self._ends(steps_per_epoch, validate_last_epochs).items() if 0 < step <= self.step]
        if over:
            self.reached = validate_last_epochs - min(over)
        return bool(over)

    def resume(self, step: int, planned: int, reached: int) -> None:
        """Go on from ``step`` of an earlier process, which planned ``planned`` steps at most and of the last epochs had
        ended ``reached``."""
        self.step, self.planned, self.total, self.reached = step, planned, planned, reached
        self._enter()

    def state(self) -> tuple[int, int, int]:
        """The arguments of :meth:`sync`."""
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
        """Note that ``step`` steps are done at ``now``, and move the end to where the time lasts at the measured pace.

        ``overhead_s`` is for validations and checkpoints to come. The end is never beyond the plan's, and at least one
        step ahead, so that the last step has learning rate 0; only when the time itself is over, the trial ends here.
        (A validation that no longer fits is left out, so its overhead alone must not cut a trial: on simulated machines
        that slowed down it cut 56 of 244 trials; now 2.)
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
    """The schedule of a job; its last model must be saved and its process end by ``job.until_at``."""
    return Schedule(
        planned=job.steps,
        training_ends_at=steps_end_at(job, job.save_s),
        frozen=job.frozen,
        shape=job.setting.recipe.schedule,
        warmup=job.setting.recipe.warmup,
        stages=job.stages or (Stage(since=0.0, px=job.candidate.train_px, step_s=job.step_s),),
        open_ended=job.open_ended,
    )


def steps_end_at(job: TrainJob, model_s: float, evaluation_s: float = 0.0) -> float:
    """The instant by which steps and validations must end: then the last model is written in ``model_s`` seconds, and
    evaluated in ``evaluation_s``, if the same process does that."""
    if job.evaluation is None:
        return job.until_at - EXIT_S - 1.2 * model_s
    return job.until_at - 1.2 * model_s - HANDOVER_S - (1 + REHEARSED_MARGIN) * evaluation_s


def reading_every_s(trial_s: float) -> float:
    """Seconds between readings of the loss in a trial of ``trial_s`` seconds."""
    return max(READING_S, trial_s / CURVE_POINTS)
