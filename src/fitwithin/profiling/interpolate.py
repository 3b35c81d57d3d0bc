"""The profile of a backbone at a smaller size, from its profile at a larger one: for short budgets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fitwithin.candidate import Candidate
from fitwithin.profiling.profile import Profile
from fitwithin.recipe import Recipe


def interpolate_profile(
    known: Profile, candidate: Candidate, recipe: Recipe, view_sizes: Sequence[int]
) -> Profile | None:
    """The candidate's profile from that of the same backbone at a larger size; None if ``known`` is no such, or if
    memory was its limit: then the candidate may have a larger batch.

    Batch and peak memory are those of the larger size. Paces at the sizes of progressive resizing are measured ones, or
    interpolated in the number of pixels. An evaluation costs what it does at the next larger size measured.
    """
    px = candidate.train_px
    if replace(known.candidate, train_px=px) != candidate or known.candidate.train_px <= px:
        return None
    if known.accum_steps > 1 or known.max_batch is not None:
        return None
    timing, large_px = known.timing, known.candidate.train_px
    paces = {**timing.stage_step_s, large_px: timing.step_s}
    sizes = [size for _, size in recipe.stages(px)]
    found = {size: interpolate_step_s(paces, size) for size in sizes}
    share = found[px] / timing.step_s
    change_s = max(timing.stage_change_s.values(), default=0.0)
    evaluated = {size: min(other for other in timing.eval_image_s if other >= size) for size in {px, *view_sizes}}
    return replace(
        known,
        candidate=candidate,
        batch_why=f"{known.batch} ran at {large_px} px, where it needs more memory; {known.batch_why}",
        timing=replace(
            timing,
            step_s=found[px],
            step_low_s=share * timing.step_low_s,
            step_high_s=share * timing.step_high_s,
            dummy_step_s=share * timing.dummy_step_s,
            eval_image_s={size: timing.eval_image_s[other] for size, other in evaluated.items()},
            eval_device_s={size: s for size, other in evaluated.items() if (s := timing.eval_device_s.get(other))},
            eval_first_s={size: timing.eval_first_s[other] for size, other in evaluated.items()},
            rates={},
            stage_step_s={size: found[size] for size in sizes[:-1]},
            stage_change_s=dict.fromkeys(sizes[1:], change_s),
        ),
        probes=tuple(replace(probe, wall_s=0.0) for probe in known.probes if probe.timing is not None),
        quick=True,
        cached=False,
    )


def interpolate_step_s(paces: Mapping[int, float], px: int) -> float:
    """Seconds per step at ``px``, from those at other sizes: never negative, and never less at more pixels.

    With a single size known they are taken to be proportional to the number of pixels.
    """
    if px in paces:
        return paces[px]
    sizes = sorted(paces)
    if len(sizes) == 1:
        return paces[sizes[0]] * (px / sizes[0]) ** 2
    above = next((size for size in sizes if size > px), sizes[-1])
    low, high = sizes[max(0, sizes.index(above) - 1)], above
    if low == high:
        low, high = sizes[0], sizes[1]
    slope = max(0.0, (paces[high] - paces[low]) / (high**2 - low**2))
    found = paces[low] + slope * (px**2 - low**2)
    return max(found, paces[low] * (px / low) ** 2) if px < low else found


def interpolate_profiles(
    known: Sequence[Profile], wanted: Sequence[Candidate], recipe: Recipe, view_sizes: Sequence[int]
) -> list[Profile]:
    """The profiles of ``wanted`` that follow from a known one, each from the nearest larger size."""
    nearest = sorted(known, key=lambda profile: profile.candidate.train_px)
    found = (
        next((one for profile in nearest if (one := interpolate_profile(profile, candidate, recipe, view_sizes))), None)
        for candidate in wanted
    )
    return [profile for profile in found if profile is not None]


def largest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each backbone at its largest size."""
    most: dict[Candidate, int] = {}
    for candidate in candidates:
        key = replace(candidate, train_px=0)
        most[key] = max(candidate.train_px, most.get(key, 0))
    return [candidate for candidate in candidates if most[replace(candidate, train_px=0)] == candidate.train_px]
