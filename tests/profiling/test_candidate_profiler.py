"""The profile phase over an engine: what is certified, why a candidate is rejected, and what is done side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin import recipe as recipes
from fitwithin.candidate import grid
from fitwithin.engine.jobs import CompareJob, Job, ProbeJob
from fitwithin.engine.results import CompareResult, Failure, Outcome, Probe, Progress, StepTiming
from fitwithin.machine import DeviceName
from fitwithin.pipeline import profile_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.profiling.candidate_profiler import OUT_OF_TIME, PROBE_WITHIN_S, SMALLEST_BATCH
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.request import Request
from simulated.engine import Simulated
from simulated.law import Fault, SimulatedMachine
from simulated.run import GIB, CountedImages, Stage, measure, profile, request


def run_of(law: SimulatedMachine, n_train: int = 800, **asked: Any) -> RunContext:
    return Stage(law, request(**asked), Path("/nowhere"), CountedImages(counts=(n_train, 100, 100))).run()


def measured(run: RunContext, until_at: float = math.inf) -> Profile | Rejection:
    (candidate,) = run.candidates
    seen: list[Progress] = []
    (found,) = measure(
        [candidate], run.setting, run.engine, n_train=run.data.train, until_at=until_at, on_progress=seen.append
    )
    assert all(progress.text.startswith(candidate.name) for progress in seen)
    return found


def test_a_profile_is_a_certificate() -> None:
    run = run_of(SimulatedMachine())
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
    run = run_of(SimulatedMachine(), recipe="upright")
    found = measured(run)
    assert isinstance(found, Profile)
    assert found.batch == recipes.load("upright").max_batch
    assert len(run.engine.jobs) == 1


def test_what_never_fits_is_rejected_with_the_engines_reason() -> None:
    found = measured(run_of(SimulatedMachine(fixed_bytes=2e9)))
    assert isinstance(found, Rejection)
    assert found.reason.startswith(f"{SMALLEST_BATCH} images do not fit: ")
    assert "the cap is 1073741824" in found.reason


@pytest.mark.parametrize("until_s", [0.0, 0.5, 3.0, 8.0])
def test_out_of_time_is_its_own_reason(until_s: float) -> None:
    run = run_of(SimulatedMachine())
    found = measured(run, until_at=run.engine.now() + until_s)
    assert found == Rejection(candidate=run.candidates[0], reason=OUT_OF_TIME)
    assert run.engine.now() <= 1000.0 + until_s


def test_a_probe_that_hangs_is_not_waited_for() -> None:
    run = run_of(SimulatedMachine(troubles=(Fault(at_s=0.5, kind="hang"),)))
    found = measured(run)
    assert isinstance(found, Rejection)
    assert run.engine.now() == 1000.0 + PROBE_WITHIN_S


class Scripted:
    """An engine that answers from a function."""

    def __init__(self, answer: Callable[[ProbeJob], Outcome]) -> None:
        self.answer, self.jobs = answer, []

    def now(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        assert seconds > 0

    def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        assert isinstance(job, ProbeJob)
        self.jobs.append((job.batch, job.timed))
        return self.answer(job)


def scripted(answer: Callable[[ProbeJob], Outcome]) -> tuple[Profile | Rejection, list[tuple[int, bool]]]:
    run = run_of(SimulatedMachine())
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


def test_a_search_that_goes_on_begins_where_it_stood() -> None:
    """The longer, timed run fails at the edge again and again, as on a CPU whose memory is never twice the same."""
    timed: list[int] = []

    def answer(job: ProbeJob) -> Outcome:
        if job.timed:
            timed.append(job.batch)
        fails = job.batch > 100 or (job.timed and len(timed) < 4)
        timing = profile().timing if job.timed and not fails else None
        reason = "the cap was reached" if fails else ""
        peak_bytes = None if fails else 10**7 * job.batch
        return Probe(batch=job.batch, passed=not fails, reason=reason, peak_bytes=peak_bytes, timing=timing)

    found, jobs = scripted(answer)
    assert isinstance(found, Profile)
    assert timed == [100, 99, 98, 97]
    assert len(jobs) <= 14


def test_what_probes_held_outside_the_allocator_is_kept_free_by_later_ones() -> None:
    told: list[int] = []

    def answer(job: ProbeJob) -> Outcome:
        told.append(job.non_allocator_bytes)
        timing = profile().timing if job.timed else None
        passed, peak_bytes = job.batch <= 50, 10**7 * job.batch
        return Probe(
            batch=job.batch,
            passed=passed,
            peak_bytes=peak_bytes,
            timing=timing,
            non_allocator_bytes=300 + len(told) % 3,
        )

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert told[:4] == [0, 301, 302, 302]
    assert found.non_allocator_bytes == 302


def test_what_a_neighbour_held_outside_the_allocator_is_kept_free_from_the_first_probe_on() -> None:
    told: list[tuple[int, int]] = []

    def answer(job: ProbeJob) -> Outcome:
        told.append((job.candidate.train_px, job.non_allocator_bytes))
        most = 100 if job.candidate.train_px == 160 else 50
        timing = profile().timing if job.timed else None
        peak_bytes = 10**7 * job.batch * 100 // most
        return Probe(
            batch=job.batch, passed=job.batch <= most, peak_bytes=peak_bytes, timing=timing, non_allocator_bytes=300
        )

    run = run_of(SimulatedMachine(), sizes=(160, 224))
    run.engine.run = lambda job, **how: answer(job)
    measure(run.candidates, run.setting, run.engine, n_train=800)
    assert told[0] == (160, 0)
    assert all(non_allocator_bytes == 300 for px, non_allocator_bytes in told if px == 224)


def test_nothing_is_timed_in_the_end() -> None:
    def answer(job: ProbeJob) -> Outcome:
        if job.timed or job.batch > 4:
            return Probe(batch=job.batch, passed=False, reason="the cap was reached")
        return Probe(batch=job.batch, passed=True, peak_bytes=job.batch)

    found, _ = scripted(answer)
    assert isinstance(found, Rejection)
    assert found.reason == "the cap was reached"


# --- side by side ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))


def side_by_side(
    law: SimulatedMachine, jobs: int, time_s: float = 36_000.0
) -> tuple[RunContext, list[Profile | Rejection]]:
    asked = {"models": ("resnet18", "resnet50", "vgg11"), "precisions": ("amp", "fp32"), "sizes": (160, 224)}
    run = run_of(law, jobs=jobs, time_s=time_s, **asked)
    return run, profile_phase.profile(run, refresh=True)


def test_side_by_side_finds_what_one_after_the_other_finds() -> None:
    alone, one = side_by_side(SimulatedMachine(), 1)
    run, several = side_by_side(SimulatedMachine(), 4)
    assert [found.candidate for found in several] == list(run.candidates)
    batches = {found.candidate: found.batch for found in several if isinstance(found, Profile)}
    assert batches == {found.candidate: found.batch for found in one if isinstance(found, Profile)}
    first_timed = min(number for number, job in enumerate(run.engine.jobs) if job.timed)
    assert all(job.timed for job in run.engine.jobs[first_timed:]), "something was searched after timing began"
    books = run.accountant.ledger()
    assert books.balanced
    assert books.spent_s() < 0.7 * alone.accountant.ledger().spent_s()
    assert books.spent_s(gpu=True) <= books.spent_s(), "they share one device"


def test_no_more_jobs_than_allowed_are_at_work_and_what_is_timed_is_alone() -> None:
    run = run_of(SimulatedMachine(), models=("a", "b", "c", "d", "e"), jobs=3)
    at_work: set[int] = set()
    most, most_beside_timing = 0, 0

    class Counting(Simulated):
        def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
            nonlocal most, most_beside_timing
            at_work.add(id(job))
            most = max(most, len(at_work))
            try:
                return super().run(job, until_at=until_at, on_progress=on_progress)
            finally:
                if isinstance(job, ProbeJob) and job.timed:
                    most_beside_timing = max(most_beside_timing, len(at_work))
                at_work.remove(id(job))

    run = replace(run, engine=Counting(run.engine.law, run.engine.images, run.engine.clock))
    found = profile_phase.profile(run)
    assert all(isinstance(each, Profile) for each in found)
    assert (most, most_beside_timing) == (3, 1)


def test_a_neighbour_takes_fewer_trials() -> None:
    _, found = side_by_side(SimulatedMachine(), 1)
    known = [each for each in found if isinstance(each, Profile)]
    tried = {px: sum(each.num_tried for each in known if each.candidate.train_px == px) for px in (160, 224)}
    assert tried[224] < tried[160]


def test_side_by_side_ends_in_time() -> None:
    run, found = side_by_side(SimulatedMachine(), 4, time_s=60.0 / profile_phase.PROFILE_SHARE)
    assert run.engine.now() <= 1000.0 + 60.0
    assert len(found) == len(run.candidates)
    assert any(isinstance(each, Profile) for each in found)
    assert all(each.reason == OUT_OF_TIME for each in found if isinstance(each, Rejection))


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("passes", [True, False])
def test_the_largest_peak_of_any_probe_is_in_the_books(jobs: int, passes: bool) -> None:
    """Also that of one which failed, above the cap or not, and of a candidate that is rejected."""

    class Peaks(Simulated):
        def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
            assert isinstance(job, ProbeJob)
            if job.batch > 20:
                return Failure(kind="memory", reason="the cap was reached", peak_bytes=5 * GIB + job.batch)
            timing = profile().timing if job.timed else None
            reason = "" if passes else "the peak was above the cap"
            return Probe(batch=job.batch, passed=passes, reason=reason, peak_bytes=4 * GIB + job.batch, timing=timing)

    run = run_of(SimulatedMachine(), models=("a", "b"), jobs=jobs)
    asked: list[int] = []
    engine = Peaks(run.engine.law, run.engine.images, run.engine.clock)
    plain = engine.run
    engine.run = lambda job, **how: asked.append(job.batch) or plain(job, **how)
    found = profile_phase.profile(replace(run, engine=engine))
    assert all(isinstance(each, Profile) == passes for each in found)
    expected = max(4 * GIB + min(20, batch) if batch <= 20 else 5 * GIB + batch for batch in asked)
    entries = [entry for entry in run.accountant.ledger().entries if entry.phase == "profile"]
    assert max(entry.peak_bytes or 0 for entry in entries) == expected
    assert all(entry.peak_bytes for entry in entries)


def test_memory_that_others_hold_is_waited_for() -> None:
    asked: list[int] = []

    def answer(job: ProbeJob) -> Outcome:
        asked.append(job.batch)
        if len(asked) == 2:
            return Probe(batch=job.batch, passed=False, reason="others hold it", memory_taken_by_others=True)
        timing = profile().timing if job.timed else None
        return Probe(batch=job.batch, passed=job.batch <= 50, peak_bytes=10**7 * job.batch, timing=timing)

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert found.batch == 50
    assert asked[1] == asked[2]


def test_memory_that_others_keep_certifies_nothing() -> None:
    def answer(job: ProbeJob) -> Outcome:
        memory_taken_by_others = job.batch > 8
        reason = "others hold it" if memory_taken_by_others else ""
        return Probe(
            batch=job.batch,
            passed=not memory_taken_by_others,
            peak_bytes=job.batch,
            reason=reason,
            memory_taken_by_others=memory_taken_by_others,
        )

    found, _ = scripted(answer)
    assert found == Rejection(candidate=found.candidate, reason="others hold it")


# --- which batch, and which variants ---------------------------------------------------------------------------------


def with_batch(
    batch: str | int, law: SimulatedMachine, n_train: int = 800, **asked: Any
) -> tuple[RunContext, Profile | Rejection]:
    asked_for = request(**asked)
    asked_for = replace(asked_for, recipe=replace(asked_for.recipe, batch=batch))
    run = Stage(law, asked_for, Path("/nowhere"), CountedImages(counts=(n_train, 100, 100))).run()
    return run, measured(run)


def test_the_knee_is_taken_where_more_images_bring_little() -> None:
    run, found = with_batch("knee", SimulatedMachine(step_fixed_s=0.0))
    assert isinstance(found, Profile)
    law, (candidate,) = run.engine.law, run.candidates
    cap = run.setting.memory_bytes
    assert law.memory_bytes(candidate, found.certified) <= cap < law.memory_bytes(candidate, found.certified + 1)
    assert found.batch < found.certified
    assert "reaches 100% of the best throughput" in found.batch_why
    assert found.timing.step_s == law.step_s(candidate, found.batch), "timed at the batch that is taken"


def test_about_the_largest_is_taken_where_every_image_helps() -> None:
    _, found = with_batch("knee", SimulatedMachine(step_fixed_s=1.0, image_s=1e-6))
    assert isinstance(found, Profile)
    assert 0.97 * found.certified <= found.batch <= found.certified


def test_an_update_of_fixed_size_is_made_of_as_few_parts_as_fit() -> None:
    run, found = with_batch(256, SimulatedMachine())
    assert isinstance(found, Profile)
    assert found.batch == 256
    assert found.accum_steps > 1
    assert found.batch % found.accum_steps == 0
    part = found.batch // found.accum_steps
    assert part <= found.certified < found.batch // (found.accum_steps - 1)
    assert run.engine.jobs[-1].accum_steps == found.accum_steps
    assert f"in {found.accum_steps} parts of {part}" in found.batch_why


def test_an_update_that_fits_at_once_is_not_divided() -> None:
    _, found = with_batch(16, SimulatedMachine())
    assert isinstance(found, Profile)
    assert (found.batch, found.accum_steps) == (16, 1)


def test_a_step_that_cannot_be_recorded_is_launched_kernel_by_kernel() -> None:
    asked: list[bool] = []

    def answer(job: ProbeJob) -> Outcome:
        asked.append(job.cuda_graph)
        if job.cuda_graph:
            return Probe(batch=job.batch, passed=False, reason="cannot be recorded", graph_capture_failed=True)
        timing = profile().timing if job.timed else None
        return Probe(batch=job.batch, passed=job.batch <= 50, peak_bytes=10**7 * job.batch, timing=timing)

    found, _ = scripted(answer)
    assert isinstance(found, Profile)
    assert not found.cuda_graph
    assert asked[0]
    assert not any(asked[1:]), "it was tried again"


def screened_run(law: SimulatedMachine) -> tuple[RunContext, list[Profile | Rejection]]:
    asked = request(models=("resnet18", "resnet50"), precisions=("amp", "fp32"), sizes=(160, 224))
    asked = replace(asked, recipe=replace(asked.recipe, compare_variants=True))
    run = Stage(law, asked, Path("/nowhere"), CountedImages()).run()
    return run, profile_phase.profile(run)


def test_a_precision_that_loses_at_a_small_batch_is_not_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    run, found = screened_run(SimulatedMachine())
    lost = {each.candidate.name for each in found if isinstance(each, Rejection)}
    assert lost == {f"{model}-fp32-{px}" for model in ("resnet18", "resnet50") for px in (160, 224)}
    assert all("too slow to be profiled" in each.reason for each in found if isinstance(each, Rejection))
    assert sum(isinstance(job, CompareJob) for job in run.engine.jobs) == 2
    again, _ = screened_run(SimulatedMachine())
    assert again.engine.jobs == [], "paces and profiles are in the cache"
    fresh = Stage(SimulatedMachine(), run.request, Path("/nowhere"), CountedImages()).run()
    profile_phase.profile(fresh, refresh=True)
    assert sum(isinstance(job, CompareJob) for job in fresh.engine.jobs) == 2, "paces are measured anew too"


def test_where_nothing_can_be_compared_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    _, found = screened_run(SimulatedMachine(troubles=(Fault(at_s=0.1, kind="died"),)))
    assert sum(isinstance(each, Profile) for each in found) >= 6


@pytest.mark.parametrize(("time_s", "measured"), [(8.0, False), (12.0, True), (20.0, True)])
def test_what_won_a_comparison_that_took_its_share_is_measured_all_the_same_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_s: float, measured: bool
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    asked = request(precisions=("amp", "fp32"), time_s=time_s)
    asked = replace(asked, recipe=replace(asked.recipe, compare_variants=True))
    run = Stage(SimulatedMachine(), asked, Path("/nowhere"), CountedImages()).run()
    began_at = run.engine.now()
    found = profile_phase.profile(run)
    assert sorted((each.candidate.precision, isinstance(each, Profile)) for each in found) == [
        ("amp", measured),
        ("fp32", False),
    ]
    assert run.engine.now() - began_at <= time_s


@pytest.mark.parametrize("slots", [1, 2])
def test_of_device_time_a_start_takes_nothing_of_profilings_share(slots: int) -> None:
    """Of the time by the clock it does. (A start of 11 s had left two GPUs 22 s for profiling instead of 33.)"""

    def share_s(**limits: float) -> float:
        run = Stage(SimulatedMachine(), request(slots=slots, **limits), Path("/nowhere")).run()
        with run.accountant.entry("start-up"):
            run.engine.clock.sleep(11.0)
        return profile_phase.profiling_left_s(run)

    share = profile_phase.PROFILE_SHARE
    assert share_s(gpu_time_s=166.0) == pytest.approx(share * 166.0 / slots)
    assert share_s(time_s=100.0) == pytest.approx(share * 100.0 - 11.0)
    assert share_s(time_s=100.0, gpu_time_s=100.0) == pytest.approx(
        min(share * 100.0 - 11.0, share * 100.0 / slots), abs=1e-9
    )


def test_processes_that_train_together_are_certified_by_the_share_of_one() -> None:
    run = run_of(SimulatedMachine(), data_parallel=2)
    found = measured(run)
    assert isinstance(found, Profile)
    law, (candidate,), cap = run.engine.law, run.candidates, run.setting.memory_bytes
    assert found.batch == 2 * found.largest
    assert law.memory_bytes(candidate, found.largest) <= cap < law.memory_bytes(candidate, found.largest + 1)
    assert found.max_batch == found.largest + 0.5
    assert found.images_per_s == pytest.approx(2 * found.largest / law.step_s(candidate, found.largest))
    assert found.batch_why.startswith(f"2 processes take {found.largest} each; {found.largest} ran within 1.00 GiB")
    assert not any(job.scout for job in run.engine.jobs)


def test_a_recipes_limit_is_the_updates() -> None:
    most = recipes.load("upright").max_batch
    assert most is not None
    found = measured(run_of(SimulatedMachine(), recipe="upright", data_parallel=2))
    assert isinstance(found, Profile)
    assert (found.batch, found.largest) == (most // 2 * 2, most // 2)


@pytest.mark.parametrize(("ranks", "n_train", "batch", "told"), [
    (4, 7, "largest", "not even 2 images each; choose a smaller --data-parallel"),
    (3, 800, 64, "64 images an update cannot be shared equally by 3 processes"),
])  # fmt: skip
def test_what_cannot_be_shared_is_rejected(ranks: int, n_train: int, batch: str | int, told: str) -> None:
    run = run_of(SimulatedMachine(), n_train=n_train, data_parallel=ranks)
    run = replace(run, request=replace(run.request, recipe=replace(run.request.recipe, batch=batch)))
    found = measured(run)
    assert isinstance(found, Rejection)
    assert told in found.reason


def test_a_fixed_update_is_shared_and_then_divided() -> None:
    run = run_of(SimulatedMachine(), data_parallel=2)
    run = replace(run, request=replace(run.request, recipe=replace(run.request.recipe, batch=512)))
    found = measured(run)
    assert isinstance(found, Profile)
    assert (found.batch, 256 % found.accum_steps) == (512, 0)
    assert 256 // found.accum_steps <= found.largest
    assert found.accum_steps > 1


def short_run(
    time_s: float, *, sizes: tuple[int, ...] = (128, 160), **law: Any
) -> tuple[RunContext, list[Profile | Rejection]]:
    """Eight backbones at two sizes and two precisions, with a recipe that bounds its batch and compares precisions."""
    models = tuple(f"model{n}" for n in range(8))
    asked = request(
        models=models,
        precisions=("amp", "fp32"),
        sizes=sizes,
        test_sizes=(128, 160),
        recipe="fast",
        time_s=time_s,
        memory_bytes=4 * GIB,
    )
    run = Stage(SimulatedMachine(**law), asked, Path("/nowhere"), CountedImages()).run()
    return run, profile_phase.profile(run)


def test_where_profiles_would_take_too_much_of_the_time_one_per_backbone_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    run, found = short_run(180.0)
    profiles = [each for each in found if isinstance(each, Profile)]
    assert {each.candidate.name for each in profiles} == {
        f"model{n}-amp-{px}" for n in range(8) for px in (128, 160)
    }, "nobody is left out but for its precision"
    assert all("recipe's first" in each.reason for each in found if isinstance(each, Rejection))
    assert all(each.quick and each.batch == run.request.recipe.max_batch for each in profiles)
    assert len(run.engine.jobs) == 8, "one process each, at 160 px"
    assert all(isinstance(job, ProbeJob) and job.quick and job.candidate.train_px == 160 for job in run.engine.jobs)
    again, later = short_run(180.0)
    assert again.engine.jobs == [], "another run that is as short knows them"
    assert [each.candidate for each in later if isinstance(each, Profile)] == [each.candidate for each in profiles]
    longer, whole = short_run(3600.0)
    assert len(longer.engine.jobs) > 16, "one that has time makes whole ones"
    assert not any(each.quick for each in whole if isinstance(each, Profile))


def test_of_precisions_that_are_equally_fast_one_is_taken_where_the_batch_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training both would cost the winner half of its time; at a larger batch one could be faster."""

    def screen(self: Simulated, job: CompareJob, until_at: float) -> CompareResult:
        self.spend(2.0, until_at)
        same = StepTiming(batch=64, step_s=0.01, error_s=1e-4, first_s=0.1)
        return CompareResult(paces={each.name: same for each in job.candidates})

    monkeypatch.setattr(Simulated, "_screen", screen)
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    _, found = short_run(3600.0)
    profiles = [each for each in found if isinstance(each, Profile)]
    assert {each.candidate.name for each in profiles} == {f"model{n}-amp-{px}" for n in range(8) for px in (128, 160)}
    assert all("about as fast" in each.reason for each in found if isinstance(each, Rejection))
    _, unbounded = screened_run(SimulatedMachine())
    assert all(isinstance(each, Profile) for each in unbounded)


def with_layouts(asked: Request) -> RunContext:
    """A run on a GPU, where the recipe's layouts belong to the grid."""
    asked = replace(asked, device=DeviceName(kind="cuda"))
    run = Stage(SimulatedMachine(), asked, Path("/nowhere"), CountedImages()).run()
    return replace(run, candidates=grid(asked.models, asked.precisions, asked.sizes, asked.layouts))


@pytest.fixture
def faster_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> list[CompareJob]:
    """Steps in channels_last take half as long, but those of model1, whose first ones take 10 s, and those of model0,
    about which a brief job says nothing; what was compared."""
    asked: list[CompareJob] = []

    def screen(self: Simulated, job: CompareJob, until_at: float) -> CompareResult:
        asked.append(job)
        self.spend(2.0, until_at)
        paces = {}
        for each in job.candidates:
            last = each.layout == "channels_last"
            if not (last and job.quick and each.model == "model0"):
                first_s = 10.0 if last and each.model == "model1" else 0.1
                paces[each.name] = StepTiming(batch=64, step_s=0.01 / (1 + last), error_s=1e-4, first_s=first_s)
        return CompareResult(paces=paces)

    monkeypatch.setattr(Simulated, "_screen", screen)
    return asked


@pytest.mark.parametrize("slots", [1, 2])
def test_where_time_is_short_layouts_are_compared_by_one_process_for_all_backbones_of_a_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster_in_channels_last: list[CompareJob], slots: int
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    models = tuple(f"model{n}" for n in range(8))
    asked = request(
        models=models,
        precisions=("amp", "fp32"),
        sizes=(128, 160),
        test_sizes=(128, 160),
        recipe="fast",
        slots=slots,
        time_s=180.0 / slots,
        memory_bytes=4 * GIB,
    )
    run = with_layouts(asked)
    began_s = run.accountant.ledger().spent_s()
    found = profile_phase.profile(run)
    assert [len(job.candidates) for job in faster_in_channels_last] == [16 // slots] * slots
    assert all(job.quick for job in faster_in_channels_last)
    assert {each.precision for job in faster_in_channels_last for each in job.candidates} == {"amp"}
    taken = {each.candidate for each in found if isinstance(each, Profile)}
    assert {(each.model, each.layout, each.train_px) for each in taken} == {
        (model, "nchw" if model in ("model0", "model1") else "channels_last", px)
        for model in models
        for px in (128, 160)
    }, "first steps of 10 s, three times over, are too many for trials of 22"
    books = run.accountant.ledger()
    assert books.spent_s(gpu=True) > (slots - 0.2) * (books.spent_s() - began_s), "no slot waits for another"


def test_in_long_trials_first_steps_count_for_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster_in_channels_last: list[CompareJob]
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    found = profile_phase.profile(with_layouts(request(models=("model1",), sizes=(160,), recipe="fast", time_s=3600.0)))
    assert [each.candidate.layout for each in found if isinstance(each, Profile)] == ["channels_last"]
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "other"))
    short = profile_phase.profile(with_layouts(request(models=("model1",), sizes=(160,), recipe="fast", time_s=50.0)))
    assert [each.candidate.layout for each in short if isinstance(each, Profile)] == ["nchw"]
    (lost,) = [each.reason for each in short if isinstance(each, Rejection)]
    assert lost.startswith("5 ms for 64 images at 160 px after 10.0 s for the first ones, where amp takes 10: too slow")


def test_with_more_time_every_size_has_a_profile_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    run, found = short_run(3600.0)
    assert sum(isinstance(job, CompareJob) for job in run.engine.jobs) == 8
    assert not any(each.quick for each in found if isinstance(each, Profile))
    assert {job.candidate.train_px for job in run.engine.jobs if isinstance(job, ProbeJob)} == {128, 160}
    again, later = short_run(180.0)
    assert again.engine.jobs == [], "what is known is not asked for again"
    assert [each.candidate for each in later if isinstance(each, Profile)] == [
        each.candidate for each in found if isinstance(each, Profile)
    ]


def test_where_memory_is_the_limit_each_size_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    run, found = short_run(600.0, image_bytes=40e6)
    profiles = [each for each in found if isinstance(each, Profile)]
    assert any(each.batch < 128 for each in profiles)
    for each in profiles:
        if each.max_batch is not None:
            assert any(isinstance(job, ProbeJob) and job.candidate == each.candidate for job in run.engine.jobs)
