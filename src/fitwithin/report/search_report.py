"""What a report holds of a search: its ladder, its trials, and why each candidate is out (searched.py folds them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fitwithin.planning.forecast import Point
from fitwithin.planning.search import FINAL
from fitwithin.planning.stats import Estimate

#: What can become of a trial: its candidate went on, it was the last of a candidate that is out, it left no model, its
#: model is handed over, or nothing yet.
TrialState = Literal["went on", "dropped", "failed", "handed over", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class RungRow:
    """A rung of a search as planned: ``count`` trials of ``seconds`` GPU-seconds each."""

    count: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial of a search; ``rung`` counts from 0, the final training has -1; ``turn`` names its folder.

    ``promised_s`` are the seconds reserved for it when it began (with the evaluation's, where its process stays for
    that), ``charged_s`` those that it took by the books, ``gpu_s`` these times the GPUs that it held. ``accuracy`` is
    None where it left no validated model. ``why`` is the search's reason to try it, or why it failed.
    """

    number: int
    candidate: str
    turn: str
    rung: int
    promised_s: float
    charged_s: float
    gpu_s: float
    accuracy: Estimate | None
    state: TrialState
    why: str


@dataclass(frozen=True, kw_only=True)
class EliminationRow:
    """Why a candidate is out: after which ``rung`` (None: never tried), and how sure that is.

    ``cut`` is what the worst of those that went on reached there; ``confidence`` that it is really better, None where
    nobody can tell (it failed, was never tried, or had as many images right).
    """

    candidate: str
    rung: int | None
    reason: str
    confidence: float | None
    cut: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Second:
    """The best of the others where the winner was last compared after equal time, on that ``rung``.

    ``confidence`` that the winner is really better; None where both had as many images right.
    """

    candidate: str
    rung: int
    accuracy: Estimate
    winner_accuracy: Estimate
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """A search: its ladder, every trial in order, why each candidate is out, and what is handed over.

    ``told`` is the ladder in a sentence, ``final_s`` the GPU-seconds kept for a final training. ``handed_over`` names
    the turn whose model is handed over, with ``handed_over_why``; None before the end, and where none could be
    validated. ``second`` is None where nobody else got as far.
    """

    told: str
    rungs: tuple[RungRow, ...]
    final_s: float
    trials: tuple[TrialRow, ...]
    verdicts: tuple[EliminationRow, ...]
    handed_over: str | None
    handed_over_why: str
    second: Second | None


def points(trials: Sequence[TrialRow], winner: str, *, warm_start: bool) -> list[Point]:
    """The winner's trials as points of accuracy against GPU-seconds.

    Where a model ``warm_start`` from the trial before, the seconds before it are its seconds too.
    """
    found, before_s = [], 0.0
    for trial in trials:
        if trial.candidate == winner and trial.accuracy is not None and trial.gpu_s > 0:
            spent_s = before_s + trial.gpu_s
            found.append(Point(gpu_s=spent_s, correct=trial.accuracy.correct, total=trial.accuracy.total))
            before_s = spent_s if warm_start else 0.0
    return found


def rung_name(rung: int) -> str:
    """A rung for readers, who count from 1."""
    return "the final training" if rung == FINAL else f"rung {rung + 1}"
