"""Which backbones and sizes a run tries where its user named none: as many as its time pays for. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from fitwithin.data.dataset import DataFacts
from fitwithin.planning.plan import LEAST_STEPS
from fitwithin.planning.prior import BATCH, DRIFT, Backbone, LearningCurve, Table
from fitwithin.recipe import Recipe
from fitwithin.units import format_duration, format_size

#: The training sizes to choose from, in pixels. Images whose shorter side is less are not enlarged: then that side.
SIZES = (32, 48, 64, 80, 96, 128, 160, 192, 224, 288)

#: Seconds of a start, and of a profile beside its steps and kernels; both with a margin.
START_S, PROFILE_S = {"cuda": 3.0, "cpu": 2.0}, {"cuda": 5.0, "cpu": 4.0}

#: The steps of a quick profile.
PROFILE_STEPS = 14

#: The share of a budget for profiles: of one of up to LONG_S, and of a longer one. (With 0.10 runs of 90 and 600 s took
#: up to 11 %, as what is measured last ends a little later: H200.)
SHORT_SHARE, LONG_SHARE, LONG_S = 0.09, 0.05, 600.0

#: The time of an image in an evaluation, as a share of that in a training step.
EVALUATION_SHARE = 0.25

#: The images a second that loaders make.
LOADER_IMAGES_PER_S = {"cuda": 16_000.0, "cpu": 4_000.0}

#: The share of the time for the final training where something is known of the candidates.
FINAL_SHARE = 0.6

#: No run tries more.
MOST = 48

#: A backbone seems to fit if a batch of LEAST_BATCH images, and its weights with their gradients and optimizer state
#: (MiB for each million), take less than FREE_SHARE of the cap: the process itself takes some, too.
LEAST_BATCH, FIXED_MIB_PER_MILLION, FREE_SHARE = 16, 16, 0.6


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How fast the machine is: the time of a step, by that on the table's machine, for dense and for depthwise nets."""

    kind: str
    dense: float = 1.0
    depthwise: float = 1.0
    #: The precisions that were timed, the fastest first; for depthwise nets they may stand in another order.
    precisions: tuple[str, ...] = ()
    depthwise_precisions: tuple[str, ...] = ()

    def image_us(self, backbone: Backbone, px: int) -> float:
        """Microseconds of a training step for one image."""
        return (self.depthwise if backbone.depthwise else self.dense) * backbone.image_us(self.kind, px)


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """A backbone at a size, and what is expected of it if it had all the time: the ``share`` of images that are right.

    ``profile_s`` is what its profile is expected to take; it ``fits`` if a batch of some images seems to stay within
    the memory cap. ``excess`` is the inference budget's share that it is expected to need, above 1 where it breaks it
    as ``excess_why`` says. ``reason`` says why it is ``taken``, or left.
    """

    model: str
    px: int
    curve: LearningCurve
    profile_s: float
    fits: bool
    share: float
    excess: float = 0.0
    excess_why: str = ""
    taken: bool = False
    reason: str = ""

    def logit(self, seconds: float) -> float:
        """The expected logit of its accuracy after so many seconds, its profile included."""
        return self.curve.logit(seconds - self.profile_s)

    @property
    def allowed(self) -> tuple[bool, float]:
        """How well it keeps the limits, larger is better: whether it fits, and how near it comes to the inference
        budget if it breaks that."""
        return self.fits, -max(1.0, self.excess)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What a run tries, the best first, and what it leaves, with the reasons."""

    prospects: tuple[Prospect, ...]
    machine: Machine
    seconds: float
    data_px: int
    why: str
    #: Whether its user named the backbones.
    named: bool = False

    @property
    def taken(self) -> tuple[Prospect, ...]:
        """What is tried, the best first."""
        return tuple(prospect for prospect in self.prospects if prospect.taken)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The training sizes of what is tried, ascending."""
        return tuple(sorted({prospect.px for prospect in self.taken}))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What prospects are compared for: data whose images have a median shorter side of ``data_px``, and what may be
    spent: seconds for everything from now on, of which ``profile_share`` for profiles, on so many slots. Where
    the model is used, an image may take ``inference_ms``, and a pass ``inference_bytes`` with the weights."""

    data: DataFacts
    data_px: int
    recipe: Recipe
    machine: Machine
    seconds: float
    memory_bytes: int
    profile_share: float
    slots: int = 1
    inference_ms: float | None = None
    inference_bytes: int | None = None


def profile_share(limit_s: float) -> float:
    """The share of a budget of so many seconds for profiles of chosen candidates."""
    return SHORT_SHARE if limit_s <= LONG_S else LONG_SHARE


def curves_of(pool: Pool | None) -> dict[tuple[str, int], LearningCurve]:
    """What is expected of what is tried, by backbone and size."""
    return {(prospect.model, prospect.px): prospect.curve for prospect in (pool.taken if pool else ())}


def sizes_for(data_px: int) -> tuple[int, ...]:
    """The training sizes that images of that shorter side allow, ascending."""
    allowed = [px for px in SIZES if px <= data_px]
    own = max(32, data_px // 4 * 4)
    if own < 128 and own not in allowed:
        allowed.append(own)
    return tuple(allowed)


def curve_of(backbone: Backbone, px: int, table: Table, task: Task) -> LearningCurve:
    """What is expected of a backbone at a size."""
    stages = task.recipe.stages(px)
    untils = [*(since for since, _ in stages[1:]), 1.0]
    shares = [until - since for (since, _), until in zip(stages, untils, strict=True)]
    step_us = math.fsum(
        share * task.machine.image_us(backbone, size) for share, (_, size) in zip(shares, stages, strict=True)
    )
    image_s = max(1e-6 * step_us, 1 / LOADER_IMAGES_PER_S[task.machine.kind])
    evaluation_s = EVALUATION_SHARE * 1e-6 * task.machine.image_us(backbone, px)
    flips = 2 if task.recipe.flips else 1
    views = len(task.recipe.test_scales) * flips * max(task.recipe.test_scales) ** 2
    evaluated_s = evaluation_s * (task.data.val + views * (task.data.val + task.data.test))
    build_s = backbone.build_s * task.machine.dense if task.machine.kind == "cuda" else 0.0
    return LearningCurve(
        overhead_s=START_S[task.machine.kind] + build_s + evaluated_s,
        images_per_s=1 / image_s,
        train_images=task.data.train,
        level=table.level
        - table.class_loss * math.log2(task.data.classes)
        + table.size_gain(px, depthwise=backbone.depthwise)
        + backbone.skill,
        growth=backbone.growth,
        error=backbone.error,
        rate=table.rate,
        knee=table.knee,
    )


def make_pool(table: Table, names: Iterable[str], sizes: Sequence[int], task: Task, *, named: bool) -> Pool:
    """The prospects of these backbones at these sizes, and which of them are tried.

    All are tried if they were ``named``: then the sizes are chosen. The size is that at which the best is expected to
    be best; the others follow at that size.
    """
    every = [_prospect(table.of(name), px, table, task) for name in names for px in sizes]
    best = max(every, key=lambda each: (each.allowed, each.logit(task.seconds), -each.px))
    ranked = sorted((each for each in every if each.px == best.px), key=lambda each: each.model)
    ranked.sort(key=lambda each: (each.allowed, each.logit(task.seconds)), reverse=True)
    alike = [each for each in ranked if each.allowed == best.allowed]
    count = len(ranked) if named else num_tried(alike, task)
    return Pool(
        prospects=tuple(_judged(each, place, count, ranked[0]) for place, each in enumerate(ranked)),
        machine=task.machine,
        seconds=task.seconds,
        data_px=task.data_px,
        why=_why(best, count, len(ranked), task, named=named),
        named=named,
    )


def least_s(pool: Pool, data: DataFacts) -> float:
    """The fewest seconds in which one of the prospects can be profiled and trained for LEAST_STEPS or an epoch."""
    images = min(data.train, LEAST_STEPS * BATCH)
    return min(each.profile_s + each.curve.overhead_s + images / each.curve.images_per_s for each in pool.prospects)


def num_tried(ranked: Sequence[Prospect], task: Task) -> int:
    """How many of the prospects, the best first, it pays to try.

    One alone has all the time. More share it, and the best of them is found by trials whose results are as uncertain as
    the validation images are few: the number is taken that promises the best model. Their profiles must be affordable.
    """
    best, best_value = 1, -math.inf
    noise = math.hypot(DRIFT, 1 / math.sqrt(max(1, task.data.val) * 0.15))
    total_s = task.seconds * task.slots
    for count in range(1, min(len(ranked), MOST) + 1):
        few = ranked[:count]
        profiles_s = math.fsum(each.profile_s for each in few)
        final_s = task.seconds - profiles_s / min(count, task.slots)
        if count > task.slots:
            search_s = (1 - FINAL_SHARE) * final_s * task.slots / count
            final_s *= FINAL_SHARE
            if search_s < 2 * max(each.curve.overhead_s for each in few):
                break
        if count > 1 and profiles_s > task.profile_share * total_s:
            break
        logits = [each.curve.logit(final_s) for each in few]
        spreads = [each.curve.error**2 / math.hypot(each.curve.error, noise) for each in few]
        value = expected_best(logits, spreads)
        if value > best_value + 1e-9:
            best, best_value = count, value
    return best


def expected_best(means: Sequence[float], deviations: Sequence[float]) -> float:
    """The expected largest of independent normal variables: the integral of 1 - P(all are below x), by the trapezoid
    rule."""
    low = max(mean - 5 * deviation for mean, deviation in zip(means, deviations, strict=True))
    high = max(mean + 5 * deviation for mean, deviation in zip(means, deviations, strict=True))
    if not math.isfinite(low) or high <= low:
        return max(means)
    points = 200
    width = (high - low) / points
    normals = [NormalDist(m, max(d, 1e-6)) for m, d in zip(means, deviations, strict=True) if math.isfinite(m)]
    above = [1 - math.prod(normal.cdf(low + n * width) for normal in normals) for n in range(points + 1)]
    return low + width * (math.fsum(above) - (above[0] + above[-1]) / 2)


def _prospect(backbone: Backbone, px: int, table: Table, task: Task) -> Prospect:
    curve, machine = curve_of(backbone, px, table, task), task.machine
    batch = min(task.data.train, task.recipe.max_batch or BATCH)
    build_s = backbone.build_s if machine.kind == "cuda" else 0.0
    profile_s = PROFILE_S[machine.kind] + build_s + PROFILE_STEPS * batch * 1e-6 * machine.image_us(backbone, px)
    least_mib = LEAST_BATCH * backbone.image_mib * (px / 128) ** 2 + FIXED_MIB_PER_MILLION * backbone.parameters
    excess, excess_why = _excess(backbone, px, task)
    return Prospect(
        model=backbone.model,
        px=px,
        curve=curve,
        profile_s=profile_s,
        fits=least_mib * 2**20 < FREE_SHARE * task.memory_bytes,
        share=curve.share(task.seconds - profile_s),
        excess=excess,
        excess_why=excess_why,
    )


def _excess(backbone: Backbone, px: int, task: Task) -> tuple[float, str]:
    """The largest share of a limit of the inference budget that a backbone is expected to need, and in words what."""
    image_ms = EVALUATION_SHARE * 1e-3 * task.machine.image_us(backbone, px)
    weight_bytes = 4e6 * backbone.parameters
    shares = [(0.0, "")]
    if task.inference_ms is not None:
        shares.append((image_ms / task.inference_ms, f"an image is expected to take {image_ms:.2g} ms"))
    if task.inference_bytes is not None:
        shares.append((weight_bytes / task.inference_bytes, f"its weights take {format_size(weight_bytes)}"))
    return max(shares)


def _judged(each: Prospect, place: int, count: int, best: Prospect) -> Prospect:
    """The prospect with the reason why it is taken or left."""
    if place < count:
        reason = "most is expected of it" if place == 0 else f"place {place + 1} by what is expected"
        return replace(each, taken=True, reason=reason)
    if not each.fits:
        return replace(each, reason=f"{LEAST_BATCH} images of it would not fit within the memory cap")
    if each.excess > 1:
        return replace(each, reason=f"{each.excess_why}, more than is allowed where the model is used")
    behind = 100 * (best.share - each.share)
    return replace(each, reason=f"less is expected of it ({behind:.1f} points below {best.model})")


def _why(best: Prospect, count: int, total: int, task: Task, *, named: bool) -> str:
    """Why these backbones and this size, in a sentence or two."""
    text = (
        f"{best.px} px: the images' shorter side is {task.data_px} px, and in {format_duration(task.seconds)} "
        f"{best.model} is expected to learn most at this size."
    )
    if best.excess > 1:
        text += f" No backbone is expected to keep the inference budget. This one comes nearest: {best.excess_why}."
    if named:
        return text
    if count == 1:
        chosen = f"{best.model}, of which most is expected of {total} backbones"
        return f"{chosen}; comparing two would cost more than it gains. {text}"
    return f"The {count} of {total} backbones of which most is expected. {text}"
