"""Successive halving: the default search. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fitwithin.candidate import Candidate
from fitwithin.planning.forecast import slope
from fitwithin.planning.search import FINAL, Elimination, Search, SearchCandidate, Trial, verdict
from fitwithin.units import format_duration

#: One in so many goes on to the next rung, where it has so many times as long for steps (Li et al., "A system for
#: massively parallel hyperparameter tuning", MLSys 2020: 3 or 4); what a trial takes beside them comes on top.
ETA = 4

#: The share of the budget that is kept for the final training of the winner.
FINAL_SHARE = 0.4

#: A rung's time is so many times what a trial takes beside steps, at the least: start-up, validation, saving.
WORTHWHILE = 1.5

#: More rungs than this tell less than their time is worth.
MOST_RUNGS = 6

SECONDS_PER_HOUR = 3600.0

#: What the sum of all rungs may be off by, as a share of the final training.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """The rungs of successive halving: how many are tried on each, and for how many GPU-seconds; what is left over."""

    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """What all rungs take."""
        return math.fsum(count * each_s for count, each_s in zip(self.counts, self.seconds, strict=True))


def ladder(
    count: int, budget_s: float, fixed_s: float, *, least: int = 1, eta: int = ETA, devices: int = 1, width: int = 1
) -> Bracket | None:
    """The most rungs whose first trial is WORTHWHILE; None if not even one rung of ``count`` candidates is.

    The ``devices`` that are idle while the last trials of a rung end are paid for as if they were not: five trials on
    four devices take as long as eight.

    Args:
        budget_s: GPU-seconds for all rungs.
        fixed_s: what a trial takes beside steps.
        least: so many go on from the last rung; none has fewer trials.
        width: a trial takes so many devices at the most.
    """
    best = None
    for rungs in range(1, MOST_RUNGS + 1):
        counts = [count]
        # A rung for one alone would tell nothing.
        while len(counts) < rungs and -(-counts[-1] // eta) >= max(2, least):
            counts.append(-(-counts[-1] // eta))
        if len(counts) < rungs:
            break
        paid = [_paid(n, devices, width) for n in counts]
        beside_s = [fixed_s * each_takes(n, devices, width) for n in counts]
        stepping_s = budget_s - sum(n * each_s for n, each_s in zip(paid, beside_s, strict=True))
        first_s = stepping_s / sum(n * eta**rung for rung, n in enumerate(paid))
        if first_s < (WORTHWHILE - 1) * beside_s[0] or first_s <= 0:
            break
        seconds = tuple(each_s + first_s * eta**rung for rung, each_s in enumerate(beside_s))
        best = Bracket(counts=tuple(counts), seconds=seconds)
    return best


def each_takes(count: int, devices: int, width: int) -> int:
    """The devices of each of ``count`` trials that share them out."""
    return max(1, min(width, devices // count))


def _paid(count: int, devices: int, width: int) -> float:
    """How many trials could be done in the time that ``count`` take on the devices."""
    gpus = each_takes(count, devices, width)
    return -(-count // (devices // gpus)) * devices / gpus


class Halving(Search):
    """Successive halving by promotion: all get a little, the best ETA-th of them ETA times the steps, and so on.

    Nobody waits for a whole rung: who cannot be overtaken any more goes on at once. Where a rung has fewer trials than
    there are devices each takes several. FINAL_SHARE of the budget is kept for the final training, which goes on from
    the model that its candidate's last trial left: the best one's, or those of the best few, in equal shares, where
    there are more ``devices`` than one training can use (``width``). What a final training that fails leaves of its
    time is the next one's. With ``min_gain`` (points of accuracy per GPU-hour) it is no longer than it is worth, and
    the rest is left unspent.

    Where the budget does not pay for a rung of all entrants, the last ones are left out. Where each of them can have a
    device to itself until the end, there is nothing to search.
    """

    def __init__(
        self,
        entrants: Sequence[SearchCandidate],
        *,
        budget_s: float,
        eta: int = ETA,
        final_share: float = FINAL_SHARE,
        devices: int = 1,
        width: int = 1,
        min_gain: float | None = None,
    ) -> None:
        super().__init__(entrants)
        self.devices, self.width, self.min_gain = devices, width, min_gain
        self.finals = max(1, devices // width)
        self.final_s = final_share * budget_s
        self._shape = {"least": self.finals, "eta": eta, "devices": devices, "width": width}
        #: The ladder, and who may enter; so many of them do.
        self.ladder, self.entering = self._drawn(budget_s - self.final_s)
        self.count = self.ladder.counts[0] if self.ladder is not None else len(self.entering)
        #: Who may still have a final training, in order; None as long as the search goes on.
        self._queue: list[Trial | SearchCandidate] | None = None if self.entrants else []

    def _drawn(self, budget_s: float) -> tuple[Bracket | None, tuple[SearchCandidate, ...]]:
        """The ladder of as many entrants as it pays for; with no more than have a final training there is none.

        Where some must be left out and there is one rung, for whose end all devices wait, so many are that none of
        those is idle in its last round. (Nine trials on two devices left one idle for 5.5 s of 96.)
        """
        everyone = len(self.entrants)
        for count in range(everyone, self.finals, -1):
            fixed_s = max(entrant.fixed_s for entrant in self.entrants[:count])
            found = ladder(count, budget_s, fixed_s, **self._shape)
            if found is None or (count < everyone and self._leaves_idle(found)):
                continue
            return found, self.entrants[:count]
        return None, self.entrants[: self.finals]

    def _leaves_idle(self, drawn: Bracket) -> bool:
        """Whether the last of several rounds of its only rung does not need all devices."""
        (count, *more), devices = drawn.counts, self.devices
        return not more and count > devices and _paid(count, devices, self.width) > count

    @property
    def finished(self) -> bool:
        """Whether the final training is over, or nothing is left that could be done."""
        return self._queue is not None and not self.running and not (self._queue and self._missing)

    @property
    def _missing(self) -> int:
        """How many final trainings are not at work and have left no model."""
        return self.finals - len(self._ranked(FINAL)) - sum(trial.final for trial in self.running)

    @property
    def final_failed(self) -> bool:
        """Whether a final training left no model: the next one had what was left of its time."""
        return any(trial.number in self.scores and self._accuracy(trial) is None for trial in self._on(FINAL))

    @property
    def _nothing_to_show(self) -> bool:
        """Whether no trial has a score."""
        return all(self._accuracy(trial) is None for trial in self.trials)

    def _next(self, left_s: float, free: int, longest_s: float) -> Trial | None:
        if self._queue is None and self.ladder is not None:
            found = self._promotion() or self._entry()
            if found is not None and self._fits(found, self.ladder.counts[found.rung], left_s, longest_s):
                return self._wide(found, self.ladder.counts[found.rung], free)
            if self.running:
                return None  # what they tell may change everything
        if self._queue is None:
            self._queue = self._queued()
        while (missing := min(self._missing, len(self._queue))) > 0:
            most_s = longest_s * each_takes(self.finals, self.devices, self.width)
            final = self._final(self._queue[0], min(left_s / missing, most_s))
            if final is not None:
                placed = self._wide(final, self.finals, free)
                if placed is not None:
                    self._queue.pop(0)
                return placed
            self._queue.pop(0)
            if not self._nothing_to_show:
                del self._queue[missing - 1 :]  # for want of time nobody takes a better one's place
        return None

    def _fits(self, trial: Trial, count: int, left_s: float, longest_s: float) -> bool:
        """Whether one of ``count`` trials leaves the final training its share: of the devices' time, and of the clock.

        (All devices have the final training at once, and none may begin it before the last trial has ended.)
        """
        kept_s = self.final_s * (1 - ROUNDING)
        most_s = (longest_s - kept_s / self.devices) * each_takes(count, self.devices, self.width)
        return trial.seconds <= min(left_s - kept_s, most_s)

    def _queued(self) -> list[Trial | SearchCandidate]:
        """Who may have a final training: the best of the highest rung first; where no trial has a score, everybody."""
        best: dict[Candidate, Trial | SearchCandidate] = {}
        for rung in sorted(self._rungs, reverse=True):
            for trial in self._ranked(rung):
                best.setdefault(trial.candidate, trial)
        return [*best.values()] or [*self.entrants]

    def _entry(self) -> Trial | None:
        """The next candidate for the first rung."""
        entered = len(self._on(0))
        if self.ladder is None or entered >= self.count:
            return None
        seconds = self.ladder.seconds[0]
        return self._made(self._chosen().candidate, 0, seconds, f"all get {format_duration(seconds)}")

    def _chosen(self) -> SearchCandidate:
        """Who enters next: in order."""
        return self.entering[len(self._on(0))]

    def _promotion(self) -> Trial | None:
        """Who has not gone on from its rung and cannot be overtaken any more; from the highest rungs first."""
        assert self.ladder is not None
        for rung in range(len(self.ladder.counts) - 2, -1, -1):
            quota = self.ladder.counts[rung + 1]
            above = {trial.candidate for trial in self._on(rung + 1)}
            unknown = self._expected(rung) - sum(trial.number in self.scores for trial in self._on(rung))
            for place, trial in enumerate(self._ranked(rung)[: max(0, quota - unknown)]):
                if trial.candidate not in above:
                    seconds = self.ladder.seconds[rung + 1]
                    why = f"{self._accuracy(trial):.1%} after {format_duration(trial.seconds)}, place {place + 1}"
                    return self._made(trial.candidate, rung + 1, seconds, why)
        return None

    def _expected(self, rung: int) -> int:
        """How many trials that rung will have."""
        assert self.ladder is not None
        if rung == 0:
            return self.count
        alive = sum(self._accuracy(trial) is not None for trial in self._on(rung - 1))
        below = self._expected(rung - 1) - len(self._on(rung - 1)) + alive
        below += sum(trial.number not in self.scores for trial in self._on(rung - 1))
        return max(len(self._on(rung)), min(self.ladder.counts[rung], below))

    def _wide(self, trial: Trial, count: int, free: int) -> Trial | None:
        """The trial on as many devices as there are for each of ``count``; None to wait until so many are free.

        (Taking at once what little is free made the last trials of a rung last several times as long: with 64 devices
        and 2,000 candidates, simulated, 87 % of the devices' time was used, and 98 % this way.)
        """
        gpus = each_takes(count, self.devices, self.width)
        if gpus > free and self.running:
            return None
        return replace(trial, gpus=min(gpus, free))

    def _final(self, of: Trial | SearchCandidate, seconds: float) -> Trial | None:
        """The final training of an entrant, or of who was in that trial; None where there is no time for it."""
        why = "there is time for one candidate" if self.finals == 1 else "each has a device until the end"
        if self.ladder is not None:
            why = "no trial could be validated"
        if isinstance(of, Trial):
            why = f"{self.scores[of.number].accuracy:.1%} after {format_duration(of.seconds)}, the best so far"
        if self.final_failed:
            why += "; in the place of one whose final training failed"
        worth_s, unspent_s = self.worth_s(of.candidate), 0.0
        if worth_s is not None and worth_s < seconds:
            seconds, unspent_s = worth_s, seconds - worth_s
            why += f"; beyond {format_duration(worth_s)} a GPU-hour would gain less than {self.min_gain:g} points"
        if seconds <= max(entrant.fixed_s for entrant in self.entrants if entrant.candidate == of.candidate):
            return None
        return replace(self._made(of.candidate, FINAL, seconds, why), unspent_s=unspent_s)

    def worth_s(self, candidate: Candidate) -> float | None:
        """How long a final training is worth ``min_gain``; None where that is not asked for or cannot be told.

        Accuracy is taken to grow with the logarithm of the time, as it did from the candidate's last trial but one to
        its last: then a second gains slope / seconds.
        """
        done = [trial for trial in self.trials if trial.candidate == candidate and self._accuracy(trial) is not None]
        if self.min_gain is None or len(done) < 2:
            return None
        before, last = ((trial.seconds, 100 * self.scores[trial.number].accuracy) for trial in done[-2:])
        gained = max(0.0, slope(*before, *last))
        return max(done[-1].seconds, gained * SECONDS_PER_HOUR / self.min_gain)

    def _left_out(self) -> list[SearchCandidate]:
        """Who may not enter, or did not while there was room."""
        full = self.ladder is not None and len(self._on(0)) == self.count
        may, tried = set() if full else set(self.entering), {trial.candidate for trial in self.trials}
        return [one for one in self.entrants if one not in may and one.candidate not in tried]

    def verdicts(self) -> list[Elimination]:
        """Those left out, those that failed, and those that were not among the best of their last rung."""
        assert self.ladder is not None or len(self.entering) <= self.finals
        reason = f"left out: the time pays for {self.count} trials"
        told = [Elimination(candidate=entrant.candidate, rung=0, reason=reason) for entrant in self._left_out()]
        best = self.best
        for rung, above in pairwise([*range(len(self.ladder.counts) if self.ladder else 0), FINAL]):
            gone_on = {trial.candidate for trial in (*self._on(above), *self._on(FINAL))}
            ranked = self._ranked(rung)
            cut = next((trial for trial in reversed(ranked) if trial.candidate in gone_on), None)
            told += [
                verdict(trial, self.scores[trial.number], self.scores[cut.number] if cut else None, len(gone_on))
                for trial in self._on(rung)
                if trial.number in self.scores and trial.candidate not in gone_on and trial != best
            ]
        handed = self.scores[best.number] if best is not None else None
        told += [
            verdict(trial, self.scores[trial.number], handed, 1)
            for trial in self._on(FINAL)
            if trial.number in self.scores and (best is None or trial.candidate != best.candidate)
        ]
        return told
