"""The instantiation phase by a search: its trials are trained in the slots of the run, within one budget.

What was asked and how it ended are events of the run's store; a run that was interrupted repeats both to the search
and goes on with the trials that were running. Under a frozen plan the search counts with the seconds that were planned,
whatever the clock says, so that its trials have the steps that they would have had on the plan's machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from fitwithin import events
from fitwithin.accountant import OpenEntry
from fitwithin.budget import Remaining
from fitwithin.engine.results import Failure, TrainResult
from fitwithin.events import TrialAsked, TrialEnded
from fitwithin.pipeline import slots, train_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.planning import search_plan
from fitwithin.planning.halving import Halving
from fitwithin.planning.plan import Plan, SearchPlan, TrialPlan
from fitwithin.planning.search import Trial

#: Why a trial was not trained.
TOO_SHORT = "its time does not pay for two steps"


def train(run: RunContext, plan: Plan, *, left: Callable[[], Remaining], evaluating_s: float) -> None:
    """Train trials until the search has none left.

    Args:
        left: what all trials to come may take together, now.
        evaluating_s: what is set aside beside that for the winner's evaluation. The process of a final training stays
            for it, and has that too: the winner had the final training, or was the best before it.
    """
    trials = _TrialRunner(run, plan, left, evaluating_s)
    if not trials.search.finished:
        slots.run_on_slots(
            run, "train", reserved_s=lambda: left().usable_s, next_work=trials.next_work, on_done=trials.record
        )


@dataclass(frozen=True)
class _RunningTrial:
    """A trial in a slot: the instant by which it must have ended, and what of that it has for the evaluation."""

    trial: Trial
    ends_at: float
    evaluating_s: float


class _TrialRunner:
    """The trials of a run's search: chosen, given to slots, recorded."""

    def __init__(self, run: RunContext, plan: Plan, left: Callable[[], Remaining], evaluating_s: float) -> None:
        assert plan.search is not None
        self.run = run
        self.frozen = plan.frozen
        self.left = left
        self.evaluating_s = evaluating_s
        self.search = current_search(run, plan.search)
        self._profiles = events.profiled(run.store)
        #: Those that were running when the run was interrupted.
        self._interrupted = self.search.running
        #: Those that are running, by their names.
        self._running: dict[str, _RunningTrial] = {}
        #: Of final trainings whose processes wait for the others': the entries of the ledger.
        self._waiting: list[OpenEntry] = []

    def next_work(self, slot: int) -> Callable[[], tuple[TrialPlan, TrainResult | Failure]] | None:
        """The next trial for the slot: one that was interrupted, else a new one; None if there is none now."""
        while (found := self._resume_interrupted() or self._new()) is not None:
            trial, planned, ends_at = found
            if planned is not None:
                in_process = trial.final and train_phase.evaluates_in_process(self.run, planned)
                evaluating_s = self._evaluating_s() if in_process else 0.0
                ends_at += evaluating_s
                self._running[planned.name] = _RunningTrial(trial, ends_at, evaluating_s)
                return train_phase.start_trial(
                    self.run,
                    planned,
                    slot,
                    ends_at=ends_at,
                    frozen=self.frozen,
                    label=_describe(trial, self.search),
                    last=trial.final,
                    evaluates_in_process=in_process,
                )
            self.run.store.append(TrialEnded(name=trial.name, reason=TOO_SHORT))
            self._score(trial, Failure(kind="deadline", reason=TOO_SHORT))
        return None

    def record(self, ended: tuple[TrialPlan, TrainResult | Failure]) -> None:
        """Record how a trial ended."""
        planned, outcome = ended
        was = self._running.pop(planned.name)
        train_phase.record_trial(self.run, planned, outcome)
        self._score(was.trial, outcome)
        if self._running and was.evaluating_s and isinstance(outcome, TrainResult):
            # Its process holds its device until the last final training has ended: so does its entry in the ledger.
            reserved_s = was.ends_at - self.run.engine.now()
            self._waiting.append(self.run.book("evaluate", planned.name, reserved_s=reserved_s))
        while self._waiting and not self._running:
            self.run.accountant.settle(self._waiting.pop())

    def _evaluating_s(self) -> float:
        """What a final training has for the evaluation, which one of them will need: they share device time."""
        shared = self.run.request.budget.gpu_time_s is not None
        return self.evaluating_s / (self.search.devices if shared else 1)

    def _score(self, trial: Trial, outcome: TrainResult | Failure) -> None:
        ended = outcome.reason if isinstance(outcome, Failure) else outcome
        self.search.tell(trial.number, search_plan.score(ended, self.run.data.val))

    def _resume_interrupted(self) -> tuple[Trial, TrialPlan | None, float] | None:
        """An interrupted trial with its plan and the instant by which it must have ended."""
        if not self._interrupted:
            return None
        left_s = [self._allotment_left_s(trial) for trial in self._interrupted]
        trial = self._interrupted.pop(0)
        asked = next(event for event in self.run.store.read(TrialAsked) if event.trial.number == trial.number)
        return trial, asked.plan, self.run.engine.now() + self._time_limit_s(left_s[0], sum(left_s))

    def _allotment_left_s(self, trial: Trial) -> float:
        """What is left of a trial's seconds."""
        charged_s = self.run.accountant.ledger().charged_s(trial.name, phase="train")
        return max(0.0, trial.seconds - charged_s)

    def _new(self) -> tuple[Trial, TrialPlan | None, float] | None:
        """The trial that the search wants now, with its plan and the instant by which it must have ended."""
        left_s, time_left_s = self._available()
        new = self.search.ask(left_s=left_s, time_left_s=time_left_s)
        if new is None:
            return None
        run = self.run
        planned = search_plan.costed(self._profiles[new.candidate.name], run.workload).trial_plan(new.seconds, new)
        if planned is not None and new.previous is not None and run.request.recipe.warm_start:
            planned = replace(planned, warm_start_from=self.search.trials[new.previous - 1].name)
        limit_s = time_left_s if time_left_s < math.inf else None
        run.store.append(TrialAsked(left_s=left_s, time_left_s=limit_s, trial=new, plan=planned))
        return new, planned, run.engine.now() + self._time_limit_s(new.seconds, new.seconds)

    def _available(self) -> tuple[float, float]:
        """The seconds of all slots that are not promised to a trial, and those by the clock until all must be over."""
        if self.frozen:
            return self._planned_s(), math.inf
        left, now = self._left(), self.run.engine.now()
        # What is running may go on to its end; its device time is reserved already.
        busy_s = sum(max(0.0, one.ends_at - one.evaluating_s - now) for one in self._running.values())
        left_s = min(left.slots * left.time_s - busy_s, left.slot_s)
        return left_s, left.time_s if left.slots > 1 else math.inf

    def _left(self) -> Remaining:
        """What is left for trials. (Device time for the evaluation is set aside beside that, and reserved by the final
        trainings that have it.)"""
        left = self.left()
        twice_s = math.fsum(one.evaluating_s for one in self._running.values())
        return replace(left, gpu_time_s=left.gpu_time_s + left.gpus * twice_s)

    def _planned_s(self) -> float:
        """What the plan has for trials that were not asked for yet."""
        bracket = self.search.bracket
        rungs_s = bracket.total_s if bracket is not None else 0.0
        return self.search.final_s + rungs_s - math.fsum(trial.seconds for trial in self.search.trials)

    def _time_limit_s(self, own_s: float, waiting_s: float) -> float:
        """How long a trial may last that was promised ``own_s``, where all that wait were promised ``waiting_s``.

        If the device time does not pay for those, its share. Under a frozen plan, whose steps may take longer here,
        all that trials to come were not promised.
        """
        left = self._left()
        if self.frozen:
            later_s, _ = self._available()
            later_s += waiting_s - own_s
            return min(left.usable_s, max(own_s, left.usable_s - later_s / left.slots))
        paid_s = own_s * min(1.0, left.slot_s / waiting_s) if waiting_s else 0.0
        return min(paid_s, left.usable_s)


def _describe(trial: Trial, search: Halving) -> str:
    """Which trial it is, in words: ``rung 1 of 2, 3 of 16``."""
    if trial.final:
        return "the final training"
    counts = search.bracket.counts if search.bracket else (1,)
    place = sum(other.rung == trial.rung for other in search.trials)
    return f"rung {trial.rung + 1} of {len(counts)}, {place} of {counts[trial.rung]}"


def best_trial(run: RunContext, facts: SearchPlan) -> tuple[str, str] | None:
    """The name of the trial whose model the search delivers, and why; None if no trial could be validated."""
    search = current_search(run, facts)
    best = search.best
    if best is None:
        return None
    tried = len({trial.candidate for trial in search.trials})
    if best.final and search.final_failed:
        why = f"It is the best of {tried} candidates on validation data, of those whose final training did not fail."
    else:
        final = ", and then had the final training" if best.final else ""
        why = f"It is the best of {tried} candidates on validation data after equal time{final}."
    return best.name, why


def current_search(run: RunContext, facts: SearchPlan) -> Halving:
    """The search as it stands by the events in the store.

    Raises:
        RunFolderError: this version's search would have gone another way.
    """
    return search_plan.replay(facts, events.history(run.store), run.data.val)
