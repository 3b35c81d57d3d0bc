"""The profile phase over an engine: why a candidate is rejected, and the cache of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin import recipe as recipes
from fitwithin.engine.simulated import Law, Trouble
from fitwithin.jobs import Failure, Job, Outcome, ProbeJob, Progress
from fitwithin.profile import Probe, Profile, Rejection
from fitwithin.profiling import OUT_OF_TIME, PROBE_WITHIN_S, SMALLEST_BATCH, Cache, measure
from fitwithin.session import Run
from simulation import CountedImages, Stage, profile, request


def run_of(law: Law, n_train: int = 800, **asked: Any) -> Run:
    return Stage(law, request(**asked), Path("/nowhere"), CountedImages(counts=(n_train, 100, 100))).run()


def measured(run: Run, until_at: float = math.inf) -> Profile | Rejection:
    (candidate,) = run.candidates
    seen: list[Progress] = []
    (found,) = measure(
        [candidate], run.setting, run.engine, n_train=run.data.train, until_at=until_at, tell=seen.append
    )
    assert all(progress.text.startswith(candidate.name) for progress in seen)
    return found


def test_a_profile_is_a_certificate() -> None:
    run = run_of(Law())
    found = measured(run)
    assert isinstance(found, Profile)
    law, (candidate,) = run.engine.law, run.candidates
    cap = run.setting.memory_bytes
    assert law.memory_bytes(candidate, found.batch) <= cap < law.memory_bytes(candidate, found.batch + 1)
    assert found.timing.step_s == law.step_s(candidate, found.batch)
    assert found.parameters == law.parameters(candidate)
    assert found.wall_s == pytest.approx(run.engine.now() - 1000.0)
    timed = [job for job in run.engine.jobs if job.timed]
    assert [job.batch for job in timed] == [found.batch]


def test_a_small_limit_is_tried_first_and_timed_at_once() -> None:
    run = run_of(Law(), recipe="upright")
    found = measured(run)
    assert isinstance(found, Profile)
    assert found.batch == recipes.load("upright").max_batch
    assert len(run.engine.jobs) == 1


def test_what_never_fits_is_rejected_with_the_engines_reason() -> None:
    found = measured(run_of(Law(fixed_bytes=2e9)))
    assert isinstance(found, Rejection)
    assert found.reason.startswith(f"{SMALLEST_BATCH} images do not fit: ")
    assert "the cap is 1073741824" in found.reason


@pytest.mark.parametrize("until_s", [0.0, 0.5, 3.0, 8.0])
def test_out_of_time_is_its_own_reason(until_s: float) -> None:
    run = run_of(Law())
    found = measured(run, until_at=run.engine.now() + until_s)
    assert found == Rejection(candidate=run.candidates[0], reason=OUT_OF_TIME)
    assert run.engine.now() <= 1000.0 + until_s


def test_a_probe_that_hangs_is_not_waited_for() -> None:
    run = run_of(Law(troubles=(Trouble(at_s=0.5, kind="hang"),)))
    found = measured(run)
    assert isinstance(found, Rejection)
    assert run.engine.now() == 1000.0 + PROBE_WITHIN_S


class Scripted:
    """An engine that answers from a function."""

    def __init__(self, answer: Callable[[ProbeJob], Outcome]) -> None:
        self.answer, self.jobs = answer, []

    def now(self) -> float:
        return 0.0

    def rest(self, seconds: float) -> None:
        assert seconds > 0

    def do(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        assert isinstance(job, ProbeJob)
        self.jobs.append((job.batch, job.timed))
        return self.answer(job)


def scripted(answer: Callable[[ProbeJob], Outcome]) -> tuple[Profile | Rejection, list[tuple[int, bool]]]:
    run = run_of(Law())
    engine = Scripted(answer)
    return measured(replace(run, engine=engine)), engine.jobs


def test_an_error_in_the_first_probe_is_fatal() -> None:
    found, jobs = scripted(lambda job: Failure(kind="error", reason="TypeError: no such argument"))
    assert isinstance(found, Rejection)
    assert found.reason == "TypeError: no such argument"
    assert jobs == [(8, False)] * 2  # as a scout, then alone


@pytest.mark.parametrize("kind", ["error", "died", "memory"])
def test_a_scouted_size_that_fails_does_not_speak_for_the_small_one(kind: str) -> None:
    def answer(job: ProbeJob) -> Outcome:
        if job.scout:
            return Failure(kind=kind, reason="cuDNN does not like the scouted size")
        timing = profile().timing if job.timed else None
        return Probe(batch=job.batch, passed=job.batch <= 50, peak_bytes=10**7 * job.batch, timing=timing)

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert found.batch == 50


def test_an_error_in_a_larger_probe_is_a_failed_size() -> None:
    def answer(job: ProbeJob) -> Outcome:
        if job.batch > 20:
            return Failure(kind="error", reason="cuDNN does not like it")
        return Probe(batch=job.batch, passed=True, peak_bytes=job.batch, timing=profile().timing)

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert found.batch == 20
    assert "cuDNN does not like it" in found.batch_why


def test_a_worker_that_dies_at_a_large_batch_is_a_failed_size() -> None:
    def answer(job: ProbeJob) -> Outcome:
        if job.batch > 8:
            return Failure(kind="died", reason="the worker process ended without an answer (SIGKILL)")
        return Probe(batch=job.batch, passed=True, peak_bytes=job.batch, timing=profile().timing)

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert found.batch == 8


def test_the_longer_timed_run_is_the_stricter_one() -> None:
    """A size that passes the short probe and fails the timed one is searched on below."""

    def answer(job: ProbeJob) -> Outcome:
        if job.batch > (90 if job.timed else 100):
            return Probe(batch=job.batch, passed=False, reason="the cap was reached")
        timing = profile().timing if job.timed else None
        return Probe(batch=job.batch, passed=True, peak_bytes=10**7 * job.batch, timing=timing)

    found, jobs = scripted(answer)
    assert isinstance(found, Profile)
    assert found.batch == 90
    assert len(set(jobs)) == len(jobs), "a size was run twice"


def test_what_probes_held_outside_the_allocator_is_kept_free_by_later_ones() -> None:
    told: list[int] = []

    def answer(job: ProbeJob) -> Outcome:
        told.append(job.outside_bytes)
        timing = profile().timing if job.timed else None
        passed, peak_bytes = job.batch <= 50, 10**7 * job.batch
        return Probe(
            batch=job.batch, passed=passed, peak_bytes=peak_bytes, timing=timing, outside_bytes=300 + len(told) % 3
        )

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert told[:4] == [0, 301, 302, 302]
    assert found.outside_bytes == 302


def test_nothing_is_timed_in_the_end() -> None:
    def answer(job: ProbeJob) -> Outcome:
        if job.timed or job.batch > 4:
            return Probe(batch=job.batch, passed=False, reason="the cap was reached")
        return Probe(batch=job.batch, passed=True, peak_bytes=job.batch)

    found, _ = scripted(answer)
    assert isinstance(found, Rejection)
    assert found.reason == "the cap was reached"


# --- the cache -------------------------------------------------------------------------------------------------------


def cache(folder: Path, **changes: Any) -> Cache:
    setting = run_of(Law()).setting
    values = {"machine": {"name": "H100"}, "setting": setting, "fingerprint": "f" * 8, **changes}
    return Cache(folder, **values)


def test_what_was_put_is_got_and_marked(tmp_path: Path) -> None:
    found = profile()
    kept = cache(tmp_path / "deep" / "profiles")
    assert kept.get(found.candidate) is None
    kept.put(found)
    assert kept.get(found.candidate) == replace(found, cached=True)
    kept.put(replace(found, batch=16))
    assert kept.get(found.candidate).batch == 16
    assert [path.suffix for path in (tmp_path / "deep" / "profiles").iterdir()] == [".json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"candidate": 3}', "\x00\xff"])
def test_a_damaged_file_is_as_none(tmp_path: Path, text: str) -> None:
    found, kept = profile(), cache(tmp_path)
    kept.put(found)
    (path,) = tmp_path.iterdir()
    path.write_bytes(text.encode("latin-1"))
    assert kept.get(found.candidate) is None
    kept.put(found)
    assert kept.get(found.candidate) is not None


def test_whatever_decides_speed_or_memory_is_part_of_the_key(tmp_path: Path) -> None:
    found, base = profile(), run_of(Law()).setting
    cache(tmp_path).put(found)
    other_recipe = replace(base.recipe, max_batch=8)
    others = [
        {"machine": {"name": "A100"}},
        {"fingerprint": "other"},
        *(
            {"setting": replace(base, **change)}
            for change in (
                {"memory_bytes": base.memory_bytes + 1},
                {"accounting": "allocator"},
                {"classes": 5},
                {"recipe": other_recipe},
                {"view_sizes": (96,)},
                {"workers": 1},
                {"pack": "/nowhere/another"},
            )
        ),
    ]
    assert [cache(tmp_path, **other).get(found.candidate) for other in others] == [None] * len(others)
    assert cache(tmp_path, setting=replace(base, seed=9)).get(found.candidate) is not None


# --- side by side ----------------------------------------------------------------------------------------------------


def side_by_side(law: Law, lanes: int, until_at: float = math.inf) -> tuple[Run, list[Profile | Rejection]]:
    run = run_of(law, models=("resnet18", "resnet50", "vgg11"), precisions=("amp", "fp32"), sizes=(160, 224))
    found = measure(
        run.candidates,
        run.setting,
        run.engine,
        n_train=run.data.train,
        until_at=until_at,
        tell=lambda progress: None,
        lanes=lanes,
    )
    return run, list(found)


def test_side_by_side_finds_what_one_after_the_other_finds() -> None:
    _, one = side_by_side(Law(), 1)
    run, several = side_by_side(Law(), 4)
    assert {found.candidate for found in several} == set(run.candidates)
    batches = {found.candidate: found.batch for found in several if isinstance(found, Profile)}
    assert batches == {found.candidate: found.batch for found in one if isinstance(found, Profile)}
    first_timed = min(number for number, job in enumerate(run.engine.jobs) if job.timed)
    assert not any(job.scout for job in run.engine.jobs[first_timed:]), "something was searched after timing began"


def test_a_neighbour_takes_fewer_trials() -> None:
    _, found = side_by_side(Law(), 1)
    of = {px: [f.trials for f in found if isinstance(f, Profile) and f.candidate.train_px == px] for px in (160, 224)}
    assert sum(of[224]) < sum(of[160])


def test_side_by_side_ends_in_time() -> None:
    run, found = side_by_side(Law(), 4, until_at=1000.0 + 60.0)
    assert run.engine.now() <= 1000.0 + 60.0
    assert len(found) == len(run.candidates)
    assert any(isinstance(each, Profile) for each in found)
    assert all(each.reason == OUT_OF_TIME for each in found if isinstance(each, Rejection))


def test_memory_that_others_hold_is_waited_for() -> None:
    asked: list[int] = []

    def answer(job: ProbeJob) -> Outcome:
        asked.append(job.batch)
        if len(asked) == 2:
            return Probe(batch=job.batch, passed=False, reason="others hold it", crowded=True)
        timing = profile().timing if job.timed else None
        return Probe(batch=job.batch, passed=job.batch <= 50, peak_bytes=10**7 * job.batch, timing=timing)

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert found.batch == 50
    assert asked[1] == asked[2]


def test_memory_that_others_keep_certifies_nothing() -> None:
    def answer(job: ProbeJob) -> Outcome:
        crowded = job.batch > 8
        reason = "others hold it" if crowded else ""
        return Probe(batch=job.batch, passed=not crowded, peak_bytes=job.batch, reason=reason, crowded=crowded)

    found, _ = scripted(answer)
    assert found == Rejection(candidate=found.candidate, reason="others hold it")
