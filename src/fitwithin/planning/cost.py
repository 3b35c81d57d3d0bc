"""What a trial costs: its overhead (start-up, warm-up, validations, checkpoints) plus steps at the measured pace."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fitwithin.data.dataset import DataFacts, num_familiar
from fitwithin.engine.jobs import Stage
from fitwithin.engine.margins import EVALUATION_MARGIN, EXIT_S, FIXED_MARGIN, MARGIN, VIEW_S, WATCHDOG_S
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.recipe import Recipe
from fitwithin.units import format_duration

#: The time of the longest evaluation is set aside, whoever wins. A candidate is rejected if its evaluation needs more
#: than this share of what is left and more than EVALUATION_TIMES what the shortest one needs.
EVALUATION_SHARE, EVALUATION_TIMES = 1 / 3, 1.5

#: A trial writes a checkpoint after its first step and then every CHECKPOINT_SHARE of its time, less often if that
#: would cost more than CHECKPOINT_COST of it.
CHECKPOINT_SHARE, CHECKPOINT_COST = 1 / 10, 1 / 100


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What all trials of a run have in common; ``scope`` is the budget's, ``total`` or ``candidate``."""

    data: DataFacts
    recipe: Recipe
    view_sizes: tuple[int, ...]
    scope: str = "total"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The parts of a trial's time for one profile on given data, in seconds."""

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
        """Seconds from start-up to the last save for ``steps`` of ``pace_s`` each, without the evaluation."""
        bare = self.startup_s + self.validations * self.validation_s + steps * pace_s
        return bare + self.save_s * (2 + checkpoints(bare, self.save_s))

    def overhead_s(self) -> float:
        """Everything but the steps, as expected, and what is set aside for the trial's end."""
        return self.training_s(0, 0.0) + WATCHDOG_S + EXIT_S

    def overhead_limit_s(self) -> float:
        """Everything but the steps that an allotment must cover, with its safety margin."""
        inside_s = evaluation_reserve_s(self.evaluation_s) if self.evaluation_inside else 0.0
        return self.training_s(0, 0.0) * (1 + FIXED_MARGIN) + inside_s + WATCHDOG_S + EXIT_S

    def needed_s(self, steps: int) -> float:
        """The allotment that ``steps`` need by their upper prediction; it never falls as steps grow."""
        pace_s = self.step_high_s * (1 + MARGIN)
        saves_s = self.save_s * checkpoints(self.training_s(steps, pace_s), self.save_s)
        return self.overhead_limit_s() + steps * pace_s + saves_s * (1 + FIXED_MARGIN)

    def affordable_steps(self, allotted_s: float) -> int:
        """The most steps whose upper prediction fits into ``allotted_s``; 0 if that is fewer than two."""
        most = int(max(0.0, allotted_s) / self.step_high_s)
        steps = bisect.bisect_right(range(most + 1), allotted_s, key=self.needed_s) - 1
        return steps if steps >= 2 else 0


def evaluation_reserve_s(predicted_s: float) -> float:
    """Seconds to set aside for evaluating a model under all views: as predicted, with a margin.

    WATCHDOG_S of the margin are part of the training's allotment, which normally ends that much earlier.
    """
    return predicted_s + EXIT_S + max(0.0, EVALUATION_MARGIN * predicted_s - WATCHDOG_S)


def affordable_to_evaluate(
    profiles: Sequence[Profile],
    left_s: float,
    workload: Workload,
    *,
    share: float = EVALUATION_SHARE,
    times: float = EVALUATION_TIMES,
) -> tuple[list[Profile], list[Rejection]]:
    """The candidates whose evaluation needs at most that ``share`` of ``left_s``, or ``times`` what the shortest one
    needs; the others are rejected."""
    needed_s = [evaluation_reserve_s(costs(profile, workload).evaluation_s) for profile in profiles]
    most_s = max(share * left_s, times * min(needed_s, default=0.0))
    affordable, rejections = [], []
    for profile, each_s in zip(profiles, needed_s, strict=True):
        if each_s <= most_s:
            affordable.append(profile)
            continue
        reason = (
            f"its evaluation would take {format_duration(each_s)} of the {format_duration(max(0.0, left_s))} that are "
            f"left; give more time, or fewer or smaller test sizes"
        )
        rejections.append(Rejection(candidate=profile.candidate, reason=reason))
    return affordable, rejections


def quick_to_use(profiles: Sequence[Profile], image_ms: float | None) -> tuple[list[Profile], list[Rejection]]:
    """The candidates whose cheapest view takes no longer than an image may take, or the one that comes nearest; the
    others are rejected."""
    if image_ms is None or not profiles:
        return list(profiles), []
    took_ms = [1e3 * min((each.timing.eval_device_s or each.timing.eval_image_s).values()) for each in profiles]
    most_ms = max(image_ms, min(took_ms))
    kept, rejections = [], []
    for profile, each_ms in zip(profiles, took_ms, strict=True):
        if each_ms <= most_ms:
            kept.append(profile)
            continue
        reason = f"an image takes {each_ms:.4g} ms where the model is used, more than the {image_ms:.4g} ms allowed"
        rejections.append(Rejection(candidate=profile.candidate, reason=reason))
    return kept, rejections


def checkpoints(trial_s: float, save_s: float) -> int:
    """The number of checkpoints, each of ``save_s``, between the first and the last of a trial of that length."""
    most = round(1 / CHECKPOINT_SHARE)
    return int(min(most, trial_s * CHECKPOINT_COST / save_s)) if save_s else most


def checkpoint_every_s(trial_s: float, save_s: float) -> float:
    """Seconds between checkpoints of a trial of that length."""
    return max(trial_s * CHECKPOINT_SHARE, save_s / CHECKPOINT_COST)


def costs(profile: Profile, workload: Workload) -> Costs:
    """What a trial of this profile costs; under scope ``candidate`` its allotment includes its evaluation."""
    timing, data, recipe = profile.timing, workload.data, workload.recipe
    flips = 2 if recipe.flips else 1
    per_image_s = math.fsum(timing.views_s(px, flips) for px in workload.view_sizes)
    first_s = max(timing.eval_first_s.values())  # a process of its own, without the kernels of training
    start_s = timing.startup_s + timing.save_s + len(workload.view_sizes) * (first_s + flips * VIEW_S)
    passes = (data.val + data.test) * flips * len(workload.view_sizes)
    familiar = sum(num_familiar(data.train, data.val, passes))
    stages = stages_of(profile, recipe)
    untils = [*(stage.since for stage in stages[1:]), 1.0]
    step_s = math.fsum((until - stage.since) * stage.step_s for stage, until in zip(stages, untils, strict=True))
    mean = step_s / timing.step_s  # of all sizes, over that of the whole one
    return Costs(
        startup_s=timing.startup_s + timing.warmup_s + math.fsum(stage.change_s for stage in stages),
        validation_s=data.val * timing.eval_image_s[profile.candidate.train_px]
        + timing.eval_first_s[profile.candidate.train_px]
        + timing.capture_s,
        validations=recipe.validate_last_epochs + (recipe.init == "pretrained"),
        save_s=timing.save_s,
        evaluation_s=start_s
        + (data.val + data.test) * per_image_s
        + familiar * timing.eval_image_s[profile.candidate.train_px],
        evaluation_inside=workload.scope == "candidate",
        step_s=step_s,
        step_low_s=mean * timing.step_low_s,
        step_high_s=mean * timing.step_high_s,
    )


def stages_of(profile: Profile, recipe: Recipe) -> tuple[Stage, ...]:
    """The sizes of progressive resizing with their measured paces; one stage where there is none."""
    timing = profile.timing
    return tuple(
        Stage(
            since=since,
            px=px,
            step_s=timing.stage_step_s.get(px, timing.step_s),
            change_s=timing.stage_change_s.get(px, 0.0),
        )
        for since, px in recipe.stages(profile.candidate.train_px)
    )
