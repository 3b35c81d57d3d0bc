"""The instantiation phase by a search: trials are asked for, carried out as turns, and told of, within one budget.

What was asked and how it ended are events of the run's store; a run that was interrupted tells the search both once
more and goes on with the trials that it was at. Under a frozen plan the search counts with the seconds that were
planned, whatever the clock says, so that its trials have the steps that they would have had on the plan's machine.
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

#: Why a trial came to no turn.
TOO_SHORT = "its time does not pay for two steps"


def train(run: RunContext, plan: Plan, *, left: Callable[[], Remaining], evaluating_s: float) -> None:
    """Carry out trials until the search has none left.

    Args:
        left: what all trials to come may take together, now.
        evaluating_s: what is kept beside that for the winner's evaluation. The process of a final training stays for
            it, and has that too: whoever had the final training is the winner, or was before it.
    """
    trials = _Trials(run, plan, left, evaluating_s)
    if not trials.search.finished:
        slots.fill(run, "train", reserved_s=lambda: left().usable_s, ask=trials.ask, told=trials.told)


@dataclass(frozen=True)
class _AtWork:
    """A trial at work: by when it must have ended, and what of that it has for the evaluation."""

    trial: Trial
    ends_at: float
    evaluating_s: float


class _Trials:
    """The trials of a run's search while they last: asked for, given to slots as turns, told of."""

    def __init__(self, run: RunContext, plan: Plan, left: Callable[[], Remaining], evaluating_s: float) -> None:
        assert plan.search is not None
        self.run, self.frozen, self.left, self.evaluating_s = run, plan.frozen, left, evaluating_s
        self.search = stand(run, plan.search)
        self._profiles = events.profiled(run.store)
        #: Those that were at work when the run was interrupted.
        self._interrupted = self.search.running
        #: Those at work by their turns' names.
        self._at_work: dict[str, _AtWork] = {}
        #: Of final trainings whose processes wait for the others': the books' entries.
        self._waiting: list[OpenEntry] = []

    def ask(self, slot: int) -> Callable[[], tuple[TrialPlan, TrainResult | Failure]] | None:
        """The next trial as a turn for the slot: one that was interrupted, else a new one."""
        while (asked := self._taken_up() or self._new()) is not None:
            trial, turn, ends_at = asked
            if turn is not None:
                stays = trial.final and train_phase.stays(self.run, turn)
                evaluating_s = self._evaluating_s() if stays else 0.0
                ends_at += evaluating_s
                self._at_work[turn.name] = _AtWork(trial, ends_at, evaluating_s)
                told = _told(trial, self.search)
                return train_phase.begun(
                    self.run, turn, slot, ends_at=ends_at, frozen=self.frozen, told=told, last=trial.final, stays=stays
                )
            self.run.store.append(TrialEnded(name=search_plan.turn_name(trial), reason=TOO_SHORT))
            self._tell(trial, Failure(kind="deadline", reason=TOO_SHORT))
        return None

    def told(self, ended: tuple[TrialPlan, TrainResult | Failure]) -> None:
        """A turn has ended."""
        turn, outcome = ended
        was = self._at_work.pop(turn.name)
        train_phase.conclude(self.run, turn, outcome)
        self._tell(was.trial, outcome)
        if self._at_work and was.evaluating_s and isinstance(outcome, TrainResult):
            # Its process holds its device until the last final training has ended: so do the books.
            reserved_s = was.ends_at - self.run.engine.now()
            self._waiting.append(self.run.book("evaluate", turn.name, reserved_s=reserved_s))
        while self._waiting and not self._at_work:
            self.run.accountant.settle(self._waiting.pop())

    def _evaluating_s(self) -> float:
        """What a final training has for the evaluation, which one of them will need: device time they share."""
        shared = self.run.request.budget.gpu_time_s is not None
        return self.evaluating_s / (self.search.finals if shared else 1)

    def _tell(self, trial: Trial, outcome: TrainResult | Failure) -> None:
        ended = outcome.reason if isinstance(outcome, Failure) else outcome
        self.search.tell(trial.number, search_plan.score(ended, self.run.data.val))

    def _taken_up(self) -> tuple[Trial, TrialPlan | None, float] | None:
        """A trial that was interrupted, with what is left of its time; where that is not there, of what there is."""
        if not self._interrupted:
            return None
        own_s = [self._own_s(trial) for trial in self._interrupted]
        trial = self._interrupted.pop(0)
        asked = next(event for event in self.run.store.read(TrialAsked) if event.trial.number == trial.number)
        return trial, asked.plan, self.run.engine.now() + self._lasts_s(own_s[0], sum(own_s))

    def _own_s(self, trial: Trial) -> float:
        """What is left of a trial's time."""
        charged_s = self.run.accountant.ledger().charged_s(search_plan.turn_name(trial), phase="train")
        return max(0.0, trial.seconds - charged_s)

    def _new(self) -> tuple[Trial, TrialPlan | None, float] | None:
        """What the search wants to be tried now."""
        left_s, longest_s = self._there_is()
        new = self.search.ask(left_s=left_s, longest_s=longest_s)
        if new is None:
            return None
        run, profile = self.run, self._profiles[new.candidate.name]
        priced = search_plan.priced(profile, run.data, run.request.recipe, run.request.view_sizes)
        turn = search_plan.turn_over(priced, new.seconds, data=run.data, trial=new)
        if turn is not None and new.after is not None and run.request.recipe.warm_start:
            turn = replace(turn, after=search_plan.turn_name(self.search.trials[new.after - 1]))
        limit_s = longest_s if longest_s < math.inf else None
        run.store.append(TrialAsked(left_s=left_s, longest_s=limit_s, trial=new, plan=turn))
        return new, turn, run.engine.now() + self._lasts_s(new.seconds, new.seconds)

    def _there_is(self) -> tuple[float, float]:
        """The seconds of all slots that nobody has been promised, and those by the clock until all must be over."""
        if self.frozen:
            return self._planned_s(), math.inf
        left, now = self._left(), self.run.engine.now()
        # What is at work may go on to its end; its device time is reserved already.
        busy_s = sum(max(0.0, one.ends_at - one.evaluating_s - now) for one in self._at_work.values())
        left_s = min(left.slots * left.time_s - busy_s, left.slot_s)
        return left_s, left.time_s if left.slots > 1 else math.inf

    def _left(self) -> Remaining:
        """What is left for trials. (Device time for the evaluation is kept beside that, and reserved by who has it.)"""
        left = self.left()
        twice_s = math.fsum(one.evaluating_s for one in self._at_work.values())
        return replace(left, gpu_time_s=left.gpu_time_s + left.gpus * twice_s)

    def _planned_s(self) -> float:
        """What the plan has for trials that were not asked for yet."""
        ladder = self.search.ladder
        rungs_s = ladder.total_s if ladder is not None else 0.0
        return self.search.final_s + rungs_s - math.fsum(trial.seconds for trial in self.search.trials)

    def _lasts_s(self, own_s: float, waiting_s: float) -> float:
        """How long a trial may last that was promised ``own_s``, where all that wait were promised ``waiting_s``.

        Where the device time does not pay for those, its share. Under a frozen plan, whose steps may take longer here,
        all that trials to come were not promised.
        """
        left = self._left()
        if self.frozen:
            later_s, _ = self._there_is()
            later_s += waiting_s - own_s
            return min(left.usable_s, max(own_s, left.usable_s - later_s / left.slots))
        paid_s = own_s * min(1.0, left.slot_s / waiting_s) if waiting_s else 0.0
        return min(paid_s, left.usable_s)


def _told(trial: Trial, search: Halving) -> str:
    """What is trained now, in words."""
    if trial.final:
        return "the final training"
    counts = search.ladder.counts if search.ladder else (1,)
    place = sum(other.rung == trial.rung for other in search.trials)
    return f"rung {trial.rung + 1} of {len(counts)}, {place} of {counts[trial.rung]}"


def pick(run: RunContext, facts: SearchPlan) -> tuple[str, str] | None:
    """The name of the turn whose model the search hands over, and why; None if no trial could be validated."""
    search = stand(run, facts)
    best = search.best
    if best is None:
        return None
    tried = {trial.candidate for trial in search.trials}
    why = f"Of {len(tried)} candidates that were tried it is the best on validation data"
    if best.final and search.final_failed:
        return search_plan.turn_name(best), f"{why} of those whose final training did not fail."
    end = ", and then had the final training." if best.final else "."
    return search_plan.turn_name(best), f"{why} after equal time{end}"


def stand(run: RunContext, facts: SearchPlan) -> Halving:
    """The search as the store tells it."""
    return search_plan.told_again(facts, events.history(run.store), run.data.val)
