"""The course of one turn: a number of steps, never more than planned, and a learning rate that ends at exactly 0.

A turn is planned in steps. While it runs, the pace is measured; where the steps left no longer fit before the deadline,
the end moves forward and the rate is drawn to the new end (Li, Yumer, Ramanan, "Budgeted Training", ICLR 2020:
a schedule must span exactly the budget). A frozen schedule keeps its steps, so that it can be replayed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


def cosine(step: int, total: int) -> float:
    """The learning-rate factor of step ``step`` (0-based) of ``total``: 1 at the first, exactly 0 at the last."""
    if total <= 1:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total - 1) / (total - 1)))


#: Ways down from the peak rate.
SCHEDULES = ("cosine", "linear")


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


#: The planned pace counts like this many measured steps, so that a slow start does not end a turn early.
PRIOR_STEPS = 20

#: Steps over which the pace is measured; a single reading counts at most OUTLIER times the planned pace.
WINDOW, OUTLIER = 100, 10.0


@dataclass(kw_only=True)
class Schedule:
    """Steps of one turn against its deadline.

    ``training_ends_at`` is the deadline less everything that must follow the last step; ``planned_step_s`` the pace
    that was planned. ``cut`` tells that time ended before a last step at rate 0 could be taken.
    """

    planned: int
    training_ends_at: float
    planned_step_s: float
    frozen: bool = False
    shape: str = "cosine"
    warmup: float = 0.0
    step: int = 0
    total: int = field(init=False)
    cut: bool = field(default=False, init=False)
    _paces_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW), init=False)
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
    def pace_s(self) -> float:
        """Seconds per step: the mean of the last readings and of the plan's as a prior."""
        most_s = OUTLIER * self.planned_step_s
        seen_s = sum(min(pace_s, most_s) for pace_s in self._paces_s)
        return (seen_s + PRIOR_STEPS * self.planned_step_s) / (len(self._paces_s) + PRIOR_STEPS)

    def marks(self, steps_per_epoch: float, last_epochs: int) -> list[int]:
        """The steps that end the last epochs, as the end stands now, ascending: after them validation is due."""
        steps = {self.total - round(k * steps_per_epoch) for k in range(last_epochs)}
        return sorted(step for step in steps if 0 < step <= self.total)

    def hold(self) -> None:
        """The last epochs have begun: from here the end moves away no more, or they would be validated twice."""
        self.planned = self.total

    def go_on(self, step: int, planned: int) -> None:
        """Take up a schedule that an earlier process left at ``step``, with the end ``planned`` at the furthest."""
        self.step, self.planned, self.total = step, planned, planned

    def pause(self) -> None:
        """Forget the last reading: what follows (a validation, a checkpoint) is no step."""
        self._seen_at = None

    def observe(self, now: float, overhead_s: float = 0.0) -> None:
        """Take note that ``step`` steps are done at ``now``, and draw the end anew.

        ``overhead_s`` is what the steps left will need beside themselves (validations, checkpoints). The end is where
        the time lasts to at the measured pace, never beyond the plan's, and at least one step ahead, so that the last
        step is taken at learning rate 0; only when the time itself is over already, the turn ends here. (A validation
        that no longer fits is left out, so its overhead alone must not cut a turn: on machines that slowed down,
        simulated, it did so to 56 of 244 turns; 2 are left.)
        """
        if self._seen_at is not None and self.step > self._seen_step:
            self._paces_s.append((now - self._seen_at) / (self.step - self._seen_step))
        self._seen_at, self._seen_step = now, self.step
        if self.done:
            return
        left_s = self.training_ends_at - now
        if left_s <= 0:
            self.total, self.cut = self.step, True
        elif not self.frozen:
            affordable = math.floor((left_s - overhead_s) / self.pace_s)
            self.total = min(self.planned, self.step + max(1, affordable))
