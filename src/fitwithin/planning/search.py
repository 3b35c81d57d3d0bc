"""The trials of a search and their scores. Pure; planning/halving.py chooses the next trial.

Each trial is a complete schedule that ends at a learning rate of 0, so candidates are compared after equal time. The
state of a search follows from what it was asked and what came of it: an interrupted run repeats both and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fitwithin.candidate import Candidate
from fitwithin.planning.prior import LearningCurve
from fitwithin.planning.stats import Accuracy, FailedTrial, confidence, format_confidence
from fitwithin.units import format_duration

#: The rung of the final training.
FINAL = -1

Score = Accuracy | FailedTrial


@dataclass(frozen=True, kw_only=True)
class SearchCandidate:
    """A candidate in a search, the seconds that any trial of it takes beside its steps, and what is expected of it."""

    candidate: Candidate
    overhead_s: float = 0.0
    curve: LearningCurve | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A complete schedule of ``seconds`` GPU-seconds; ``rung`` counts from 0, the final training has -1.

    ``previous`` is the number of the candidate's trial before, whose model it may start from. ``unspent_s`` are the
    seconds that were available but not worth using.
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

    ``cutoff`` is the accuracy of the worst candidate promoted from its ``rung``, ``confidence`` the probability that
    that one is really better. Both are None for a candidate that failed or was never tried; ``confidence`` also for
    equal shares.
    """

    candidate: Candidate
    rung: int
    reason: str
    confidence: float | None = None
    cutoff: Accuracy | None = None


class Search:
    """The trials of a search and their scores; ``entrants`` stand in the order in which they should be tried."""

    def __init__(self, entrants: Sequence[SearchCandidate]) -> None:
        self.entrants = tuple(entrants)
        self.trials: list[Trial] = []
        self.scores: dict[int, Score] = {}
        self._order = {entrant.candidate: place for place, entrant in enumerate(self.entrants)}
        self._rungs: dict[int, list[Trial]] = {}

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
    def best(self) -> Trial | None:
        """The trial whose model is delivered: the final one, unless the best of the highest rung is better."""
        rungs = sorted((rung for rung in self._rungs if rung != FINAL), reverse=True)
        found = next((ranked[0] for rung in rungs if (ranked := self._ranked(rung))), None)
        final = next(iter(self._ranked(FINAL)), None)
        if final is None or (found is not None and self._share(final) < self._share(found)):
            return found
        return final

    @property
    def runner_up(self) -> tuple[Trial, Trial] | None:
        """The best candidate's and the best other candidate's trial, on the highest rung that both were scored on."""
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
        """The validated trials of a rung, the best first; equal ones in the order of the entrants."""
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
        if sure is not None and sure < 0.5:
            reason += ", and is expected to reach more in the end"
        elif sure is None:
            reason += f": {images} cannot tell them apart, and the other was first in order"
        else:
            reason += f", better with a confidence of {format_confidence(sure)} by {images}"
    return Elimination(candidate=trial.candidate, rung=trial.rung, reason=reason, confidence=sure, cutoff=cutoff)
