"""Which candidate is trained next, and for how long: strategies that are asked for trials and told results. Pure.

    search = Halving(entrants, budget_s=left_s)  # or Exhaustive(entrants, seconds=45)
    while not search.finished:
        trial = search.ask(left_s=left_s)
        search.tell(trial.number, Score(correct=..., total=...))

A trial's fidelity is GPU-seconds, and each is a complete schedule that ends at a learning rate of 0: candidates are
compared after equal time, never in the middle of a cosine. A strategy's state is what it was asked for and told, so
that a run that was interrupted tells it the same again and goes on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fitwithin.candidate import Candidate
from fitwithin.planning.stats import Score, percent_sure, sure
from fitwithin.units import format_duration

#: The rung of the winner's last training.
FINAL = -1


@dataclass(frozen=True, kw_only=True)
class SearchCandidate:
    """A candidate in a search, and the seconds that any trial of it takes beside steps.

    Entrants come in the order in which they should be tried: prior knowledge orders, it decides nothing.
    """

    candidate: Candidate
    fixed_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A complete schedule of ``seconds`` GPU-seconds, on ``gpus`` devices at once; ``rung`` -1 is the final training.

    ``after`` is the number of the candidate's trial before: its model is there to go on from. ``unspent_s`` are
    seconds that it could have had and that were not worth it.
    """

    number: int
    candidate: Candidate
    rung: int
    seconds: float
    why: str
    after: int | None = None
    gpus: int = 1
    unspent_s: float = 0.0

    @property
    def final(self) -> bool:
        """Whether it is the winner's last training."""
        return self.rung == FINAL


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """Why a candidate went no further; ``confidence`` that the worst of those that went on is really better.

    ``cut`` is how that one had ended. The confidence is None where nobody can tell: the candidate failed, was never
    tried, or had exactly as many images right.
    """

    candidate: Candidate
    rung: int
    reason: str
    confidence: float | None = None
    cut: Score | None = None


class Search(ABC):
    """What all strategies share: the trials, their scores, and who is still at work."""

    def __init__(self, entrants: Sequence[SearchCandidate]) -> None:
        self.entrants = tuple(entrants)
        self.trials: list[Trial] = []
        self.scores: dict[int, Score] = {}
        self._order = {entrant.candidate: place for place, entrant in enumerate(self.entrants)}
        self._rungs: dict[int, list[Trial]] = {}

    def ask(self, *, left_s: float, free: int = 1, longest_s: float = math.inf) -> Trial | None:
        """The next trial; None where there is nothing to do now, or nothing any more.

        Args:
            left_s: GPU-seconds that nobody has been promised.
            free: devices that have nothing to do and that one trial can take at once.
            longest_s: seconds by the clock until all must be over.
        """
        if free < 1 or self.finished:
            return None
        trial = self._next(left_s, free, longest_s)
        if trial is not None:
            self.trials.append(trial)
            self._rungs.setdefault(trial.rung, []).append(trial)
        return trial

    def tell(self, number: int, score: Score) -> None:
        """What became of a trial."""
        assert any(trial.number == number for trial in self.trials), f"trial {number} was not asked for"
        assert number not in self.scores, f"trial {number} was told of before"
        self.scores[number] = score

    @property
    def running(self) -> list[Trial]:
        """The trials that nothing has been told of yet."""
        return [trial for trial in self.trials if trial.number not in self.scores]

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether no trial will come any more, and none is at work."""

    @abstractmethod
    def _next(self, left_s: float, free: int, longest_s: float) -> Trial | None: ...

    @abstractmethod
    def verdicts(self) -> list[Elimination]:
        """Why each candidate that is out went no further."""

    @property
    def best(self) -> Trial | None:
        """The trial whose model is handed over: the best of the highest rung, or the final one if that is no worse."""
        rungs = sorted((rung for rung in self._rungs if rung != FINAL), reverse=True)
        found = next((ranked[0] for rung in rungs if (ranked := self._ranked(rung))), None)
        final = next(iter(self._ranked(FINAL)), None)
        if final is None or (
            found is not None and self.scores[final.number].accuracy < self.scores[found.number].accuracy
        ):
            return found
        return final

    @property
    def second(self) -> tuple[Trial, Trial] | None:
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

    def _accuracy(self, trial: Trial) -> float | None:
        """None while it is at work, and where it failed."""
        score = self.scores.get(trial.number)
        return score.accuracy if score is not None and score.total else None

    def _place(self, trial: Trial) -> tuple[float, int]:
        """What trials of a rung are sorted by, the best first: accuracy, then who was to be tried first."""
        return -(self._accuracy(trial) or 0.0), self._order[trial.candidate]

    def _on(self, rung: int) -> list[Trial]:
        return self._rungs.get(rung, [])

    def _ranked(self, rung: int) -> list[Trial]:
        """The trials of a rung that left a model, the best first."""
        return sorted((trial for trial in self._on(rung) if self._accuracy(trial) is not None), key=self._place)

    def _made(self, candidate: Candidate, rung: int, seconds: float, why: str) -> Trial:
        before = [trial for trial in self.trials if trial.candidate == candidate and self._accuracy(trial) is not None]
        return Trial(
            number=len(self.trials) + 1,
            candidate=candidate,
            rung=rung,
            seconds=seconds,
            why=why,
            after=before[-1].number if before else None,
        )


class Exhaustive(Search):
    """The paper's: every candidate gets the same time, and the best is handed over."""

    def __init__(self, entrants: Sequence[SearchCandidate], *, seconds: float) -> None:
        super().__init__(entrants)
        self.seconds = seconds

    @property
    def finished(self) -> bool:
        """Whether all have been tried, or nothing is left for the next."""
        return len(self.trials) == len(self.entrants) and not self.running

    def _next(self, left_s: float, free: int, longest_s: float) -> Trial | None:
        if len(self.trials) == len(self.entrants) or min(left_s, longest_s) < self.seconds:
            return None
        entrant = self.entrants[len(self.trials)]
        return self._made(entrant.candidate, 0, self.seconds, f"each gets {format_duration(self.seconds)}")

    def verdicts(self) -> list[Elimination]:
        """All but the best, and those that failed."""
        best = self.best
        return [
            verdict(trial, self.scores[trial.number], self.scores[best.number] if best else None, 1)
            for trial in self.trials
            if trial.number in self.scores and trial != best
        ]


def verdict(trial: Trial, score: Score, cut: Score | None, gone_on: int) -> Elimination:
    """Why a candidate is out: it failed, or others were better."""
    after = format_duration(trial.seconds)
    if not score.total:
        return Elimination(candidate=trial.candidate, rung=trial.rung, reason=score.reason or "it left no model")
    if cut is None:
        return Elimination(candidate=trial.candidate, rung=trial.rung, reason=f"{score.accuracy:.1%} after {after}")
    whose = "the one that went on" if gone_on == 1 else f"the last of {gone_on} that went on"
    confidence = sure(cut, score)
    told = (
        f"{score.total} validation images cannot tell them apart, and the other comes first in the order"
        if confidence is None
        else f"{percent_sure(confidence)} sure by {score.total} validation images"
    )
    return Elimination(
        candidate=trial.candidate,
        rung=trial.rung,
        reason=f"{score.accuracy:.1%} after {after}, where {whose} had {cut.accuracy:.1%}; {told}",
        confidence=confidence,
        cut=cut,
    )
