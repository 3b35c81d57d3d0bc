"""The instantiation phase by a search: its trials are trained in the slots of the run, within one budget.

Trials and their ends are events of the run's store; a resumed run repeats them to the search and goes on with the
trials that were running. Under a frozen plan the search counts planned seconds, whatever the clock says, so its trials
have the same steps on any machine.
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
from fitwithin.pipeline import linear_probes, slots, train_phase
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
        evaluating_s: what is set aside for the winner's evaluation. A final training has it too, since its process may
            stay and do the evaluation.
    """
    trials = _TrialRunner(run, plan, left, evaluating_s)
    if not trials.search.finished:
        reserved_s = left().usable_s
        slots.run_on_slots(run, "train", reserved_s=reserved_s, next_work=trials.next_work, on_done=trials.record)


@dataclass(frozen=True)
class _RunningTrial:
    """A trial in a slot: the instant by which it must have ended, and its seconds for the evaluation in that."""

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
        #: The trials that were running when the run was interrupted.
        self._interrupted = self.search.running
        #: The trials that are running, by name.
        self._running: dict[str, _RunningTrial] = {}
        #: The ledger's entries of final trainings whose processes wait for the other final trainings.
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
            self._tell(trial, TOO_SHORT)
        return None

    def record(self, ended: tuple[TrialPlan, TrainResult | Failure]) -> None:
        """Record how a trial ended."""
        planned, outcome = ended
        was = self._running.pop(planned.name)
        train_phase.record_trial(self.run, planned, outcome)
        self._tell(was.trial, outcome.reason if isinstance(outcome, Failure) else outcome)
        if self._running and was.evaluating_s and isinstance(outcome, TrainResult):
            # Its process holds its device until the last final training has ended: so does its entry in the ledger.
            reserved_s = was.ends_at - self.run.engine.now()
            self._waiting.append(self.run.book("evaluate", planned.name, reserved_s=reserved_s))
        while self._waiting and not self._running:
            self.run.accountant.settle(self._waiting.pop())

    def _evaluating_s(self) -> float:
        """A final training's seconds for the evaluation, of which there is one: they share its device time."""
        shared = self.run.request.budget.gpu_time_s is not None
        return self.evaluating_s / (self.search.devices if shared else 1)

    def _tell(self, trial: Trial, outcome: TrainResult | str) -> None:
        self.search.tell(trial.number, search_plan.score(outcome, self.run.data.val))

    def _resume_interrupted(self) -> tuple[Trial, TrialPlan | None, float] | None:
        """An interrupted trial with its plan and the instant by which it must have ended."""
        if not self._interrupted:
            return None
        charged_s = self.run.accountant.ledger().charged_s
        left_s = [max(0.0, trial.seconds - charged_s(trial.name, phase="train")) for trial in self._interrupted]
        trial = self._interrupted.pop(0)
        asked = next(event for event in self.run.store.read(TrialAsked) if event.trial.number == trial.number)
        return trial, asked.plan, self.run.engine.now() + self._time_limit_s(left_s[0], sum(left_s))

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
        elif planned is not None:
            planned = linear_probes.from_probes(run, planned)
        limit_s = time_left_s if time_left_s < math.inf else None
        run.store.append(TrialAsked(left_s=left_s, time_left_s=limit_s, trial=new, plan=planned))
        return new, planned, run.engine.now() + self._time_limit_s(new.seconds, new.seconds)

    def _available(self) -> tuple[float, float]:
        """The seconds of all slots that are not promised to a trial, and the seconds by the clock until the end."""
        if self.frozen:
            rungs_s = self.search.bracket.total_s if self.search.bracket is not None else 0.0
            return self.search.final_s + rungs_s - math.fsum(trial.seconds for trial in self.search.trials), math.inf
        left, now = self._left(), self.run.engine.now()
        # A running trial may go on to its end; its device time is reserved already.
        busy_s = sum(max(0.0, one.ends_at - one.evaluating_s - now) for one in self._running.values())
        left_s = min(left.slots * left.time_s - busy_s, left.slot_s)
        return left_s, left.time_s if left.slots > 1 else math.inf

    def _left(self) -> Remaining:
        """What is left for trials. (The evaluation's device time is counted twice: it is set aside, and reserved by the
        final trainings.)"""
        left = self.left()
        twice_s = math.fsum(one.evaluating_s for one in self._running.values())
        return replace(left, gpu_time_s=left.gpu_time_s + left.gpus * twice_s)

    def _time_limit_s(self, own_s: float, waiting_s: float) -> float:
        """How long a trial may last that was promised ``own_s`` of the ``waiting_s`` promised to all that wait.

        Without a frozen plan it has its share if the device time does not pay for all. With one, whose steps may take
        longer here, it has all that was not promised to later trials.
        """
        left = self._left()
        if self.frozen:
            later_s, _ = self._available()
            later_s += waiting_s - own_s
            return min(left.usable_s, max(own_s, left.usable_s - later_s / left.slots))
        paid_s = own_s * min(1.0, left.slot_s / waiting_s) if waiting_s else 0.0
        return min(paid_s, left.usable_s)


def _describe(trial: Trial, search: Halving) -> str:
    """The trial in words: ``rung 1 of 2, 3 of 16``."""
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
    """The search after the events in the store; RunFolderError if this version would have chosen other trials."""
    return search_plan.replay(facts, events.history(run.store), run.data.val)
