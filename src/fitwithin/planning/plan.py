"""The plan: which candidates are trained, at which batch, for how many steps, and how long that is expected to take.

What a turn costs: planning/cost.py. The upper end of that prediction must fit into the turn's allotment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fitwithin.candidate import Candidate
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.jobs import Stage
from fitwithin.errors import BudgetError, UsageError
from fitwithin.files import decode, to_json
from fitwithin.planning.cost import FIXED_MARGIN, MARGIN, Costs, costs, evaluation_kept_s, stages_of
from fitwithin.planning.search import SearchCandidate
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.recipe import Recipe
from fitwithin.request import Request
from fitwithin.units import format_count, format_duration

SCHEMA = 1

#: Which of a turn's reasons tells where its epochs come from.
WHY_EPOCHS = 2

#: What a refusal names leaves room for so much more beside training, so many seconds at most: who gives what was named
#: must not be refused again. (Of 6.0 s named, on two busy cores, the start took 2 s more when they were given.)
SLOWER, SLOWER_S = 0.5, 5.0


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """One candidate's planned training, at a mean of ``images_per_s`` over its ``stages`` of progressive resizing.

    ``allotted_s`` bounds it from start-up to its evaluation. ``suffix`` tells a candidate's turns apart where it has
    several (rungs of a search), ``after`` names the turn whose model it goes on from.

    ``non_allocator_bytes`` is what its profile held outside the allocator: kept free from the start; ``captured``
    whether its step is recorded as a CUDA graph. An update takes ``batch`` images in ``accum_steps`` parts.
    ``startup_s`` and ``warmup_s`` are parts of ``predicted_s``.
    """

    candidate: Candidate
    parameters: int
    batch: int
    steps: int
    epochs: float
    images_per_s: float
    dummy_images_per_s: float
    predicted_s: float
    predicted_low_s: float
    predicted_high_s: float
    validation_s: float
    save_s: float
    evaluation_s: float
    allotted_s: float
    why: tuple[str, ...]
    non_allocator_bytes: int = 0
    captured: bool = True
    accum_steps: int = 1
    startup_s: float = 0.0
    warmup_s: float = 0.0
    stages: tuple[Stage, ...] = ()
    suffix: str = ""
    after: str = ""

    @property
    def name(self) -> str:
        """The candidate's, with what tells its turns apart: the key of its folder, its events and its entries."""
        return name_of(self.candidate, self.suffix)


def name_of(candidate: Candidate, suffix: str) -> str:
    """The name of a candidate's turn."""
    return f"{candidate.name}-{suffix}" if suffix else candidate.name


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search before it begins: who enters in which order, the seconds for all trials, and its ladder.

    So many ``slots`` work side by side; seconds are those of all slots, added up. The final training is no longer than
    ``min_gain`` points of accuracy per GPU-hour are worth. With a ``seed`` who enters is sampled.
    """

    entrants: tuple[SearchCandidate, ...]
    budget_s: float
    counts: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    final_s: float = 0.0
    slots: int = 1
    min_gain: float | None = None
    seed: int | None = None

    @property
    def told(self) -> str:
        """The ladder in a sentence."""
        rungs = [
            f"{n} trials of {format_duration(each_s)}" for n, each_s in zip(self.counts, self.seconds, strict=True)
        ]
        ladder, final = ", the best ".join(rungs), format_duration(self.final_s / self.slots)
        if self.slots == 1:
            return f"Successive halving: {ladder}, and {final} for the winner."
        return (
            f"Successive halving, {self.slots} side by side: {ladder}, and {final} for each of the best {self.slots}."
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be trained and what not, each with its reasons; ``frozen`` plans keep their steps whatever happens.

    With a ``search`` the turns are those of its first rung, and what follows depends on how they end; the ``profiles``,
    without their probes, are what later trials' steps are drawn from.
    """

    turns: tuple[TrialPlan, ...]
    rejections: tuple[Rejection, ...]
    request: Request
    fingerprint: str
    frozen: bool = False
    search: SearchPlan | None = None
    profiles: tuple[Profile, ...] = ()
    schema: int = SCHEMA

    @property
    def rank(self) -> tuple[int, float]:
        """Plans compare by how many candidates get their schedule, then by the shortest schedule among them."""
        return len(self.turns), min((turn.epochs for turn in self.turns), default=0.0)

    def to_json(self) -> str:
        """The plan as JSON text; :func:`from_json` is its inverse."""
        return to_json(self, indent=1)


def from_json(text: str) -> Plan:
    """The plan that :meth:`Plan.to_json` wrote; UsageError if the text is no such plan."""
    try:
        value = json.loads(text)
        if value["schema"] != SCHEMA:
            raise UsageError(f"the plan has schema {value['schema']}, this version reads {SCHEMA}; draw it up again")
        return decode(Plan, value)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"this is no plan that `fitwithin plan` wrote ({type(error).__name__}: {error})") from error


def epochs_of(steps: int, profile: Profile, data: DataFacts) -> float:
    """Epochs in ``steps``."""
    return steps * profile.batch / data.train


def turn_of(
    profile: Profile, cost: Costs, epochs: float, allotted_s: float, data: DataFacts, recipe: Recipe
) -> TrialPlan:
    """A candidate's turn of so many epochs."""
    steps = max(2, math.floor(epochs * data.train / profile.batch + 1e-9))
    pace, stages = format_count(profile.images_per_s), stages_of(profile, recipe)
    slower = profile.timing.step_s / profile.timing.dummy_step_s - 1
    validations = "validation" if cost.validations == 1 else f"{cost.validations} validations"
    why = (  # in this order: WHY_EPOCHS is the third
        f"batch {profile.batch}: {profile.batch_why}",
        f"{pace} images/s with the real loader, {format_count(profile.dummy_images_per_s)} with a dummy one"
        + (f": the loader costs {slower:.0%}" if slower > 0.03 else ""),
        f"{epochs:g} epochs: {format_duration(allotted_s)} less {format_duration(cost.fixed_s())} for start-up, "
        f"{validations}, checkpoints and evaluation, "
        f"at {cost.step_high_s * (1 + MARGIN):.4g} s a step",
        f"learning rate {recipe.learning_rate(profile.batch):.3g}: {recipe.lr:g} x "
        f"sqrt({profile.batch}/{recipe.lr_base_size})",
        *_resizing(stages),
        *_cautions(profile),
    )
    return TrialPlan(
        candidate=profile.candidate,
        parameters=profile.parameters,
        batch=profile.batch,
        steps=steps,
        epochs=round(epochs, 3),
        images_per_s=profile.batch / cost.step_s,
        dummy_images_per_s=profile.dummy_images_per_s,
        predicted_s=cost.training_s(steps, cost.step_s),
        predicted_low_s=cost.training_s(steps, cost.step_low_s * (1 - MARGIN)) - FIXED_MARGIN * cost.startup_s,
        predicted_high_s=cost.training_s(steps, cost.step_high_s * (1 + MARGIN)) + FIXED_MARGIN * cost.startup_s,
        validation_s=cost.validation_s,
        save_s=cost.save_s,
        evaluation_s=cost.evaluation_s,
        allotted_s=allotted_s,
        why=why,
        non_allocator_bytes=profile.non_allocator_bytes,
        captured=profile.captured,
        accum_steps=profile.accum_steps,
        startup_s=profile.timing.startup_s,
        warmup_s=profile.timing.warmup_s + math.fsum(stage.change_s for stage in stages),
        stages=stages,
    )


def _resizing(stages: Sequence[Stage]) -> list[str]:
    """The course of progressive resizing, in words."""
    if len(stages) == 1:
        return []
    told = (f"{stage.px} px from {stage.since:.0%} on ({stage.step_s * 1e3:.3g} ms a step)" for stage in stages)
    return [f"progressive resizing: {', '.join(told)}"]


def _cautions(profile: Profile) -> list[str]:
    """What else there is to know of a profile."""
    told = []
    if profile.timing.num_other_processes:
        told.append(
            f"{format_count(profile.timing.num_other_processes)} other processes used the device while it was timed: "
            f"alone it may be faster"
        )
    if not profile.captured:
        told.append("its step or evaluation cannot be recorded as a CUDA graph: both are launched kernel by kernel")
    return told


def least_s(paired: Sequence[tuple[Profile, Costs]], data: DataFacts) -> float:
    """The shortest allotment in which some candidate gets one epoch (two steps at the least), and a step to spare."""
    return min(cost.needed_s(1 + max(2, math.ceil(data.train / profile.batch))) for profile, cost in paired)


def _up(seconds: float) -> float:
    """Rounded up to what :func:`format_duration` shows: a refusal must not name less than would do."""
    unit_s = 60 if seconds > 3600 else 1
    return math.ceil(seconds / unit_s) * unit_s


def evaluation_reserve_s(paired: Sequence[tuple[Profile, Costs]]) -> float:
    """Seconds kept for evaluating the winner and its twin in the other precision, whoever wins."""
    twins = 2 if {profile.candidate.precision for profile, _ in paired} >= {"amp", "fp32"} else 1
    return evaluation_kept_s(max(cost.evaluation_s for _, cost in paired)) * twins


def draw_up(
    profiles: Sequence[Profile],
    rejections: Sequence[Rejection],
    *,
    available_s: float,
    limit_s: float,
    scope: str,
    data: DataFacts,
    recipe: Recipe,
    view_sizes: Sequence[int],
    request: Request,
    fingerprint: str,
    slots: int = 1,
    slot_s: float = math.inf,
) -> Plan:
    """The plan for what is left of the budget.

    Args:
        available_s: seconds for each candidate (scope ``candidate``) or for all together (``total``), less what
            closing the run needs. Under ``total`` the evaluation of the winner, and of its twin in the other precision
            where there is one, is set aside here.
        limit_s: the whole budget, for the message of a refusal.
        slots: so many turns go on side by side.
        slot_s: seconds of all turns, added up, that the device time pays for, less what closing the run needs.

    Under ``total`` the largest number k of candidates is kept for which the k fastest get the recipe's
    ``min_epochs`` in equal shares; if not even one does, the fastest gets everything. Others go with it wherever
    there are slots and device time that cost it nothing.

    Raises:
        BudgetError: no candidate gets a single epoch; the message names the least that would do, also if all that
            comes beside training takes half as long again (by 5 s at most).
    """
    paired = [(profile, costs(profile, data, recipe, view_sizes, scope)) for profile in profiles]
    turned_away = list(rejections)
    if not paired:
        reasons = "; ".join(f"{r.candidate.name}: {r.reason}" for r in turned_away[:3])
        more = f"; and {len(turned_away) - 3} more" if len(turned_away) > 3 else ""
        raise BudgetError(f"no candidate can be trained within the limits ({reasons}{more})")

    aside_s = 0.0 if scope == "candidate" else evaluation_reserve_s(paired)
    available_s, slot_s = available_s - aside_s, slot_s - aside_s

    def share(count: int) -> float:
        """The seconds of each of so many turns, all of which the slots have done in time."""
        return min(available_s / -(-count // slots), slot_s / count)

    def ranked(share_s: float) -> list[tuple[float, Profile, Costs]]:
        scored = [(epochs_of(c.affordable_steps(share_s), p, data), p, c) for p, c in paired]
        return sorted(scored, key=lambda entry: (-entry[0], entry[1].candidate))

    if scope == "candidate":
        count, share_s, chosen = len(paired), available_s, ranked(available_s)
    else:
        worthwhile = [k for k in range(1, len(paired) + 1) if ranked(share(k))[k - 1][0] >= recipe.min_epochs]
        free = max(k for k in range(1, min(slots, len(paired)) + 1) if share(k) >= share(1))
        count = max([free, *worthwhile])
        share_s = share(count)
        chosen = ranked(share_s)
    turns = []
    for position, (epochs, profile, cost) in enumerate(chosen):
        if epochs < 1:
            needed_s = _up(least_s([(profile, cost)], data))
            turned_away.append(
                Rejection(
                    candidate=profile.candidate,
                    reason=f"{format_duration(share_s)} do not pay for one epoch; {format_duration(needed_s)} would",
                )
            )
        elif position >= count:
            turned_away.append(
                Rejection(
                    candidate=profile.candidate,
                    reason=f"left out: shares of {format_duration(share_s)} give {count} faster candidates at least "
                    f"{min(recipe.min_epochs, chosen[count - 1][0]):g} epochs each; one more share would not",
                )
            )
        else:
            turns.append(turn_of(profile, cost, epochs, share_s, data, recipe))
    if not turns:
        fixed_s = limit_s - available_s
        needed_s = _up(fixed_s + min(SLOWER * fixed_s, SLOWER_S) + least_s(paired, data))
        raise BudgetError(
            f"{format_duration(limit_s)} are too short for any candidate: after start-up, profiling and evaluation "
            f"{format_duration(max(available_s, 0.0))} are left, less than one epoch takes; "
            f"the least that would do, also after a slower start, is {format_duration(needed_s)}"
        )
    return Plan(turns=tuple(turns), rejections=tuple(turned_away), request=request, fingerprint=fingerprint)
