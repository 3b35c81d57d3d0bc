"""The profile phase (the paper's Algorithm 1) over an engine: a profile or a rejection for every candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from threading import Semaphore
from typing import Literal

from fitwithin.candidate import Candidate
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import CompareJob, JobSettings
from fitwithin.engine.results import CompareResult, Progress, StepTiming
from fitwithin.profiling.cache import ProfileCache
from fitwithin.profiling.candidate_profiler import PROBE_WITHIN_S, CandidateProfiler, Tell
from fitwithin.profiling.profile import Profile, Rejection, points_of, prior
from fitwithin.profiling.variants import layouts, pruned, screened, slower

#: Where candidates are searched side by side, the share of the time for that; the rest is for timing them.
SEARCH_SHARE = 0.6

#: With so many points on its line a size says enough to search the next size of the backbone beside it. (Depthwise
#: float16 kernels are built for every batch, 10 s a probe: one size after the other took 115 s.)
PLACING_POINTS = 3

#: Timed processes at once: one that measures, and one that starts or ends beside it.
AT_ONCE = 2


#: How far precisions and layouts are compared: all of them, a process for each backbone; in one process for all of them
#: the layouts of the first precision, but those that would take long; or only as far as they were compared before.
Compare = Literal["whole", "brief", "known"]


def screen(
    candidates: Sequence[Candidate],
    setting: JobSettings,
    engine: Engine,
    *,
    until_at: float,
    tell: Tell,
    cache: ProfileCache,
    refresh: bool = False,
    compare: Compare = "whole",
    turn_s: float = math.inf,
) -> list[Rejection]:
    """The candidates whose precision or layout loses at a small batch in turns of ``turn_s``; where nothing could be
    measured none does."""
    wanted = screened(candidates)
    paces: dict[str, dict[str, StepTiming]] = {model: {} for model in wanted}
    if not refresh:
        paces = {model: cache.get_paces(model) or {} for model in wanted}
    unknown = {model: asked for model, asked in wanted.items() if any(each.name not in paces[model] for each in asked)}
    for job in _screens(setting, list(unknown.values()), compare):
        models = sorted({variant.model for variant in job.candidates})
        told = f"comparing {len(job.candidates)} precisions and layouts"
        tell(Progress(step=0, total=0, text=f"{models[0] if len(models) == 1 else f'{len(models)} backbones'}: {told}"))
        outcome = engine.do(job, until_at=min(until_at, engine.now() + PROBE_WITHIN_S), on_progress=tell)
        timed = outcome.paces if isinstance(outcome, CompareResult) else {}
        for variant in job.candidates:
            if variant.name in timed:
                paces[variant.model][variant.name] = timed[variant.name]
        for model in models:
            cache.put_paces(model, paces[model])
    losers: dict[Candidate, str] = {}
    sizes = {px: len(setting.recipe.stages(px)) for px in {candidate.train_px for candidate in candidates}}
    for model, variants in wanted.items():
        found = {variant: paces[model][variant.name] for variant in variants if variant.name in paces[model]}
        losers.update(slower(found, turn_s, sizes))
    return pruned(candidates, losers)


def _screens(setting: JobSettings, unknown: Sequence[Sequence[Candidate]], compare: Compare) -> list[CompareJob]:
    """What is to be timed of backbones' variants, process by process."""
    if compare == "whole":
        return [CompareJob(setting=setting, candidates=tuple(variants)) for variants in unknown]
    several = [found for variants in unknown if len(found := layouts(variants)) > 1]
    if compare == "known" or not several:
        return []
    return [CompareJob(setting=setting, candidates=tuple(each for found in several for each in found), quick=True)]


def measure(
    candidates: Sequence[Candidate],
    setting: JobSettings,
    engine: Engine,
    *,
    n_train: int,
    until_at: float,
    tell: Tell,
    known: Iterable[Profile] = (),
    lanes: int = 1,
    brief: bool = False,
) -> Iterator[Profile | Rejection]:
    """The profile of each candidate, or why there is none, as they become known.

    With several ``lanes`` so many candidates are searched side by side, each in processes of its own under the cap;
    then one after the other is timed, alone. ``known`` profiles place the probes of their neighbours, and so does a
    search that is about to end: a backbone's next size waits in line once it has PLACING_POINTS. ``brief`` profiles try
    the recipe's limit first, in one process if it fits, and are timed briefly.
    """
    room = Semaphore(lanes)
    measurements = [
        CandidateProfiler(c, setting, engine, n_train=n_train, tell=tell, lanes=room, brief=brief) for c in candidates
    ]
    if lanes <= 1:
        found = list(known)
        for measurement in measurements:
            place = prior(found, measurement.candidate)
            outcome = measurement.search(until_at, place) or measurement.time(until_at)
            if isinstance(outcome, Profile):
                found.append(outcome)
            yield outcome
        return
    yield from _side_by_side(measurements, engine, until_at, list(known), lanes)


def _side_by_side(
    measurements: list[CandidateProfiler], engine: Engine, until_at: float, known: list[Profile], lanes: int
) -> Iterator[Profile | Rejection]:
    search_until_at = until_at
    if until_at < math.inf:
        search_until_at = engine.now() + SEARCH_SHARE * (until_at - engine.now())
    families: dict[Candidate, list[CandidateProfiler]] = {}
    for measurement in measurements:
        families.setdefault(replace(measurement.candidate, train_px=0), []).append(measurement)
    over: SimpleQueue[Future[CandidateProfiler | Rejection]] = SimpleQueue()

    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:

        def begin(family: Sequence[CandidateProfiler], number: int) -> None:
            pool.submit(search, family, number).add_done_callback(over.put)

        def search(family: Sequence[CandidateProfiler], number: int) -> CandidateProfiler | Rejection:
            measurement, followed = family[number], number + 1 == len(family)

            def follow(placed: bool) -> None:
                nonlocal followed
                if placed and not followed:
                    followed = True
                    begin(family, number + 1)

            measurement.on_probe = lambda: follow(
                len(points_of(measurement.probes)) >= PLACING_POINTS and measurement.edge is not None
            )
            place = prior([*known, *family[:number]], measurement.candidate)
            rejection = measurement.search(search_until_at, place, beside=True)
            follow(placed=True)
            return rejection or measurement

        try:
            for family in families.values():
                begin(family, 0)
            ready: list[CandidateProfiler] = []
            for _ in measurements:
                found = over.get().result()
                if isinstance(found, CandidateProfiler):
                    ready.append(found)
                else:
                    yield found
        except BaseException:
            engine.close()  # an interrupt: what the lanes wait for ends
            raise
    # They time alone, one after the other; while one does, the next one starts.
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="timing") as pool:
        try:
            yield from pool.map(lambda each: each.time(until_at), ready)
        except BaseException:
            engine.close()
            raise
