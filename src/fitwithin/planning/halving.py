"""Successive halving: the default search. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fitwithin.candidate import Candidate
from fitwithin.planning.forecast import MeasuredPoint, slope
from fitwithin.planning.prior import ScoredTrial, expected_logits
from fitwithin.planning.search import FINAL, Elimination, Search, SearchCandidate, Trial, eliminate
from fitwithin.planning.stats import FailedTrial
from fitwithin.units import format_duration

#: One in ETA goes on to the next rung, with ETA times the seconds for steps (Li et al., "A system for massively
#: parallel hyperparameter tuning", MLSys 2020, use 3 or 4). A trial's overhead comes on top.
ETA = 4

#: The share of the budget for the final training of the winner.
FINAL_SHARE = 0.4

#: A trial takes at least this many times its overhead (start-up, validation, saving).
MIN_OVERHEAD_RATIO = 1.5

MOST_RUNGS = 6

#: Rounding error allowed in the sum of all rungs, as a share of the final training.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """The rungs of successive halving: the number of trials on each, and the GPU-seconds of each trial."""

    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """GPU-seconds of all rungs."""
        return math.fsum(count * each_s for count, each_s in zip(self.counts, self.seconds, strict=True))


def make_bracket(count: int, budget_s: float, overhead_s: float, *, devices: int = 1) -> Bracket | None:
    """The most rungs whose trials are worth their overhead; None if not even one rung of ``count`` candidates is.

    Idle devices are paid for: five trials on four devices cost as much as eight. No rung after the first has fewer
    trials than there are ``devices``.

    Args:
        budget_s: GPU-seconds for all rungs.
        overhead_s: what a trial takes beside steps.
    """
    best = None
    for rungs in range(1, MOST_RUNGS + 1):
        counts = [count]
        # A rung for one alone would say nothing.
        while len(counts) < rungs and -(-counts[-1] // ETA) >= max(2, devices):
            counts.append(-(-counts[-1] // ETA))
        if len(counts) < rungs:
            break
        billed = [_billed(n, devices) for n in counts]
        first_s = (budget_s - overhead_s * sum(billed)) / sum(n * ETA**rung for rung, n in enumerate(billed))
        if first_s < (MIN_OVERHEAD_RATIO - 1) * overhead_s or first_s <= 0:
            break
        seconds = tuple(overhead_s + first_s * ETA**rung for rung in range(rungs))
        best = Bracket(counts=tuple(counts), seconds=seconds)
    return best


def _billed(count: int, devices: int) -> int:
    """``count``, rounded up to a multiple of the devices."""
    return -(-count // devices) * devices


class Halving(Search):
    """Successive halving by promotion: a candidate goes on as soon as it cannot be overtaken on its rung any more.

        search = Halving(entrants, budget_s=left_s)
        while not search.finished:
            trial = search.ask(left_s=left_s)
            search.tell(trial.number, Accuracy(correct=..., total=...))

    Each of the ``devices`` has one final training, in equal shares of ``final_share`` of the budget, so the best few
    candidates have one. Where the entrants have curves, those go on of which most is expected in the end, by their
    trials and by what was known before; without curves, those that were best. If a final training fails, the next
    candidate gets the rest of its time. With ``min_gain`` (points of accuracy per GPU-hour) it is no longer than it is
    worth, and the rest is left unspent.

    If the budget does not pay for a rung of all entrants, the last ones are left out. If each entrant can have a device
    of its own until the end, there is no ``bracket``.
    """

    def __init__(
        self,
        entrants: Sequence[SearchCandidate],
        *,
        budget_s: float,
        devices: int = 1,
        min_gain: float | None = None,
        final_share: float = FINAL_SHARE,
    ) -> None:
        super().__init__(entrants)
        self.devices = devices
        self.min_gain = min_gain
        self.final_s = final_share * budget_s
        #: ``count`` of the ``admitted`` enter the first rung.
        self.bracket, self.admitted = self._admit(budget_s - self.final_s)
        self.count = self.bracket.counts[0] if self.bracket is not None else len(self.admitted)
        #: Who may still have a final training, in order; None as long as the search goes on.
        self._queue: list[Trial | SearchCandidate] | None = None if self.entrants else []

    def _admit(self, budget_s: float) -> tuple[Bracket | None, tuple[SearchCandidate, ...]]:
        """The bracket of as many entrants as the budget pays for, and those; without a bracket one per device.

        If some are left out and there is one rung only, its count is a multiple of the devices: none is idle in the
        last round. (Nine trials on two devices left one idle for 5.5 s of 96.)
        """
        everyone = len(self.entrants)
        for count in range(everyone, self.devices, -1):
            overhead_s = max(entrant.overhead_s for entrant in self.entrants[:count])
            found = make_bracket(count, budget_s, overhead_s, devices=self.devices)
            leaves_idle = found is not None and len(found.counts) == 1 and _billed(count, self.devices) > count
            if found is not None and not (leaves_idle and count < everyone):
                return found, self.entrants[:count]
        return None, self.entrants[: self.devices]

    @property
    def finished(self) -> bool:
        """Whether no trial is running and none will come."""
        return self._queue is not None and not self.running and not (self._queue and self._missing)

    @property
    def _missing(self) -> int:
        """The number of final trainings that neither run nor have left a model."""
        return self.devices - len(self._ranked(FINAL)) - sum(trial.final for trial in self.running)

    @property
    def final_failed(self) -> bool:
        """Whether a final training left no model."""
        return any(isinstance(self.scores.get(trial.number), FailedTrial) for trial in self._on(FINAL))

    def ask(self, *, left_s: float, time_left_s: float = math.inf) -> Trial | None:
        """The next trial for a device that is free; None if there is nothing to do now, or nothing any more.

        Args:
            left_s: GPU-seconds that are not promised to a trial.
            time_left_s: seconds by the clock until all must be over.
        """
        trial = None if self.finished else self._next(left_s, time_left_s)
        if trial is not None:
            self.trials.append(trial)
            self._rungs.setdefault(trial.rung, []).append(trial)
        return trial

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
        """Whether the trial leaves the final trainings their share of the devices' time and of the clock.

        (All final trainings run at the same time, after the last trial of the rungs.)
        """
        reserve_s = self.final_s * (1 - ROUNDING)
        return trial.seconds <= min(left_s - reserve_s, time_left_s - reserve_s / self.devices)

    def _final_queue(self) -> list[Trial | SearchCandidate]:
        """Who may have a final training: the best of the highest rung first; without any score, everybody."""
        best: dict[Candidate, Trial | SearchCandidate] = {}
        for rung in sorted(self._rungs, reverse=True):
            for trial in self._promising(rung):
                best.setdefault(trial.candidate, trial)
        return [*best.values()] or [*self.entrants]

    def _entry(self) -> Trial | None:
        """The next candidate for the first rung."""
        if self.bracket is None or len(self._on(0)) >= self.count:
            return None
        seconds = self.bracket.seconds[0]
        return self._new_trial(self._entrant().candidate, 0, seconds, f"all get {format_duration(seconds)}")

    def _entrant(self) -> SearchCandidate:
        """Who enters the first rung next."""
        return self.admitted[len(self._on(0))]

    def _promotion(self) -> Trial | None:
        """The next trial of a candidate that cannot be overtaken on its rung any more; highest rungs first."""
        assert self.bracket is not None
        for rung in range(len(self.bracket.counts) - 2, -1, -1):
            quota = self.bracket.counts[rung + 1]
            above = {trial.candidate for trial in self._on(rung + 1)}
            unknown = self._expected(rung) - sum(trial.number in self.scores for trial in self._on(rung))
            for place, trial in enumerate(self._promising(rung)[: max(0, quota - unknown)]):
                if trial.candidate not in above:
                    why = f"{self._reached(trial)}, place {place + 1}"
                    return self._new_trial(trial.candidate, rung + 1, self.bracket.seconds[rung + 1], why)
        return None

    def _promising(self, rung: int) -> list[Trial]:
        """The validated trials of a rung, those first of whose final training most is expected."""
        ranked = self._ranked(rung)
        curves = {trial.number: self.entrants[self._order[trial.candidate]].curve for trial in ranked}
        scored = [
            ScoredTrial(number=trial.number, seconds=trial.seconds, accuracy=accuracy, curve=curve)
            for trial in ranked
            if (accuracy := self.accuracy(trial)) is not None and (curve := curves[trial.number]) is not None
        ]
        if len(scored) < len(ranked):
            return ranked
        expected = expected_logits(scored, self.final_s / self.devices)
        return sorted(ranked, key=lambda trial: -expected[trial.number])

    def _reached(self, trial: Trial) -> str:
        accuracy = self.accuracy(trial)
        assert accuracy is not None
        return f"{accuracy.percent} after {format_duration(trial.seconds)}"

    def _expected(self, rung: int) -> int:
        """The number of trials that the rung will have."""
        assert self.bracket is not None
        if rung == 0:
            return self.count
        failed = sum(isinstance(self.scores.get(trial.number), FailedTrial) for trial in self._on(rung - 1))
        return max(len(self._on(rung)), min(self.bracket.counts[rung], self._expected(rung - 1) - failed))

    def _final(self, of: Trial | SearchCandidate, seconds: float) -> Trial | None:
        """The final training of an entrant, or of a trial's candidate; None if there is no time for it."""
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

        Accuracy is taken to grow with the logarithm of the time, as between the candidate's last two trials: after
        ``t`` seconds one second more gains slope / t.
        """
        done = [
            MeasuredPoint(gpu_s=trial.seconds, accuracy=accuracy)
            for trial in self.trials
            if trial.candidate == candidate and (accuracy := self.accuracy(trial)) is not None
        ]
        if self.min_gain is None or len(done) < 2:
            return None
        gained = 100 * max(0.0, slope(*done[-2:]))
        return max(done[-1].gpu_s, gained * 3600 / self.min_gain)

    def eliminations(self) -> list[Elimination]:
        """Those left out, those that failed, and those that were not among the best of their last rung."""
        full = self.bracket is not None and len(self._on(0)) == self.count
        may_enter, tried = set() if full else set(self.admitted), {trial.candidate for trial in self.trials}
        reason = f"left out: the time pays for {self.count} trials"
        out = [
            Elimination(candidate=entrant.candidate, rung=0, reason=reason)
            for entrant in self.entrants
            if entrant not in may_enter and entrant.candidate not in tried
        ]
        best = self.best
        rungs = [*range(len(self.bracket.counts) if self.bracket else 0), FINAL]
        for rung, above in zip(rungs, [*rungs[1:], None], strict=True):
            if above is None:
                promoted, last = {best.candidate} if best else set(), best
            else:
                promoted = {trial.candidate for trial in (*self._on(above), *self._on(FINAL))}
                last = next((trial for trial in reversed(self._ranked(rung)) if trial.candidate in promoted), None)
            cutoff = None if last is None else self.accuracy(last)
            out += [
                eliminate(trial, self.scores[trial.number], cutoff, len(promoted))
                for trial in self._on(rung)
                if trial.number in self.scores and trial.candidate not in promoted and trial != best
            ]
        return out
