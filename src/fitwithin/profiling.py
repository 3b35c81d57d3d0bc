"""The profile phase (the paper's Algorithm 1) over an engine: a profile or a rejection for every candidate, cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitwithin import profile as profiles
from fitwithin.candidate import Candidate
from fitwithin.engine import Engine
from fitwithin.jobs import Failure, ProbeJob, Progress, Setting
from fitwithin.profile import Probe, Profile, Rejection, largest_batch

SCHEMA = 2

#: Batch norm over one value fails in training (ResNeSt), so two images are the least.
SMALLEST_BATCH = 2

#: A limit up to here (set by the recipe or the data) is tried first: one probe instead of three when memory is ample.
TRY_LIMIT_FIRST = 64

#: No single probe lasts longer: a model that hangs is rejected, not waited for.
PROBE_WITHIN_S = 300.0

OUT_OF_TIME = "no time was left to profile it"


def measure(
    candidate: Candidate,
    setting: Setting,
    engine: Engine,
    *,
    n_train: int,
    until_at: float,
    on_progress: Callable[[Progress], None],
) -> Profile | Rejection:
    """Find the candidate's largest batch and its timing there; a rejection with its reason if that cannot be done."""
    asked: dict[tuple[int, bool], Probe] = {}  # by batch and whether it was timed
    taken: list[Probe] = []
    out_of_time = False

    def ask(batch: int, *, timed: bool) -> Probe:
        nonlocal out_of_time
        for known in ((batch, timed), (batch, True)):
            if known in asked:
                return asked[known]
        if out_of_time:
            return Probe(batch=batch, passed=False, reason=OUT_OF_TIME, fatal=True)
        what = f"{candidate.name}: batch {batch}{', timed' if timed else ''}"
        on_progress(Progress(step=len(taken), total=0, text=what))
        job = ProbeJob(
            setting=setting,
            candidate=candidate,
            batch=batch,
            timed=timed,
            scout=not taken and batch < limit,
            limit=limit,
            outside_bytes=max((probe.outside_bytes for probe in taken), default=0),
        )
        begun_at = engine.now()
        ends_at = min(until_at, begun_at + PROBE_WITHIN_S)
        outcome = engine.do(job, until_at=ends_at, on_progress=on_progress)
        if job.scout and isinstance(outcome, Failure) and outcome.kind != "deadline":
            # It may have been the scouted size that failed: the small one is asked alone before it is judged.
            outcome = engine.do(replace(job, scout=False), until_at=ends_at, on_progress=on_progress)
        if isinstance(outcome, Failure):
            out_of_time = outcome.kind == "deadline"
            reason = OUT_OF_TIME if out_of_time else outcome.reason
            # What fails in the first, small probe fails always; later a smaller batch may do.
            fatal = out_of_time or (outcome.kind == "error" and not taken)
            outcome = Probe(batch=batch, passed=False, reason=reason, fatal=fatal)
        assert isinstance(outcome, Probe)
        asked[batch, timed] = replace(outcome, wall_s=engine.now() - begun_at)
        taken.append(asked[batch, timed])
        return taken[-1]

    limit = min(n_train, setting.recipe.max_batch or n_train)
    first = limit if limit <= TRY_LIMIT_FIRST else 8
    while True:
        batch, why, _ = largest_batch(
            lambda b, sure: ask(b, timed=sure or b == limit == first),
            cap_bytes=setting.memory_bytes,
            limit=limit,
            first=first,
            smallest=SMALLEST_BATCH,
        )
        if batch == 0 or out_of_time:
            return Rejection(candidate=candidate, reason=OUT_OF_TIME if out_of_time else why)
        timed = ask(batch, timed=True)
        if timed.timing is not None and timed.peak_bytes is not None:
            break
        if out_of_time or batch <= SMALLEST_BATCH:
            return Rejection(candidate=candidate, reason=timed.reason)
        asked[batch, False] = timed  # the longer run is the stricter one: search on below it
    return Profile(
        candidate=candidate,
        parameters=timed.parameters,
        batch=batch,
        batch_why=why,
        peak_bytes=timed.peak_bytes,
        timing=timed.timing,
        probes=tuple(taken),
    )


class Cache:
    """Profiles kept between runs, one JSON file each, named by everything that they depend on."""

    def __init__(self, folder: Path, machine: dict[str, Any], setting: Setting, fingerprint: str) -> None:
        self._folder = folder
        self._key = {
            "schema": SCHEMA,
            "machine": machine,
            "memory_bytes": setting.memory_bytes,
            "accounting": setting.accounting,
            "classes": setting.classes,
            "recipe": repr(setting.recipe),
            "view_sizes": setting.view_sizes,
            "workers": setting.workers,
            "data": fingerprint,
            "pack": Path(setting.pack).name,
        }

    def _path(self, candidate: Candidate) -> Path:
        text = json.dumps({**self._key, "candidate": candidate.name}, sort_keys=True)
        return self._folder / f"{candidate.name}-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.json"

    def get(self, candidate: Candidate) -> Profile | None:
        """The stored profile; None if there is none, or if its file is damaged."""
        try:
            return profiles.from_dict(json.loads(self._path(candidate).read_text(encoding="utf-8")), cached=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, profile: Profile) -> None:
        """Store a profile, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(profile.candidate)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(profiles.to_dict(profile)), encoding="utf-8")
        temporary.replace(path)
