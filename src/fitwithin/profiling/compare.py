"""The comparison of backbones' precisions and layouts over an engine: which of them are not worth a profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from fitwithin.candidate import Candidate
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import CompareJob, JobSettings
from fitwithin.engine.results import CompareResult, Failure, Progress, StepTiming
from fitwithin.profiling.cache import ProfileCache
from fitwithin.profiling.candidate_profiler import PROBE_WITHIN_S, ProgressCallback
from fitwithin.profiling.profile import Rejection
from fitwithin.profiling.variants import layouts, pruned, slower, variants_to_compare

#: How far precisions and layouts are compared: all of them, a process for each backbone; in one process for all of them
#: the layouts of the first precision, but those that would take long; or only as far as they were compared before.
Extent = Literal["whole", "quick", "known"]


def compare_variants(
    candidates: Sequence[Candidate],
    setting: JobSettings,
    engine: Engine,
    *,
    until_at: float,
    on_progress: ProgressCallback,
    on_peak: Callable[[int | None], None],
    cache: ProfileCache,
    refresh: bool = False,
    extent: Extent = "whole",
    trial_s: float = math.inf,
) -> list[Rejection]:
    """The candidates whose precision or layout loses at a small batch in trials of ``trial_s`` seconds; where nothing
    could be measured none does.

    ``on_peak`` is called after every process with its peak memory in bytes, None where that is not known.
    """
    wanted = variants_to_compare(candidates)
    timings: dict[str, dict[str, StepTiming]] = {model: {} for model in wanted}
    if not refresh:
        timings = {model: cache.get_step_timings(model) or {} for model in wanted}
    unknown = [variants for model, variants in wanted.items() if any(v.name not in timings[model] for v in variants)]
    for job in _jobs(setting, unknown, extent):
        models = sorted({variant.model for variant in job.candidates})
        whose = models[0] if len(models) == 1 else f"{len(models)} backbones"
        text = f"{whose}: comparing {len(job.candidates)} precisions and layouts"
        on_progress(Progress(step=0, total=0, text=text))
        outcome = engine.run(job, until_at=min(until_at, engine.now() + PROBE_WITHIN_S), on_progress=on_progress)
        assert isinstance(outcome, CompareResult | Failure)
        on_peak(outcome.peak_bytes)
        timed = outcome.paces if isinstance(outcome, CompareResult) else {}
        for variant in job.candidates:
            if variant.name in timed:
                timings[variant.model][variant.name] = timed[variant.name]
        for model in models:
            cache.put_step_timings(model, timings[model])
    losers: dict[Candidate, str] = {}
    sizes = {px: len(setting.recipe.stages(px)) for px in {candidate.train_px for candidate in candidates}}
    for model, variants in wanted.items():
        found = {variant: timings[model][variant.name] for variant in variants if variant.name in timings[model]}
        losers.update(slower(found, trial_s, sizes))
    return pruned(candidates, losers)


def _jobs(setting: JobSettings, unknown: Sequence[Sequence[Candidate]], extent: Extent) -> list[CompareJob]:
    """What is to be timed of backbones' variants, process by process."""
    if extent == "whole":
        return [CompareJob(setting=setting, candidates=tuple(variants)) for variants in unknown]
    several = [found for variants in unknown if len(found := layouts(variants)) > 1]
    if extent == "known" or not several:
        return []
    return [CompareJob(setting=setting, candidates=tuple(each for found in several for each in found), quick=True)]
