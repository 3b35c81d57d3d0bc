"""Which precisions and layouts of a backbone are slower at a small batch, and not worth a profile. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fitwithin.candidate import Candidate
from fitwithin.engine.results import StepTiming
from fitwithin.profiling.profile import Rejection

#: A variant is kept if it may be within this share of the best: the order may change at large batches.
MARGIN = 0.02

#: The reason names the first steps if they take this many seconds more than the best variant's.
NOTICEABLE_S = 1.0


def variants_to_compare(candidates: Sequence[Candidate]) -> dict[str, tuple[Candidate, ...]]:
    """By backbone, its precisions and layouts at its smallest size, if there are several.

    Which is fastest hardly depends on the size; those that are left are profiled at every size.
    """
    by_model: dict[str, dict[Candidate, None]] = {}
    for candidate in candidates:
        px = min(other.train_px for other in candidates if other.model == candidate.model)
        by_model.setdefault(candidate.model, {})[replace(candidate, train_px=px)] = None
    return {model: tuple(variants) for model, variants in by_model.items() if len(variants) > 1}


def slower(
    paces: Mapping[Candidate, StepTiming], trial_s: float = math.inf, sizes: Mapping[int, int] | None = None
) -> dict[Candidate, str]:
    """The variants that lose by more than the noise and MARGIN, each with the reason.

    Args:
        trial_s: seconds that a trial lasts, over which its first steps are spread.
        sizes: the number of sizes of progressive resizing by the size at its end; 1 where missing.
    """
    if not paces:
        return {}

    def amortised_s(candidate: Candidate, errors: float = 0.0) -> float:
        pace = paces[candidate]
        return pace.amortised_s(trial_s, (sizes or {}).get(candidate.train_px, 1), errors * pace.error_s)

    best = min(paces, key=lambda candidate: (amortised_s(candidate), paces[candidate].step_s, candidate))
    most_s, fastest = amortised_s(best, 1) * (1 + MARGIN), paces[best]
    variant = best.precision + ("" if best.layout == "nchw" else f" {best.layout}")
    lost = {}
    for candidate, pace in paces.items():
        if amortised_s(candidate, -1) > most_s:
            slow_start = pace.first_s > fastest.first_s + NOTICEABLE_S
            first = f" after {pace.first_s:.1f} s for the first ones" if slow_start else ""
            taken = f"{pace.step_s * 1e3:.3g} ms for {pace.batch} images at {candidate.train_px} px{first}"
            lost[candidate] = f"{taken}, where {variant} takes {fastest.step_s * 1e3:.3g}: too slow to be profiled"
    return lost


def pruned(candidates: Sequence[Candidate], losers: Mapping[Candidate, str]) -> list[Rejection]:
    """The candidates of every size whose variant lost."""
    lost = {replace(loser, train_px=0): why for loser, why in losers.items()}
    keys = ((candidate, replace(candidate, train_px=0)) for candidate in candidates)
    return [Rejection(candidate=candidate, reason=lost[key]) for candidate, key in keys if key in lost]


def default_variants_only(candidates: Sequence[Candidate], *, compared: bool) -> list[Rejection]:
    """All but the first precision and layout of each backbone at each size: they were ``compared`` and are about as
    fast, or there is no time to compare more."""
    first: dict[tuple[str, int], Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate.model, candidate.train_px), candidate)
    reason = "no time to compare more precisions and layouts; the recipe's first one that has not lost is taken"
    if compared:
        reason = "about as fast as the recipe's first one that has not lost, which is taken"
    return [
        Rejection(candidate=candidate, reason=f"left out: {reason}")
        for candidate in candidates
        if first[candidate.model, candidate.train_px] != candidate
    ]
