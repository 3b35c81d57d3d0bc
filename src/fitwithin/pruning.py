"""Which precisions and layouts of a backbone are not worth a profile: those that lose at a small batch. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fitwithin.candidate import Candidate
from fitwithin.profile import Rejection

#: A variant is kept while it may be within this of the best: a percent or two may turn round at large batches.
MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of a training step at ``batch`` images with a batch that lies ready, and half of its 95 % interval."""

    batch: int
    step_s: float
    error_s: float


def screened(candidates: Sequence[Candidate]) -> dict[str, tuple[Candidate, ...]]:
    """What to compare, by backbone: its precisions and layouts at its smallest size, where there are several.

    Which of them is fastest hardly depends on the size; what is left is profiled at every size.
    """
    by_model: dict[str, dict[Candidate, None]] = {}
    for candidate in candidates:
        px = min(other.train_px for other in candidates if other.model == candidate.model)
        by_model.setdefault(candidate.model, {})[replace(candidate, train_px=px)] = None
    return {model: tuple(variants) for model, variants in by_model.items() if len(variants) > 1}


def slower(paces: Mapping[Candidate, Pace]) -> dict[Candidate, str]:
    """The variants that lose by more than the noise and MARGIN, each with the reason."""
    if not paces:
        return {}
    best = min(paces, key=lambda candidate: (paces[candidate].step_s, candidate))
    most_s = (paces[best].step_s + paces[best].error_s) * (1 + MARGIN)
    return {
        candidate: f"{pace.step_s * 1e3:.3g} ms for {pace.batch} images at {candidate.train_px} px, where "
        f"{_variant(best)} takes {paces[best].step_s * 1e3:.3g}: too slow to be profiled"
        for candidate, pace in paces.items()
        if pace.step_s - pace.error_s > most_s
    }


def pruned(candidates: Sequence[Candidate], losers: Mapping[Candidate, str]) -> list[Rejection]:
    """The candidates of every size whose variant lost."""
    lost = {replace(loser, train_px=0): why for loser, why in losers.items()}
    keys = ((candidate, replace(candidate, train_px=0)) for candidate in candidates)
    return [Rejection(candidate=candidate, reason=lost[key]) for candidate, key in keys if key in lost]


def firsts(candidates: Sequence[Candidate]) -> list[Rejection]:
    """All but the first precision and layout of each backbone at each size, where there is no time to compare them."""
    first: dict[tuple[str, int], Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate.model, candidate.train_px), candidate)
    reason = "left out: the time is too short to compare precisions and layouts, and the recipe's first one is taken"
    return [
        Rejection(candidate=candidate, reason=reason)
        for candidate in candidates
        if first[candidate.model, candidate.train_px] != candidate
    ]


def _variant(candidate: Candidate) -> str:
    return candidate.precision + ("" if candidate.layout == "nchw" else f" {candidate.layout}")
