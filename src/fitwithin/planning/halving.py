"""Successive halving: the default search. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fitwithin.candidate import Candidate
from fitwithin.planning.forecast import MeasuredPoint, slope
from fitwithin.planning.search import FINAL, Elimination, Search, SearchCandidate, Trial, eliminate
from fitwithin.planning.stats import FailedTrial
from fitwithin.units import format_duration

#: One in so many goes on to the next rung, where it has so many times as long for steps (Li et al., "A system for
#: massively parallel hyperparameter tuning", MLSys 2020: 3 or 4); what a trial takes beside them comes on top.
ETA = 4

#: The share of the budget that is set aside for the final training of the winner.
FINAL_SHARE = 0.4

#: A trial takes at least so many times what it takes beside steps: start-up, validation, saving.
MIN_OVERHEAD_RATIO = 1.5

#: More rungs than this say less than their time is worth.
MOST_RUNGS = 6

SECONDS_PER_HOUR = 3600.0

#: What the sum of all rungs may be off by, as a share of the final training.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """The rungs of successive halving: how many are tried on each, and for how many GPU-seconds."""

    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """GPU-seconds of all rungs."""
        return math.fsum(count * each_s for count, each_s in zip(self.counts, self.seconds, strict=True))


def make_bracket(count: int, budget_s: float, overhead_s: float, *, eta: int = ETA, devices: int = 1) -> Bracket | None:
    """The most rungs whose trials are worth their overhead; None if not even one rung of ``count`` candidates is.

    The ``devices`` that are idle while the last trials of a rung end are paid for as if they were not: five trials on
    four devices take as long as eight. No rung after the first has fewer trials than there are devices.

    Args:
        budget_s: GPU-seconds for all rungs.
        overhead_s: what a trial takes beside steps.
    """
    best = None
    for rungs in range(1, MOST_RUNGS + 1):
        counts = [count]
        # A rung for one alone would say nothing.
        while len(counts) < rungs and -(-counts[-1] // eta) >= max(2, devices):
            counts.append(-(-counts[-1] // eta))
        if len(counts) < rungs:
            break
        billed = [_billed(n, devices) for n in counts]
        first_s = (budget_s - overhead_s * sum(billed)) / sum(n * eta**rung for rung, n in enumerate(billed))
        if first_s < (MIN_OVERHEAD_RATIO - 1) * overhead_s or first_s <= 0:
            break
        seconds = tuple(overhead_s + first_s * eta**rung for rung in range(rungs))
        best = Bracket(counts=tuple(counts), seconds=seconds)
    return best


def _billed(count: int, devices: int) -> int:
    """How many trials could be done in the time that ``count`` take on the devices."""
    return -(-count // devices) * devices


class Halving(Search):
    """Successive halving by promotion: all get a little, the best ETA-th of them ETA times the steps, and so on.

    No trial waits for a whole rung: a candidate that cannot be overtaken any more goes on at once. FINAL_SHARE of the
    budget is set aside for the final training, which starts from the model that its candidate's last trial left: one
    for each of the ``devices``, in equal shares, so the best few have one. If a final training fails, the next one gets
    the rest of its time. With ``min_gain`` (points of accuracy per GPU-hour) it is no longer than it is worth, and the
    rest is left unspent.

    Where the budget does not pay for a rung of all entrants, the last ones are left out. Where each of them can have a
    device to itself until the end, there is no ``bracket`` and nothing to search.
    """

    def __init__(
        self,
        entrants: Sequence[SearchCandidate],
        *,
        budget_s: float,
        eta: int = ETA,
        final_share: float = FINAL_SHARE,
        devices: int = 1,
        min_gain: float | None = None,
    ) -> None:
        super().__init__(entrants)
        self.devices = devices
        self.eta = eta
        self.min_gain = min_gain
        self.final_s = final_share * budget_s
        #: The bracket, and who may enter; ``count`` of them do.
        self.bracket, self.admitted = self._admit(budget_s - self.final_s)
        self.count = self.bracket.counts[0] if self.bracket is not None else len(self.admitted)
        #: Who may still have a final training, in order; None as long as the search goes on.
        self._queue: list[Trial | SearchCandidate] | None = None if self.entrants else []

    def _admit(self, budget_s: float) -> tuple[Bracket | None, tuple[SearchCandidate, ...]]:
        """The bracket of as many entrants as it pays for, and those; without a bracket as many as there are devices.

        Where some are left out and there is one rung, whose end all devices wait for, so many are that no device is
        idle in its last round. (Nine trials on two devices left one idle for 5.5 s of 96.)
        """
        everyone = len(self.entrants)
        for count in range(everyone, self.devices, -1):
            overhead_s = max(entrant.overhead_s for entrant in self.entrants[:count])
            found = make_bracket(count, budget_s, overhead_s, eta=self.eta, devices=self.devices)
            if found is None or (count < everyone and self._leaves_idle(found)):
                continue
            return found, self.entrants[:count]
        return None, self.entrants[: self.devices]

    def _leaves_idle(self, bracket: Bracket) -> bool:
        """Whether the last of several rounds of its only rung does not need all devices."""
        (count, *more) = bracket.counts
        return not more and count > self.devices and _billed(count, self.devices) > count

    @property
    def finished(self) -> bool:
        """Whether the final training is over, or nothing is left that could be done."""
        return self._queue is not None and not self.running and not (self._queue and self._missing)

    @property
    def _missing(self) -> int:
        """How many final trainings are not running and have left no model."""
        return self.devices - len(self._ranked(FINAL)) - sum(trial.final for trial in self.running)

    @property
    def final_failed(self) -> bool:
        """Whether a final training left no model: the next one had the rest of its time."""
        return any(isinstance(self.scores.get(trial.number), FailedTrial) for trial in self._on(FINAL))

    def _next(self, left_s: float, time_left_s: float) -> Trial | None:
        if self._queue is None and self.bracket is not None:
            found = self._promotion() or self._entry()
            if found is not None and self._fits(found, left_s, time_left_s):
                return found
            if self.running:
                return None  # their scores may change everything
        if self._queue is None:
            self._queue = self._final_queue()
        while (missing := min(self._missing, len(self._queue))) > 0:
            final = self._final(self._queue.pop(0), min(left_s / missing, time_left_s))
            if final is not None:
                return final
            if any(self.accuracy(trial) is not None for trial in self.trials):
                del self._queue[missing - 1 :]  # for want of time no one takes the place of a better one
        return None

    def _fits(self, trial: Trial, left_s: float, time_left_s: float) -> bool:
        """Whether the trial leaves the final training its share: of the devices' time, and of the clock.

        (All devices have the final training at once, and none may begin it before the last trial has ended.)
        """
        reserve_s = self.final_s * (1 - ROUNDING)
        return trial.seconds <= min(left_s - reserve_s, time_left_s - reserve_s / self.devices)

    def _final_queue(self) -> list[Trial | SearchCandidate]:
        """Who may have a final training: the best of the highest rung first; where no trial has a score, everybody."""
        best: dict[Candidate, Trial | SearchCandidate] = {}
        for rung in sorted(self._rungs, reverse=True):
            for trial in self._ranked(rung):
                best.setdefault(trial.candidate, trial)
        return [*best.values()] or [*self.entrants]

    def _entry(self) -> Trial | None:
        """The next candidate for the first rung."""
        if self.bracket is None or len(self._on(0)) >= self.count:
            return None
        seconds = self.bracket.seconds[0]
        return self._new_trial(self._entrant().candidate, 0, seconds, f"all get {format_duration(seconds)}")

    def _entrant(self) -> SearchCandidate:
        """Who enters next: in order."""
        return self.admitted[len(self._on(0))]

    def _promotion(self) -> Trial | None:
        """The next trial of a candidate that cannot be overtaken on its rung any more; the highest rungs first."""
        assert self.bracket is not None
        for rung in range(len(self.bracket.counts) - 2, -1, -1):
            quota = self.bracket.counts[rung + 1]
            above = {trial.candidate for trial in self._on(rung + 1)}
            unknown = self._expected(rung) - sum(trial.number in self.scores for trial in self._on(rung))
            for place, trial in enumerate(self._ranked(rung)[: max(0, quota - unknown)]):
                if trial.candidate not in above:
                    why = f"{self._reached(trial)}, place {place + 1}"
                    return self._new_trial(trial.candidate, rung + 1, self.bracket.seconds[rung + 1], why)
        return None

    def _reached(self, trial: Trial) -> str:
        accuracy = self.accuracy(trial)
        assert accuracy is not None
        return f"{accuracy.percent} after {format_duration(trial.seconds)}"

    def _expected(self, rung: int) -> int:
        """How many trials that rung will have."""
        assert self.bracket is not None
        if rung == 0:
            return self.count
        failed = sum(isinstance(self.scores.get(trial.number), FailedTrial) for trial in self._on(rung - 1))
        return max(len(self._on(rung)), min(self.bracket.counts[rung], self._expected(rung - 1) - failed))

    def _final(self, of: Trial | SearchCandidate, seconds: float) -> Trial | None:
        """The final training of an entrant, or of the candidate of a trial; None where there is no time for it."""
        if isinstance(of, Trial):
            why = f"{self._reached(of)}, the best so far"
        elif self.bracket is not None:
            why = "no trial could be validated"
        else:
            why = "there is time for one candidate" if self.devices == 1 else "each has a device until the end"
        if self.final_failed:
            why += "; in place of a final training that failed"
        worth_s, unspent_s = self.worth_s(of.candidate), 0.0
        if worth_s is not None and worth_s < seconds:
            seconds, unspent_s = worth_s, seconds - worth_s
            why += f"; after {format_duration(worth_s)} one GPU-hour more would gain less than {self.min_gain:g} points"
        if seconds <= self.entrants[self._order[of.candidate]].overhead_s:
            return None
        return replace(self._new_trial(of.candidate, FINAL, seconds, why), unspent_s=unspent_s)

    def worth_s(self, candidate: Candidate) -> float | None:
        """Seconds after which a final training gains less than ``min_gain``; None without that, or if it is unknown.

        Accuracy is taken to grow with the logarithm of the time, as it did from the candidate's last trial but one to
        its last: then a second gains slope / seconds.
        """
        done = [
            MeasuredPoint(gpu_s=trial.seconds, accuracy=accuracy)
            for trial in self.trials
            if trial.candidate == candidate and (accuracy := self.accuracy(trial)) is not None
        ]
        if self.min_gain is None or len(done) < 2:
            return None
        gained = 100 * max(0.0, slope(*done[-2:]))
        return max(done[-1].gpu_s, gained * SECONDS_PER_HOUR / self.min_gain)

    def _left_out(self) -> list[SearchCandidate]:
        """Who may not enter, or did not while there was room."""
        full = self.bracket is not None and len(self._on(0)) == self.count
        may, tried = set() if full else set(self.admitted), {trial.candidate for trial in self.trials}
        return [one for one in self.entrants if one not in may and one.candidate not in tried]

    def eliminations(self) -> list[Elimination]:
        """Those left out, those that failed, and those that were not among the best of their last rung."""
        reason = f"left out: the time pays for {self.count} trials"
        out = [Elimination(candidate=entrant.candidate, rung=0, reason=reason) for entrant in self._left_out()]
        best = self.best
        for rung, above in pairwise([*range(len(self.bracket.counts) if self.bracket else 0), FINAL]):
            promoted = {trial.candidate for trial in (*self._on(above), *self._on(FINAL))}
            last = next((trial for trial in reversed(self._ranked(rung)) if trial.candidate in promoted), None)
            cutoff = None if last is None else self.accuracy(last)
            out += [
                eliminate(trial, self.scores[trial.number], cutoff, len(promoted))
                for trial in self._on(rung)
                if trial.number in self.scores and trial.candidate not in promoted and trial != best
            ]
        cutoff = None if best is None else self.accuracy(best)
        out += [
            eliminate(trial, self.scores[trial.number], cutoff, 1)
            for trial in self._on(FINAL)
            if trial.number in self.scores and (best is None or trial.candidate != best.candidate)
        ]
        return out
