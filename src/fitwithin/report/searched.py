"""A search as its report tells it: the ladder, every trial with what it took, who is out and why, what is handed over.

A fold of the search as it stands and the books; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fitwithin.ledger import Ledger
from fitwithin.planning.halving import Halving
from fitwithin.planning.plan import SearchPlan
from fitwithin.planning.search import Trial
from fitwithin.planning.search_plan import turn_name
from fitwithin.planning.stats import Estimate, Score, sure
from fitwithin.report.search_report import EliminationRow, RungRow, SearchReport, Second, TrialRow, TrialState
from fitwithin.units import format_duration


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a turn was charged: ``seconds``, and those times the GPUs that it held; ``promised_s`` it was to take.

    The promise is what was reserved when it began: of a final training whose process stays for the evaluation of its
    model, the time for that too, of which it may use what the evaluation does not need.
    """

    seconds: float = 0.0
    gpu_s: float = 0.0
    promised_s: float | None = None


def charges(ledger: Ledger) -> dict[str, Charge]:
    """What each turn's training was charged, by its name: the sum of its entries."""
    found: dict[str, Charge] = {}
    for entry in ledger.entries:
        if entry.phase == "train":
            before, seconds = found.get(entry.key, Charge()), entry.charged_s or 0.0
            gpu_s = before.gpu_s + seconds * entry.gpus
            promised_s = entry.reserved_s if before.promised_s is None else before.promised_s
            found[entry.key] = Charge(seconds=before.seconds + seconds, gpu_s=gpu_s, promised_s=promised_s)
    return found


def told(facts: SearchPlan, search: Halving, charged: Mapping[str, Charge]) -> SearchReport:
    """The search for the report."""
    tried = {trial.candidate for trial in search.trials}
    best = search.best
    verdicts = [
        EliminationRow(
            candidate=verdict.candidate.name,
            rung=verdict.rung if verdict.candidate in tried else None,
            reason=verdict.reason,
            confidence=verdict.confidence,
            cut=_estimate(verdict.cut),
        )
        for verdict in search.verdicts()
    ]
    return SearchReport(
        told=facts.told,
        rungs=tuple(RungRow(count=n, seconds=s) for n, s in zip(facts.counts, facts.seconds, strict=True)),
        final_s=facts.final_s / facts.slots,
        trials=tuple(_row(trial, search, charged.get(turn_name(trial), Charge())) for trial in search.trials),
        verdicts=tuple(verdicts),
        handed_over=turn_name(best) if best is not None else None,
        handed_over_why=_why(search, best) if best is not None else "",
        second=_second(search),
    )


def _row(trial: Trial, search: Halving, charge: Charge) -> TrialRow:
    score = search.scores.get(trial.number)
    return TrialRow(
        number=trial.number,
        candidate=trial.candidate.name,
        turn=turn_name(trial),
        rung=trial.rung,
        promised_s=trial.seconds if charge.promised_s is None else charge.promised_s,
        charged_s=charge.seconds,
        gpu_s=charge.gpu_s,
        accuracy=_estimate(score),
        state=_state(trial, search),
        why=score.reason if score is not None and not score.total else trial.why,
    )


def _state(trial: Trial, search: Halving) -> TrialState:
    """What has become of it."""
    score = search.scores.get(trial.number)
    if score is None:
        return "unfinished"
    if not score.total:
        return "failed"
    if trial == search.best:
        return "handed over"
    went_on = any(later.after == trial.number for later in search.trials)
    return "went on" if went_on else "dropped"


def _why(search: Halving, best: Trial) -> str:
    """Why that trial's model is handed over."""
    score = search.scores[best.number]
    reached = f"{100 * score.accuracy:.1f} % after {format_duration(best.seconds)}"
    if best.final:
        before = search.scores[best.after] if best.after is not None else None
        than = f", no less than the {100 * before.accuracy:.1f} % before it" if before is not None else ""
        return f"the model of the final training: {reached}{than}"
    finals = [trial for trial in search.trials if trial.final]
    final = max(finals, key=lambda trial: search.scores.get(trial.number, Score()).accuracy, default=None)
    if final is None:
        return f"the model of rung {best.rung + 1}: {reached}; there was no time for a final training"
    ended = search.scores.get(final.number, Score())
    less = f"reached {100 * ended.accuracy:.1f} % only" if ended.total else f"left none ({ended.reason})"
    return f"the model of rung {best.rung + 1}: {reached}; the final training {less}"


def _second(search: Halving) -> Second | None:
    pair = search.second
    if pair is None:
        return None
    own, other = (search.scores[trial.number] for trial in pair)
    return Second(
        candidate=pair[1].candidate.name,
        rung=pair[1].rung,
        accuracy=Estimate(correct=other.correct, total=other.total),
        winner_accuracy=Estimate(correct=own.correct, total=own.total),
        confidence=sure(own, other),
    )


def _estimate(score: Score | None) -> Estimate | None:
    return Estimate(correct=score.correct, total=score.total) if score is not None and score.total else None
