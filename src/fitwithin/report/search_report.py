"""What a report holds of a search: its bracket, its trials, why each candidate is out, and what is delivered.

A fold of the search as it stands and of the ledger; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from fitwithin.ledger import Entry, Ledger
from fitwithin.planning.forecast import MeasuredPoint
from fitwithin.planning.halving import Halving
from fitwithin.planning.search import FINAL, Trial
from fitwithin.planning.stats import Accuracy, FailedTrial, confidence
from fitwithin.units import format_duration

if TYPE_CHECKING:  # it needs numpy, which a page can do without
    from fitwithin.planning.plan import SearchPlan


class TrialState(StrEnum):
    """What became of a trial."""

    #: It has not ended.
    RUNNING = "running"
    #: It left no validated model.
    FAILED = "failed"
    #: Its candidate went on to another trial.
    PROMOTED = "promoted"
    #: It was the last trial of its candidate, and others were better.
    STOPPED = "stopped"
    #: Its model is the result of the run.
    DELIVERED = "delivered"


@dataclass(frozen=True, kw_only=True)
class RungRow:
    """A rung of a search as planned: ``count`` trials of ``seconds`` GPU-seconds each."""

    count: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial of a search."""

    number: int
    candidate: str
    #: That of its folder.
    name: str
    #: Counts from 0; -1 is the final training.
    rung: int
    #: Seconds reserved when it began; those charged by the ledger; and these times the GPUs that it held.
    promised_s: float
    charged_s: float
    gpu_s: float
    #: None where it left no validated model.
    accuracy: Accuracy | None
    state: TrialState
    #: Why the search tried it, or why it failed.
    why: str


@dataclass(frozen=True, kw_only=True)
class EliminationRow:
    """Why a candidate is out: after which ``rung`` (None: never tried), and how sure that is.

    ``cutoff`` is what the worst of those that were promoted reached there; ``confidence`` that this one is really
    better, None where nothing can be said (it failed, was never tried, or had as many images right).
    """

    candidate: str
    rung: int | None
    reason: str
    confidence: float | None
    cutoff: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class RunnerUp:
    """The best of the others where the winner was last compared after equal time, on that ``rung``.

    ``confidence`` that the winner is really better; None where both had as many images right.
    """

    candidate: str
    rung: int
    accuracy: Accuracy
    winner_accuracy: Accuracy
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """A search: every trial in order, why each candidate is out, and what is delivered."""

    #: The bracket in a sentence.
    summary: str
    rungs: tuple[RungRow, ...]
    #: GPU-seconds set aside for a final training.
    final_s: float
    trials: tuple[TrialRow, ...]
    eliminations: tuple[EliminationRow, ...]
    #: The name of the trial whose model is the result; None before the end, and where none could be validated.
    delivered: str | None
    delivered_why: str
    #: None where no other candidate got as far.
    runner_up: RunnerUp | None


def build_search_report(facts: SearchPlan, search: Halving, ledger: Ledger) -> SearchReport:
    """The search for the report, with what the ledger says of its trials."""
    entries: dict[str, list[Entry]] = {trial.name: [] for trial in search.trials}
    for entry in ledger.entries:
        if entry.phase == "train" and entry.key in entries:
            entries[entry.key].append(entry)
    tried = {trial.candidate for trial in search.trials}
    best = search.best
    eliminations = tuple(
        EliminationRow(
            candidate=out.candidate.name,
            rung=out.rung if out.candidate in tried else None,
            reason=out.reason,
            confidence=out.confidence,
            cutoff=out.cutoff,
        )
        for out in search.eliminations()
    )
    return SearchReport(
        summary=facts.summary,
        rungs=tuple(RungRow(count=n, seconds=s) for n, s in zip(facts.counts, facts.seconds, strict=True)),
        final_s=facts.final_s / facts.slots,
        trials=tuple(_row(trial, search, entries[trial.name]) for trial in search.trials),
        eliminations=eliminations,
        delivered=best.name if best is not None else None,
        delivered_why=_delivered_why(search, best) if best is not None else "",
        runner_up=_runner_up(search),
    )


def _row(trial: Trial, search: Halving, entries: Sequence[Entry]) -> TrialRow:
    score = search.scores.get(trial.number)
    return TrialRow(
        number=trial.number,
        candidate=trial.candidate.name,
        name=trial.name,
        rung=trial.rung,
        promised_s=entries[0].reserved_s if entries else trial.seconds,
        charged_s=sum(entry.charged_s or 0.0 for entry in entries),
        gpu_s=sum((entry.charged_s or 0.0) * entry.gpus for entry in entries),
        accuracy=search.accuracy(trial),
        state=_state(trial, search),
        why=score.reason if isinstance(score, FailedTrial) else trial.why,
    )


def _state(trial: Trial, search: Halving) -> TrialState:
    score = search.scores.get(trial.number)
    if score is None:
        return TrialState.RUNNING
    if isinstance(score, FailedTrial):
        return TrialState.FAILED
    if trial == search.best:
        return TrialState.DELIVERED
    promoted = any(later.previous == trial.number for later in search.trials)
    return TrialState.PROMOTED if promoted else TrialState.STOPPED


def _delivered_why(search: Halving, best: Trial) -> str:
    """Why that trial's model is delivered."""
    accuracies = {trial.number: accuracy for trial in search.trials if (accuracy := search.accuracy(trial)) is not None}
    reached = f"{accuracies[best.number].percent} after {format_duration(best.seconds)}"
    if best.final:
        than = "" if best.previous is None else f", no less than the {accuracies[best.previous].percent} before it"
        return f"the model of the final training: {reached}{than}"
    finals = [trial for trial in search.trials if trial.final]
    reached_by_final = [accuracies[trial.number] for trial in finals if trial.number in accuracies]
    if not finals:
        why = "there was no time for a final training"
    elif reached_by_final:
        best_final = max(reached_by_final, key=lambda accuracy: accuracy.share)
        why = f"the final training reached only {best_final.percent}"
    else:
        score = search.scores.get(finals[0].number)
        left = score.reason if isinstance(score, FailedTrial) else "it still runs"
        why = f"the final training left no model ({left})"
    return f"the model of {rung_name(best.rung)}: {reached}; {why}"


def _runner_up(search: Halving) -> RunnerUp | None:
    pair = search.runner_up
    if pair is None:
        return None
    own, other = (search.accuracy(trial) for trial in pair)
    assert own is not None
    assert other is not None
    return RunnerUp(
        candidate=pair[1].candidate.name,
        rung=pair[1].rung,
        accuracy=other,
        winner_accuracy=own,
        confidence=confidence(own, other),
    )


def measured_points(trials: Sequence[TrialRow], winner: str, *, warm_start: bool) -> list[MeasuredPoint]:
    """The winner's trials as points of accuracy against GPU-seconds.

    With ``warm_start`` a model goes on from the trial before, so that one's seconds are its seconds too.
    """
    found, before_s = [], 0.0
    for trial in trials:
        if trial.candidate == winner and trial.accuracy is not None and trial.gpu_s > 0:
            spent_s = before_s + trial.gpu_s
            found.append(MeasuredPoint(gpu_s=spent_s, accuracy=trial.accuracy))
            before_s = spent_s if warm_start else 0.0
    return found


def rung_name(rung: int) -> str:
    """A rung for readers, who count from 1."""
    return "the final training" if rung == FINAL else f"rung {rung + 1}"
