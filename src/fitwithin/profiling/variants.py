"""Which precisions and layouts of a backbone are not worth a profile: those that lose at a small batch. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fitwithin.candidate import Candidate
from fitwithin.engine.results import StepTiming
from fitwithin.profiling.profile import Rejection

#: A variant is kept while it may be within this of the best: a percent or two may turnround at large batches.
MARGIN = 0.02

#: A reason speaks of first steps where they take so many seconds more than the best variant's.
NOTICEABLE_S = 1.0


def variants_to_compare(candidates: Sequence[Candidate]) -> dict[str, tuple[Candidate, ...]]:
    """What to compare, by backbone: its precisions and layouts at its smallest size, where there are several.

    Which of them is fastest hardly depends on the size; what is left is profiled at every size.
    """
    by_model: dict[str, dict[Candidate, None]] = {}
    for candidate in candidates:
        px = min(other.train_px for other in candidates if other.model == candidate.model)
        by_model.setdefault(candidate.model, {})[replace(candidate, train_px=px)] = None
    return {model: tuple(variants) for model, variants in by_model.items() if len(variants) > 1}


def layouts(variants: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those of a backbone's variants that have the first one's precision."""
    return tuple(variant for variant in variants if variant.precision == variants[0].precision)


def slower(
    paces: Mapping[Candidate, StepTiming], trial_s: float = math.inf, sizes: Mapping[int, int] | None = None
) -> dict[Candidate, str]:
    """The variants that lose by more than the noise and MARGIN, each with the reason.

    Args:
        trial_s: seconds that a trial lasts; a variant whose first steps take most of that loses to a slower one.
        sizes: how many sizes progressive resizing goes through, by the size at its end; one where it is not said.
    """
    if not paces:
        return {}

    def amortised_s(candidate: Candidate, errors: float = 0.0) -> float:
        pace = paces[candidate]
        return pace.amortised_s(trial_s, (sizes or {}).get(candidate.train_px, 1), errors * pace.error_s)

    best = min(paces, key=lambda candidate: (amortised_s(candidate), paces[candidate].step_s, candidate))
    most_s = amortised_s(best, 1) * (1 + MARGIN)
    return {
        candidate: f"{_describe(candidate, pace, pace.first_s > paces[best].first_s + NOTICEABLE_S)}, where "
        f"{_variant(best)} takes {paces[best].step_s * 1e3:.3g}: too slow to be profiled"
        for candidate, pace in paces.items()
        if amortised_s(candidate, -1) > most_s
    }


def _describe(candidate: Candidate, pace: StepTiming, first: bool) -> str:
    more = f" after {pace.first_s:.1f} s for the first ones" if first else ""
    return f"{pace.step_s * 1e3:.3g} ms for {pace.batch} images at {candidate.train_px} px{more}"


def pruned(candidates: Sequence[Candidate], losers: Mapping[Candidate, str]) -> list[Rejection]:
    """The candidates of every size whose variant lost."""
    lost = {replace(loser, train_px=0): why for loser, why in losers.items()}
    keys = ((candidate, replace(candidate, train_px=0)) for candidate in candidates)
    return [Rejection(candidate=candidate, reason=lost[key]) for candidate, key in keys if key in lost]


def default_variants_only(candidates: Sequence[Candidate]) -> list[Rejection]:
    """All but the first precision and layout of each backbone at each size, where there is no time to compare more."""
    first: dict[tuple[str, int], Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate.model, candidate.train_px), candidate)
    reason = "left out: the time is too short to compare more, and the recipe's first one that has not lost is taken"
    return [
        Rejection(candidate=candidate, reason=reason)
        for candidate in candidates
        if first[candidate.model, candidate.train_px] != candidate
    ]


def _variant(candidate: Candidate) -> str:
    return candidate.precision + ("" if candidate.layout == "nchw" else f" {candidate.layout}")
