"""Which candidate is trained next, and for how long: a search is asked for trials and gets their scores. Pure.

    search = Halving(entrants, budget_s=left_s)
    while not search.finished:
        trial = search.ask(left_s=left_s)
        search.tell(trial.number, Accuracy(correct=..., total=...))

The time of a trial is counted in GPU-seconds, and each is a complete schedule that ends at a learning rate of 0:
candidates are compared after equal time, never in the middle of a cosine. The state of a search follows from what it
was asked and got, so a run that was interrupted repeats both and goes on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fitwithin.candidate import Candidate
from fitwithin.planning.stats import Accuracy, FailedTrial, confidence, format_confidence
from fitwithin.units import format_duration

#: The rung of the final training.
FINAL = -1

Score = Accuracy | FailedTrial


@dataclass(frozen=True, kw_only=True)
class SearchCandidate:
    """A candidate in a search, and the seconds that any trial of it takes beside its steps.

    Entrants come in the order in which they should be tried: prior knowledge orders, it decides nothing.
    """

    candidate: Candidate
    overhead_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A complete schedule of ``seconds`` GPU-seconds; ``rung`` counts from 0, the final training has -1.

    ``previous`` is the number of the candidate's trial before, whose model it may start from. ``unspent_s`` are seconds
    that it could have had and that were not worth it.
    """

    number: int
    candidate: Candidate
    rung: int
    seconds: float
    why: str
    previous: int | None = None
    unspent_s: float = 0.0

    @property
    def final(self) -> bool:
        """Whether it is a final training."""
        return self.rung == FINAL

    @property
    def suffix(self) -> str:
        """What its name has behind the candidate's; nothing on the first rung."""
        return "final" if self.final else f"rung{self.rung}" if self.rung else ""

    @property
    def name(self) -> str:
        """The name of its folder, events and entries in the ledger."""
        return f"{self.candidate.name}-{self.suffix}" if self.suffix else self.candidate.name


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """Why a candidate is out.

    ``cutoff`` is what the worst of those that were promoted from its ``rung`` reached, ``confidence`` how sure it is
    that this one is really better. Both are None for a candidate that failed or was never tried; with equal shares
    there is no confidence.
    """

    candidate: Candidate
    rung: int
    reason: str
    confidence: float | None = None
    cutoff: Accuracy | None = None


class Search(ABC):
    """The trials of a search and their scores, whatever chooses the next one."""

    def __init__(self, entrants: Sequence[SearchCandidate]) -> None:
        self.entrants = tuple(entrants)
        self.trials: list[Trial] = []
        self.scores: dict[int, Score] = {}
        self._order = {entrant.candidate: place for place, entrant in enumerate(self.entrants)}
        self._rungs: dict[int, list[Trial]] = {}

    def ask(self, *, left_s: float, time_left_s: float = math.inf) -> Trial | None:
        """The next trial for a device that is free; None where there is nothing to do now, or nothing any more.

        Args:
            left_s: GPU-seconds that are not promised to a trial.
            time_left_s: seconds by the clock until all must be over.
        """
        if self.finished:
            return None
        trial = self._next(left_s, time_left_s)
        if trial is not None:
            self.trials.append(trial)
            self._rungs.setdefault(trial.rung, []).append(trial)
        return trial

    def tell(self, number: int, score: Score) -> None:
        """Record how the trial of that number ended."""
        assert any(trial.number == number for trial in self.trials), f"trial {number} was not asked for"
        assert number not in self.scores, f"trial {number} has its score already"
        self.scores[number] = score

    @property
    def running(self) -> list[Trial]:
        """The trials that have no score yet."""
        return [trial for trial in self.trials if trial.number not in self.scores]

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether no trial is running and none will come."""

    @abstractmethod
    def _next(self, left_s: float, time_left_s: float) -> Trial | None: ...

    @abstractmethod
    def eliminations(self) -> list[Elimination]:
        """Why each candidate that is out went no further."""

    @property
    def best(self) -> Trial | None:
        """The trial whose model is delivered: the best of the highest rung, or the final one if that is no worse."""
        rungs = sorted((rung for rung in self._rungs if rung != FINAL), reverse=True)
        found = next((ranked[0] for rung in rungs if (ranked := self._ranked(rung))), None)
        final = next(iter(self._ranked(FINAL)), None)
        if final is None or (found is not None and self._share(final) < self._share(found)):
            return found
        return final

    @property
    def runner_up(self) -> tuple[Trial, Trial] | None:
        """Where the best was last compared after equal time: its trial there, and that of the best of the others."""
        best = self.best
        if best is None:
            return None
        for rung in ([FINAL] if best.final else []) + sorted(self._rungs.keys() - {FINAL}, reverse=True):
            ranked = self._ranked(rung)
            own = next((trial for trial in ranked if trial.candidate == best.candidate), None)
            other = next((trial for trial in ranked if trial.candidate != best.candidate), None)
            if own is not None and other is not None:
                return own, other
        return None

    def accuracy(self, trial: Trial) -> Accuracy | None:
        """What a trial reached; None while it is running, and where it failed."""
        score = self.scores.get(trial.number)
        return score if isinstance(score, Accuracy) else None

    def _share(self, trial: Trial) -> float:
        accuracy = self.accuracy(trial)
        return 0.0 if accuracy is None else accuracy.share

    def _on(self, rung: int) -> list[Trial]:
        return self._rungs.get(rung, [])

    def _ranked(self, rung: int) -> list[Trial]:
        """The validated trials of a rung, the best first; of equal ones that which was to be tried first."""
        validated = [trial for trial in self._on(rung) if self.accuracy(trial) is not None]
        return sorted(validated, key=lambda trial: (-self._share(trial), self._order[trial.candidate]))

    def _new_trial(self, candidate: Candidate, rung: int, seconds: float, why: str) -> Trial:
        before = [trial for trial in self.trials if trial.candidate == candidate and self.accuracy(trial) is not None]
        return Trial(
            number=len(self.trials) + 1,
            candidate=candidate,
            rung=rung,
            seconds=seconds,
            why=why,
            previous=before[-1].number if before else None,
        )


def eliminate(trial: Trial, score: Score, cutoff: Accuracy | None, promoted: int) -> Elimination:
    """Why the candidate of that trial is out: it failed, or ``promoted`` others were better, ``cutoff`` the worst."""
    if isinstance(score, FailedTrial):
        return Elimination(candidate=trial.candidate, rung=trial.rung, reason=score.reason)
    reason, sure = f"{score.percent} after {format_duration(trial.seconds)}", None
    if cutoff is not None:
        sure, images = confidence(cutoff, score), f"{score.total:,} validation images"
        reason += f"; the {'one' if promoted == 1 else f'last of {promoted}'} that went on had {cutoff.percent}"
        if sure is None:
            reason += f": {images} cannot tell them apart, and the other was first in order"
        else:
            reason += f", better with a confidence of {format_confidence(sure)} by {images}"
    return Elimination(candidate=trial.candidate, rung=trial.rung, reason=reason, confidence=sure, cutoff=cutoff)
