"""The plan: which candidates are trained, at which batch, for how many steps, and how long that is expected to take.

A turn's time is modelled as its fixed costs (start-up, warm-up, validations, checkpoints) plus steps at the measured
pace; the upper end of the prediction must fit into the turn's allotment.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.errors import BudgetError, UsageError
from fitwithin.profile import Profile, Rejection
from fitwithin.recipe import Recipe
from fitwithin.units import format_count, format_duration

SCHEMA = 1

#: Relative safety on every predicted cost: the machine's own jitter between a two-second sample and a long run.
MARGIN = 0.02

#: Fixed costs are single measurements; they get a wider one.
FIXED_MARGIN = 0.25

#: A worker is given this much less than its watchdog, so that it ends by itself; EXIT_S is for leaving the process.
WATCHDOG_S, EXIT_S = 1.0, 0.5

#: Which of a turn's reasons tells where its epochs come from.
WHY_EPOCHS = 2

#: A turn writes a checkpoint after its first step and then every CHECKPOINT_SHARE of its time, at least so far apart.
CHECKPOINT_SHARE, CHECKPOINT_LEAST_S = 1 / 10, 30.0


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The sizes of a data set's splits, in images."""

    train: int
    val: int
    test: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One candidate's planned training. ``allotted_s`` bounds it from start-up to its evaluation.

    ``outside_bytes`` is what its profile held outside the allocator: kept free from the start; ``captured`` whether
    its step is recorded as a CUDA graph. An update takes ``batch`` images in ``chunks`` parts. ``startup_s`` and
    ``warmup_s`` are parts of ``predicted_s``.
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
    outside_bytes: int = 0
    captured: bool = True
    chunks: int = 1
    startup_s: float = 0.0
    warmup_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be trained and what not, each with its reasons; ``frozen`` plans keep their steps whatever happens."""

    turns: tuple[Turn, ...]
    rejections: tuple[Rejection, ...]
    request: dict[str, Any]
    fingerprint: str
    frozen: bool = False
    schema: int = SCHEMA

    @property
    def rank(self) -> tuple[int, float]:
        """Plans compare by how many candidates get their schedule, then by the shortest schedule among them."""
        return len(self.turns), min((turn.epochs for turn in self.turns), default=0.0)

    def to_json(self) -> str:
        """The plan as JSON text; :func:`from_json` is its inverse."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)


def from_json(text: str) -> Plan:
    """The plan that :meth:`Plan.to_json` wrote; UsageError if the text is no such plan."""
    try:
        value = json.loads(text)
        if value["schema"] != SCHEMA:
            raise UsageError(f"the plan has schema {value['schema']}, this version reads {SCHEMA}; draw it up again")
        turns = tuple(
            Turn(**{**turn, "candidate": Candidate(**turn["candidate"]), "why": tuple(turn["why"])})
            for turn in value["turns"]
        )
        rejections = tuple(
            Rejection(candidate=Candidate(**r["candidate"]), reason=r["reason"]) for r in value["rejections"]
        )
        return Plan(**{**value, "turns": turns, "rejections": rejections})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"this is no plan that `fitwithin plan` wrote ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The parts of a turn's time for one profile on given data, in seconds."""

    startup_s: float
    validation_s: float
    validations: int
    save_s: float
    evaluation_s: float
    evaluation_inside: bool
    step_s: float
    step_low_s: float
    step_high_s: float

    def training_s(self, steps: int, pace_s: float) -> float:
        """Start-up to last save for ``steps`` at ``pace_s``: the evaluation of all views comes on top."""
        bare = self.startup_s + self.validations * self.validation_s + steps * pace_s
        return bare + self.save_s * (2 + checkpoints(bare))

    def fixed_s(self) -> float:
        """Everything but the steps that an allotment must cover, with its safety margin."""
        inside_s = self.evaluation_s * (1 + FIXED_MARGIN) + WATCHDOG_S if self.evaluation_inside else 0.0
        return self.training_s(0, 0.0) * (1 + FIXED_MARGIN) + inside_s + WATCHDOG_S + EXIT_S

    def needed_s(self, steps: int) -> float:
        """The allotment that ``steps`` need by their upper prediction; it never falls as steps grow."""
        pace_s = self.step_high_s * (1 + MARGIN)
        saves_s = self.save_s * checkpoints(self.training_s(steps, pace_s))
        return self.fixed_s() + steps * pace_s + saves_s * (1 + FIXED_MARGIN)

    def affordable_steps(self, allotted_s: float) -> int:
        """The most steps whose upper prediction fits into ``allotted_s``; fewer than two are no schedule, and none."""
        most = int(max(0.0, allotted_s) / self.step_high_s)
        steps = bisect.bisect_right(range(most + 1), allotted_s, key=self.needed_s) - 1
        return steps if steps >= 2 else 0


def checkpoints(turn_s: float) -> int:
    """How many checkpoints a turn of that length writes between its first and its last."""
    return min(round(1 / CHECKPOINT_SHARE), int(turn_s / CHECKPOINT_LEAST_S))


def checkpoint_every_s(turn_s: float) -> float:
    """Seconds between checkpoints of a turn of that length."""
    return max(CHECKPOINT_LEAST_S, turn_s * CHECKPOINT_SHARE)


def costs(profile: Profile, data: DataFacts, recipe: Recipe, view_sizes: Sequence[int], scope: str) -> Costs:
    """What a turn of this profile costs on this data.

    Under scope ``candidate`` the evaluation of all its views is part of its allotment; under ``total`` only the winner
    is evaluated, and the run keeps time for that.
    """
    timing = profile.timing
    flips = 2 if recipe.flips else 1
    per_image_s = math.fsum(timing.eval_image_s[px] * flips for px in view_sizes)
    first_s = max(timing.eval_first_s.values())  # a process of its own, without the kernels of training
    evaluation_s = timing.startup_s + len(view_sizes) * first_s + (data.val + data.test) * per_image_s
    return Costs(
        startup_s=timing.startup_s + timing.warmup_s,
        validation_s=data.val * timing.eval_image_s[profile.candidate.train_px]
        + timing.eval_first_s[profile.candidate.train_px]
        + timing.capture_s,
        validations=recipe.last_epochs,
        save_s=timing.save_s,
        evaluation_s=evaluation_s,
        evaluation_inside=scope == "candidate",
        step_s=timing.step_s,
        step_low_s=timing.step_low_s,
        step_high_s=timing.step_high_s,
    )


def _epochs(steps: int, profile: Profile, data: DataFacts, recipe: Recipe) -> float:
    """Epochs in ``steps``; whole ones where the recipe says so and one fits."""
    epochs = steps * profile.batch / data.train
    return float(math.floor(epochs + 1e-9)) if recipe.whole_epochs and epochs >= 1 else epochs


def _turn(profile: Profile, cost: Costs, epochs: float, allotted_s: float, data: DataFacts, recipe: Recipe) -> Turn:
    steps = max(2, math.floor(epochs * data.train / profile.batch + 1e-9))
    pace = format_count(profile.images_per_s)
    slower = profile.timing.step_s / profile.timing.dummy_step_s - 1
    why = (  # in this order: WHY_EPOCHS is the third
        f"batch {profile.batch}: {profile.batch_why}",
        f"{pace} images/s with the real loader, {format_count(profile.dummy_images_per_s)} with a dummy one"
        + (f": the loader costs {slower:.0%}" if slower > 0.03 else ""),
        f"{epochs:g} epochs: {format_duration(allotted_s)} less {format_duration(cost.fixed_s())} for start-up, "
        f"{cost.validations} validations, checkpoints and evaluation, "
        f"at {cost.step_high_s * (1 + MARGIN):.4g} s a step",
        f"learning rate {recipe.learning_rate(profile.batch):.3g}: {recipe.lr:g} x "
        f"sqrt({profile.batch}/{recipe.lr_batch})",
        *_cautions(profile),
    )
    return Turn(
        candidate=profile.candidate,
        parameters=profile.parameters,
        batch=profile.batch,
        steps=steps,
        epochs=round(epochs, 3),
        images_per_s=profile.images_per_s,
        dummy_images_per_s=profile.dummy_images_per_s,
        predicted_s=cost.training_s(steps, cost.step_s),
        predicted_low_s=cost.training_s(steps, cost.step_low_s * (1 - MARGIN)) - FIXED_MARGIN * cost.startup_s,
        predicted_high_s=cost.training_s(steps, cost.step_high_s * (1 + MARGIN)) + FIXED_MARGIN * cost.startup_s,
        validation_s=cost.validation_s,
        save_s=cost.save_s,
        evaluation_s=cost.evaluation_s,
        allotted_s=allotted_s,
        why=why,
        outside_bytes=profile.outside_bytes,
        captured=profile.captured,
        chunks=profile.chunks,
        startup_s=profile.timing.startup_s,
        warmup_s=profile.timing.warmup_s,
    )


def _cautions(profile: Profile) -> list[str]:
    """What else there is to know of a profile."""
    told = []
    if profile.timing.strangers:
        told.append(
            f"{format_count(profile.timing.strangers)} other processes used the device while it was timed: alone it "
            f"may be faster"
        )
    if not profile.captured:
        told.append("its step cannot be recorded as a CUDA graph and is launched kernel by kernel")
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
    return (max(cost.evaluation_s for _, cost in paired) * (1 + FIXED_MARGIN) + WATCHDOG_S) * twins


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
    request: dict[str, Any],
    fingerprint: str,
) -> Plan:
    """The plan for what is left of the budget.

    Args:
        available_s: seconds for each candidate (scope ``candidate``) or for all together (``total``), less what
            closing the run needs. Under ``total`` the evaluation of the winner, and of its twin in the other precision
            where there is one, is set aside here.
        limit_s: the whole budget, for the message of a refusal.

    Under ``total`` the largest number k of candidates is kept for which the k fastest get the recipe's
    ``worthwhile_epochs`` in equal shares; if not even one does, the fastest gets everything.

    Raises:
        BudgetError: no candidate gets a single epoch; the message names the least that would do.
    """
    paired = [(profile, costs(profile, data, recipe, view_sizes, scope)) for profile in profiles]
    turned_away = list(rejections)
    if not paired:
        reasons = "; ".join(f"{r.candidate.name}: {r.reason}" for r in turned_away[:3])
        more = f"; and {len(turned_away) - 3} more" if len(turned_away) > 3 else ""
        raise BudgetError(f"no candidate can be trained within the limits ({reasons}{more})")

    aside_s = 0.0 if scope == "candidate" else evaluation_reserve_s(paired)
    available_s -= aside_s

    def ranked(share_s: float) -> list[tuple[float, Profile, Costs]]:
        scored = [(_epochs(c.affordable_steps(share_s), p, data, recipe), p, c) for p, c in paired]
        return sorted(scored, key=lambda entry: (-entry[0], entry[1].candidate))

    if scope == "candidate":
        count, share_s, chosen = len(paired), available_s, ranked(available_s)
    else:
        worthwhile = [
            k for k in range(1, len(paired) + 1) if ranked(available_s / k)[k - 1][0] >= recipe.worthwhile_epochs
        ]
        count = max(worthwhile, default=1)
        share_s = available_s / count
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
                    f"{min(recipe.worthwhile_epochs, chosen[count - 1][0]):g} epochs each; one more share would not",
                )
            )
        else:
            turns.append(_turn(profile, cost, epochs, share_s, data, recipe))
    if not turns:
        needed_s = _up(limit_s + least_s(paired, data) - available_s)
        raise BudgetError(
            f"{format_duration(limit_s)} are too short for any candidate: after start-up, profiling and evaluation "
            f"{format_duration(max(available_s, 0.0))} are left, less than one epoch takes; "
            f"the least that would do is {format_duration(needed_s)}"
        )
    return Plan(turns=tuple(turns), rejections=tuple(turned_away), request=request, fingerprint=fingerprint)
