"""The plan: which candidates are trained, at which batch, for how many steps, and how long that is expected to take.

The upper end of a trial's prediction (planning/cost.py) must fit into its allotment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fitwithin.budget import Remaining
from fitwithin.candidate import Candidate
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.jobs import Stage
from fitwithin.engine.margins import FIXED_MARGIN, MARGIN, REFUSAL_MARGIN, REFUSAL_MARGIN_S
from fitwithin.engine.results import BUSY, LINEAR, LinearProbe
from fitwithin.errors import BudgetError, UsageError
from fitwithin.files import decode, to_json
from fitwithin.planning.cost import Costs, Workload, costs, evaluation_reserve_s, stages_of
from fitwithin.planning.halving import FINAL_SHARE
from fitwithin.planning.search import SearchCandidate
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.request import Request
from fitwithin.units import format_count, format_duration

SCHEMA = 2

#: A trial of fewer steps and less than one epoch is refused: it learns next to nothing.
LEAST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """One candidate's planned training.

    Attributes:
        batch: the images of an update, which takes them in ``accum_steps`` parts.
        images_per_s: the mean over the ``stages`` of progressive resizing.
        allotted_s: bounds the trial from start-up to its evaluation; ``startup_s`` and ``warmup_s`` are parts of
            ``predicted_s``.
        why: the reasons of ``batch``, ``pace``, ``epochs``, ``lr``, and if they apply ``resizing``, ``timing``,
            ``graph`` and ``search``.
        non_allocator_bytes: memory outside the allocator, kept free from the start.
        cuda_graph: whether its step is recorded as a CUDA graph.
        suffix: distinguishes the trials of one candidate (rungs of a search).
        warm_start_from: the name of the trial whose model it starts from.
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
    why: dict[str, str]
    non_allocator_bytes: int = 0
    cuda_graph: bool = True
    accum_steps: int = 1
    startup_s: float = 0.0
    warmup_s: float = 0.0
    stages: tuple[Stage, ...] = ()
    suffix: str = ""
    warm_start_from: str = ""

    @property
    def name(self) -> str:
        """The name of its folder, events and ledger entries."""
        return f"{self.candidate.name}-{self.suffix}" if self.suffix else self.candidate.name


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search before it begins: its entrants in order, its bracket, and its seconds, added up over all ``slots``.

    A final training ends when it gains less than ``min_gain`` points of accuracy per GPU-hour. With a ``seed`` the
    entrants are sampled.
    """

    entrants: tuple[SearchCandidate, ...]
    budget_s: float
    counts: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    final_s: float = 0.0
    slots: int = 1
    min_gain: float | None = None
    seed: int | None = None
    final_share: float = FINAL_SHARE

    @property
    def summary(self) -> str:
        """The bracket in a sentence."""
        rungs = zip(self.counts, self.seconds, strict=True)
        bracket = ", then the best ".join(f"{count} trials of {format_duration(each_s)}" for count, each_s in rungs)
        how, whom = "", "the winner"
        if self.slots > 1:
            how, whom = f", {self.slots} side by side", f"each of the best {self.slots}"
        final = format_duration(self.final_s / self.slots)
        return f"Successive halving{how}: {bracket}, then {final} or more for {whom}."


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be trained and what not, with the reasons; ``frozen`` plans keep their steps whatever happens.

    With a ``search`` the ``trials`` are those of its first rung; later ones are planned from the ``profiles``, which
    are without their probes. ``probed`` are the pretrained candidates that linear heads are fitted to first.
    """

    trials: tuple[TrialPlan, ...]
    rejections: tuple[Rejection, ...]
    request: Request
    fingerprint: str
    frozen: bool = False
    search: SearchPlan | None = None
    profiles: tuple[Profile, ...] = ()
    probed: tuple[Candidate, ...] = ()
    schema: int = SCHEMA

    #: How its JSON text begins.
    BEGINNING: ClassVar[str] = '{\n "trials": ['

    def to_json(self) -> str:
        """The plan as JSON text; :func:`from_json` is its inverse."""
        return to_json(self, indent=1)


def from_json(text: str) -> Plan:
    """The plan that :meth:`Plan.to_json` wrote; UsageError if the text is no such plan."""
    try:
        value = json.loads(text)
        if value["schema"] != SCHEMA:
            raise UsageError(
                f"the plan has schema {value['schema']}, this version reads {SCHEMA}; make it again with "
                f"`fitwithin plan`"
            )
        return decode(Plan, value)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"this is not a plan that `fitwithin plan` wrote ({type(error).__name__}: {error})") from error


def epochs_of(steps: int, profile: Profile, data: DataFacts) -> float:
    """Epochs in ``steps``."""
    return steps * profile.batch / data.train


def plan_trial(profile: Profile, cost: Costs, epochs: float, allotted_s: float, workload: Workload) -> TrialPlan:
    """A candidate's trial of so many epochs."""
    steps = max(2, math.floor(epochs * workload.data.train / profile.batch + 1e-9))
    stages = stages_of(profile, workload.recipe)
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
        why=_reasons(profile, cost, epochs, allotted_s, workload),
        non_allocator_bytes=profile.non_allocator_bytes,
        cuda_graph=profile.cuda_graph,
        accum_steps=profile.accum_steps,
        startup_s=profile.timing.startup_s,
        warmup_s=profile.timing.warmup_s + math.fsum(stage.change_s for stage in stages),
        stages=stages,
    )


def probe_trial(probe: LinearProbe, *, batch: int, val: int, allotted_s: float) -> TrialPlan:
    """The trial that a linear probe with so many validation images was: no steps at all."""
    pace = (probe.images + val) / probe.features_s
    return TrialPlan(
        candidate=probe.candidate,
        parameters=probe.parameters,
        batch=batch,
        steps=0,
        epochs=0.0,
        images_per_s=pace,
        dummy_images_per_s=pace,
        predicted_s=probe.took_s,
        predicted_low_s=probe.took_s,
        predicted_high_s=probe.took_s,
        validation_s=0.0,
        save_s=0.0,
        evaluation_s=evaluation_reserve_s(probe.features_s),
        allotted_s=allotted_s,
        why={"epochs": f"a linear head on the features of {probe.images:,} training images"},
        cuda_graph=False,
        suffix=LINEAR,
    )


def _reasons(profile: Profile, cost: Costs, epochs: float, allotted_s: float, workload: Workload) -> dict[str, str]:
    """The reason of every figure of a trial, by what it is for."""
    timing, recipe, stages = profile.timing, workload.recipe, stages_of(profile, workload.recipe)
    slower = timing.step_s / timing.dummy_step_s - 1
    validations = "validation" if cost.validations == 1 else f"{cost.validations} validations"
    why = {
        "batch": f"batch {profile.batch}: {profile.batch_why}",
        "pace": f"{format_count(profile.images_per_s)} images/s with the real loader, "
        f"{format_count(profile.dummy_images_per_s)} with a dummy one"
        + (f": the loader costs {slower:.0%}" if slower > 0.03 else ""),
        "epochs": f"{epochs:g} epochs: {format_duration(allotted_s)} less {format_duration(cost.overhead_limit_s())} "
        f"for start-up, {validations}, checkpoints and evaluation, at {cost.step_high_s * (1 + MARGIN):.4g} s a step",
        "lr": f"learning rate {recipe.learning_rate(profile.batch):.3g}: {recipe.lr:g} x "
        f"sqrt({profile.batch}/{recipe.lr_base_size})",
    }
    if len(stages) > 1:
        sizes = (f"{stage.px} px from {stage.since:.0%} on ({stage.step_s * 1e3:.3g} ms a step)" for stage in stages)
        why["resizing"] = f"progressive resizing: {', '.join(sizes)}"
    if timing.num_other_processes:
        others = format_count(timing.num_other_processes)
        why["timing"] = f"{others} other processes used the device while it was timed: alone it may be faster"
    if timing.cpu_taken >= BUSY:
        why["timing"] = f"other programs took {timing.cpu_taken:.0%} of the CPU meanwhile: alone it may be faster"
    if not profile.cuda_graph:
        why["graph"] = "its step or evaluation cannot be recorded as a CUDA graph, so every kernel is launched alone"
    return why


def least_s(paired: Sequence[tuple[Profile, Costs]], data: DataFacts) -> float:
    """The shortest allotment in which some candidate gets one epoch or LEAST_STEPS, and a step to spare."""
    return min(cost.needed_s(1 + least_steps(profile, data)) for profile, cost in paired)


def least_steps(profile: Profile, data: DataFacts) -> int:
    """The fewest steps that are worth a trial: one epoch (two steps at the least), or LEAST_STEPS if that is less."""
    return min(LEAST_STEPS, max(2, math.ceil(data.train / profile.batch)))


def _round_up(seconds: float) -> float:
    """Rounded up to what :func:`format_duration` shows, so that a refusal does not name too little."""
    unit_s = 60 if seconds > 3600 else 1
    return math.ceil(seconds / unit_s) * unit_s


def make_plan(
    profiles: Sequence[Profile],
    rejections: Sequence[Rejection],
    workload: Workload,
    *,
    left: Remaining,
    request: Request,
    fingerprint: str,
) -> Plan:
    """The plan for what is left of the budget.

    Scope ``total``: the k fastest candidates are planned in equal shares, for the largest k that gives each of them the
    recipe's ``min_epochs``; if not even one gets that, the fastest gets everything. Idle slots take further candidates
    if that costs the planned ones nothing.

    Args:
        left: what each candidate has (scope ``candidate``) or all together (``total``), less what closing the run
            needs. Under ``total`` this function sets the evaluation aside, of the winner and of the same candidate in
            the other precision.

    Raises:
        BudgetError: no candidate gets one epoch or LEAST_STEPS; the message names the least that would do, also if
            everything but training takes half as long again (by 5 s at most).
    """
    data, recipe, total = workload.data, workload.recipe, workload.scope == "total"
    paired = [(profile, costs(profile, workload)) for profile in profiles]
    left_out = list(rejections)
    if not paired:
        reasons = "; ".join(f"{r.candidate.name}: {r.reason}" for r in left_out[:3])
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise BudgetError(f"no candidate can be trained within the limits ({reasons}{more})")
    reserve_s = 0.0
    if total:  # the other precision completes the paper's Table 1
        evaluated = 2 if {profile.candidate.precision for profile in profiles} >= {"amp", "fp32"} else 1
        reserve_s = evaluation_reserve_s(max(cost.evaluation_s for _, cost in paired)) * evaluated
    available_s, slot_s = left.usable_s - reserve_s, left.slot_s - reserve_s

    def share(count: int) -> float:
        """The seconds of each of ``count`` trials, so that the slots do all of them in time."""
        return min(available_s / -(-count // left.slots), slot_s / count)

    def ranked(share_s: float) -> list[tuple[float, Profile, Costs]]:
        scored = [(epochs_of(c.affordable_steps(share_s), p, data), p, c) for p, c in paired]
        return sorted(scored, key=lambda entry: (-entry[0], entry[1].candidate))

    count, share_s = len(paired), available_s
    if total:
        worthwhile = [k for k in range(1, len(paired) + 1) if ranked(share(k))[k - 1][0] >= recipe.min_epochs]
        free = max(k for k in range(1, min(left.slots, len(paired)) + 1) if share(k) >= share(1))
        count = max([free, *worthwhile])
        share_s = share(count)
    chosen = ranked(share_s)
    trials = []
    for position, (epochs, profile, cost) in enumerate(chosen):
        enough = epochs >= min(1.0, epochs_of(LEAST_STEPS, profile, data))
        if enough and position < count:
            trials.append(plan_trial(profile, cost, epochs, share_s, workload))
            continue
        if not enough:
            needed_s = _round_up(least_s([(profile, cost)], data))
            given = format_duration(share_s)
            reason = f"{given} do not pay for one epoch or {LEAST_STEPS} steps; {format_duration(needed_s)} would"
        else:
            reason = (
                f"left out: in {format_duration(share_s)} each, {count} faster candidates get at least "
                f"{min(recipe.min_epochs, chosen[count - 1][0]):g} epochs; with one candidate more they would not"
            )
        left_out.append(Rejection(candidate=profile.candidate, reason=reason))
    if not trials:
        limit_s = request.limit_s
        overhead_s = limit_s - available_s
        needed_s = _round_up(overhead_s + min(REFUSAL_MARGIN * overhead_s, REFUSAL_MARGIN_S) + least_s(paired, data))
        raise BudgetError(
            f"{format_duration(limit_s)} is too short for any candidate: after start-up, profiling and evaluation "
            f"{format_duration(max(available_s, 0.0))} are left, less than one epoch or {LEAST_STEPS} steps take; "
            f"the least that would do, also after a slower start, is {format_duration(needed_s)}"
        )
    return Plan(trials=tuple(trials), rejections=tuple(left_out), request=request, fingerprint=fingerprint)
