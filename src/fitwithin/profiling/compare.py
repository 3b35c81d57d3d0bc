"""The comparison of backbones' precisions and layouts: which of them are not worth a profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from fitwithin.candidate import Candidate
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import CompareJob, JobSettings
from fitwithin.engine.results import CompareResult, Failure, Progress, StepTiming
from fitwithin.profiling.cache import ProfileCache
from fitwithin.profiling.candidate_profiler import PROBE_WITHIN_S, ProgressCallback
from fitwithin.profiling.profile import Rejection
from fitwithin.profiling.variants import pruned, slower, variants_to_compare

#: What is compared: everything (``whole``), with a process for each backbone; the layouts of the first precision
#: (``quick``), in one process, but those that take long; or only what the cache knows (``known``).
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
    refresh: bool,
    extent: Extent,
    trial_s: float,
) -> list[Rejection]:
    """The candidates whose precision or layout loses at a small batch in trials of ``trial_s`` seconds; none where
    nothing could be measured.

    ``on_peak`` is called after every process with its peak memory in bytes, None if unknown.
    """
    wanted = variants_to_compare(candidates)
    timings: dict[str, dict[str, StepTiming]] = {
        model: {} if refresh else cache.get_step_timings(model) or {} for model in wanted
    }
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
    """The processes that time backbones' variants."""
    if extent == "whole":
        return [CompareJob(setting=setting, candidates=tuple(variants)) for variants in unknown]
    quick: list[Candidate] = []
    for variants in unknown if extent == "quick" else ():
        layouts = [variant for variant in variants if variant.precision == variants[0].precision]
        quick += layouts if len(layouts) > 1 else []
    return [CompareJob(setting=setting, candidates=tuple(quick), quick=True)] if quick else []
