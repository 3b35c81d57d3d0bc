"""The simulated engine: a law in place of hardware, a clock that jumps, and the same deadlines as everywhere else.

Profile, plan, ledger and deadlines stand above the engine, so a whole run takes milliseconds on any machine that a law
describes. See docs/decisions/0004-simulated-at-the-engine-seam.md.

    images = fitwithin.data.pack_builder.build(...)  # or anything like fitwithin.data.dataset.Images
    engine = Simulated(Law(image_s=2e-3, drifts=((600, 3.0),)), images)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from fitwithin.candidate import View, by_size
from fitwithin.data.dataset import num_familiar
from fitwithin.engine.jobs import (
    MIN_RATIO,
    SCOUTED,
    CompareJob,
    EvaluateJob,
    Job,
    LinearProbeJob,
    ProbeJob,
    TrainJob,
    batches_to_compare,
    evaluates_in_process,
    heartbeat_timeout_s,
)
from fitwithin.engine.results import (
    EVALUATED,
    LINEAR,
    NOVELTY,
    CompareResult,
    EvalResult,
    Failure,
    FailureKind,
    LinearProbe,
    Outcome,
    Probe,
    Progress,
    StepTiming,
    Timing,
    logits_path,
)
from fitwithin.engine.worker_process import Standby
from fitwithin.files import read_json, to_json
from simulated.clock import SimulatedClock, SimulatedExecutor
from simulated.law import SimulatedMachine
from simulated.trial import read_accuracy, train, write_accuracy

if TYPE_CHECKING:
    from fitwithin.data.dataset import Images

#: A probe takes so many updates and times each pace for so many seconds, as a real one does, a quick one for less and
#: over so few batches of an evaluation; the loader's stock of batches is made so many times.
UPDATES, SAMPLE_S, QUICK_S, SAMPLE_STEPS, QUICK_BATCHES, STOCKS = 6, (0.15, 1.0), (0.15, 0.25), 6, 3, 6

#: Precisions and layouts are compared at this batch.
SCREEN_BATCH = 64

#: How many times per split and view an evaluation looks at its deadline.
SLICES = 8


class _Ended(Exception):
    """The job at hand has ended without a result."""

    def __init__(self, kind: FailureKind, reason: str, peak_bytes: int | None = None) -> None:
        super().__init__(reason)
        self.failure = Failure(kind=kind, reason=reason, peak_bytes=peak_bytes)


class Simulated:
    """Carries out jobs by a law. Models are tokens, but every file of a run is where a real one would be.

    Args:
        law: what everything costs, and what goes wrong.
        images: whose splits and labels are trained and evaluated on; no pixel is read.
        clock: shared with the ledger; a new one by default.
    """

    #: As of the local engine.
    evaluates_in_process = True

    def __init__(self, law: SimulatedMachine, images: Images, clock: SimulatedClock | None = None) -> None:
        self.law, self.images, self.clock = law, images, clock or SimulatedClock()
        self.started_at = self.clock.now()
        self.jobs: list[Job] = []
        self._staying: Standby[TrainJob] = Standby()
        self._one = threading.Lock()
        self._at_work = threading.local()

    def describe(self) -> dict[str, Any]:
        """The law is the device."""
        return {"device": "simulated", "name": repr(self.law)}

    def max_parallel(self, wanted: int, memory_bytes: int) -> int:
        """As many as are wanted; their jobs follow each other on the one clock."""
        del memory_bytes
        return max(1, wanted)

    def sleep(self, seconds: float) -> None:
        """The clock jumps."""
        self.clock.sleep(seconds)

    def prepare(self, until_at: float = math.inf) -> bool:
        """There is nothing to wait for."""
        del until_at
        return True

    def now(self) -> float:
        """The simulated present."""
        return self.clock.now()

    def crew(self, count: int) -> SimulatedExecutor:
        """Their jobs go on at the same time, by the one clock."""
        del count
        return SimulatedExecutor(self.clock)

    def close(self) -> None:
        """There is nothing to end."""

    @property
    def number(self) -> int:
        """Which of the engine's jobs is at work in this thread, from 1 on."""
        return int(self._at_work.number)

    def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        """The outcome that the law gives the job; the clock stands at its end, never beyond ``until_at``.

        Jobs of an executor go on at the same time; of other threads one after the other.
        """
        with nullcontext() if self.clock.shared else self._one:
            self.jobs.append(job)
            self._at_work.number, self._at_work.job = len(self.jobs), job
            try:
                staying, _ = self._staying.part(job)
                if isinstance(job, ProbeJob):
                    return self._probe(job, until_at)
                if isinstance(job, CompareJob):
                    return self._screen(job, until_at)
                if isinstance(job, TrainJob):
                    trained = train(self, job, until_at, on_progress)
                    if evaluates_in_process(job):
                        self._staying.add(job, job)
                    return trained
                if isinstance(job, LinearProbeJob):
                    return self._probe_linearly(job, until_at)
                if staying is None:
                    self.spend(self.law.startup_s, until_at)
                return self._evaluate(job, until_at, on_progress)
            except _Ended as end:
                return end.failure

    def spend(self, seconds: float, until_at: float) -> None:
        """Let a job work for what are ``seconds`` on a machine at rest."""
        begun_at = self.now()
        ends_at = begun_at + seconds * self.law.slowdown(begun_at - self.started_at)
        stalls = [(self.started_at + at_s, lost_s) for at_s, lost_s in self.law.stalls]
        ends_at += sum(lost_s for at, lost_s in stalls if begun_at < at <= ends_at)
        for trouble in sorted(self.law.troubles, key=lambda trouble: trouble.at_s):
            at = self.started_at + trouble.at_s
            if begun_at < at <= min(ends_at, until_at):
                hung = trouble.kind == "hang"
                self.clock.wait_until(min(until_at, at + heartbeat_timeout_s(self._at_work.job)) if hung else at)
                if hung and self.now() < until_at:
                    raise _Ended("hung", f"nothing was heard of the worker for {self.now() - at:.0f} s")
                if trouble.kind != "hang":
                    raise _Ended(trouble.kind, f"simulated: {trouble.kind} {trouble.at_s:g} s after the start")
                break
        if self.now() >= until_at or ends_at > until_at:
            self.clock.wait_until(until_at)
            raise _Ended("deadline", "its time was over and the worker was ended")
        self.clock.wait_until(ends_at)

    def check_memory(self, job: ProbeJob | TrainJob) -> int:
        """The peak of the job at hand; it ends here if that is above the cap."""
        needed = self.law.memory_bytes(job.candidate, job.share // job.accum_steps, self.number)
        cap = job.setting.memory_bytes
        if needed > cap:
            raise _Ended("memory", f"{needed} bytes were asked for, the cap is {cap}", cap)
        return needed

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """The labels of a split, in order."""
        return np.asarray(self.images.labels[self.images.indices(split)])

    def _probe(self, job: ProbeJob, until_at: float) -> Probe:
        law, begun_at = self.law, self.now()
        parameters, timing = law.parameters(job.candidate), None
        try:
            self.spend(law.startup_s + law.warmup_s, until_at)
            peak_bytes = self.check_memory(job)
            self.spend(UPDATES * law.device_s(job.candidate, job.batch), until_at)
            if job.timed:
                timing = self._time(job, until_at)
        except _Ended as end:
            if end.failure.kind != "memory":
                raise
            wall_s, reason = self.now() - begun_at, end.failure.reason
            return Probe(batch=job.batch, passed=False, reason=reason, parameters=parameters, wall_s=wall_s)
        scouted = self._scout(job, peak_bytes, until_at) if job.scout else ()
        wall_s = self.now() - begun_at
        return Probe(
            batch=job.batch,
            passed=True,
            peak_bytes=peak_bytes,
            parameters=parameters,
            wall_s=wall_s,
            timing=timing,
            scouted=scouted,
        )

    def _probe_linearly(self, job: LinearProbeJob, until_at: float) -> LinearProbe:
        law, begun_at = self.law, self.now()
        self.spend(law.startup_s, until_at)
        n_val, n_all = len(self.labels("val")), len(self.labels("train")) + len(self.labels("val"))
        paces = {one: law.eval_image_s(one, one.train_px) for one in job.candidates}
        largest_first = sorted(paces, key=lambda one: (-one.train_px, paces[one]))
        affordable = [one for one in largest_first if n_all * paces[one] <= job.all_within_s]
        candidate = next(iter(affordable), min(paces, key=lambda one: paces[one]))
        image_s = paces[candidate]
        most = int((job.until_at - self.now() - law.save_s) / (2 * image_s)) - n_val
        images = min(job.most_images, most)
        if images < len(self.images.classes):
            raise _Ended("error", "the time was over before there were features of images of every class")
        self.spend((images + n_val) * image_s + law.save_s, until_at)
        accuracy = law.accuracy(
            candidate, law.half_epochs * images / len(self.labels("train")), 0.0, job.setting.classes
        )
        accuracy += dict(law.fit_gains).get(job.setting.recipe.fit, 0.0)
        folder = Path(job.folder) / f"{candidate.name}-{LINEAR}"
        write_accuracy(folder, accuracy)
        features_s = self.now() - begun_at - law.startup_s
        testing_s = len(self.labels("test")) * image_s
        if job.evaluates and testing_s <= 0.5 * (job.until_at - self.now()):
            view, splits = View(px=candidate.train_px, flip=False), ("val", "test")
            self.spend(testing_s, until_at)
            for split in splits:
                rows = law.logits(
                    self.labels(split), job.setting.classes, accuracy=accuracy, train_px=view.px, split=split, view=view
                )
                np.save(logits_path(folder, split, view), rows, allow_pickle=False)
            done = tuple((split, view.name) for split in splits)
            seen = EvalResult(done=done, ms_per_image={view.name: 1e3 * image_s}, batch=job.batch, peak_bytes=0)
            (folder / EVALUATED).write_text(to_json(seen), encoding="utf-8")
        return LinearProbe(
            candidate=candidate,
            correct=round(accuracy * n_val),
            neighbours_correct=round(0.8 * accuracy * n_val),
            pixels_correct=round(0.4 * accuracy * n_val),
            images=images,
            strength=0.01,
            parameters=law.parameters(candidate),
            startup_s=law.startup_s,
            features_s=features_s,
            image_s=image_s,
            head_s=0.0,
            cached=0,
            peak_bytes=min(law.memory_bytes(candidate, job.batch), job.setting.memory_bytes),
        )

    def _screen(self, job: CompareJob, until_at: float) -> CompareResult:
        paces = {}
        for candidate in job.candidates:
            step_s = self.law.device_s(candidate, SCREEN_BATCH)
            self.spend(self.law.warmup_s + SAMPLE_STEPS * step_s, until_at)
            error_s = self.law.pace_noise * step_s
            paces[candidate.name] = StepTiming(
                batch=SCREEN_BATCH, step_s=step_s, error_s=error_s, first_s=self.law.warmup_s
            )
        return CompareResult(paces=paces)

    def _scout(self, job: ProbeJob, peak_bytes: int, until_at: float) -> tuple[tuple[int, int], ...]:
        law, cap = self.law, job.setting.memory_bytes
        points = [(job.batch, peak_bytes)]
        image_bytes = (peak_bytes - law.fixed_bytes) / job.batch
        for share in SCOUTED:
            at, needed = points[-1]
            if len(points) > 1:
                image_bytes = (needed - peak_bytes) / (at - job.batch)
            batch = min(job.limit, int(share * (at + (cap - needed) / max(1.0, image_bytes))))
            needed = law.memory_bytes(job.candidate, batch, self.number)
            if batch < MIN_RATIO * at or needed > cap:
                break
            self.spend(UPDATES * law.device_s(job.candidate, batch), until_at)
            points.append((batch, needed))
        return tuple(points[1:])

    def _time(self, job: ProbeJob, until_at: float) -> Timing:
        law, candidate = self.law, job.candidate
        slow = law.slowdown(self.now() - self.started_at)
        step_s, dummy_s = law.step_s(candidate, job.batch), law.device_s(candidate, job.batch)
        found_s = slow * step_s * (1 + law.pace_noise * (2 * law.draw("probe", self.number) - 1) / 3)
        evals = {px: law.eval_image_s(candidate, px) for px in {candidate.train_px, *job.setting.view_sizes}}
        loader_s = law.loader_s(job.batch)
        for pace_s, sample_s in zip((dummy_s, step_s), QUICK_S if job.quick else SAMPLE_S, strict=True):
            self.spend(max(sample_s, SAMPLE_STEPS * pace_s), until_at)
        self.spend(STOCKS * loader_s, until_at)
        n_val = min(len(self.images.indices("val")), QUICK_BATCHES * job.batch if job.quick else 2**31)
        self.spend(sum(law.eval_first_s + 2 * n_val * image_s for image_s in evals.values()) + law.save_s, until_at)
        stages = self._stages(job, slow, until_at)
        return Timing(
            startup_s=slow * law.startup_s,
            warmup_s=slow * law.warmup_s,
            dummy_step_s=slow * dummy_s,
            step_s=found_s,
            step_low_s=found_s * (1 - law.pace_noise / 2),
            step_high_s=found_s * (1 + law.pace_noise / 2),
            eval_image_s={px: slow * image_s for px, image_s in sorted(evals.items())},
            eval_first_s=dict.fromkeys(sorted(evals), slow * law.eval_first_s),
            save_s=slow * law.save_s,
            loader_step_s=slow * loader_s,
            rates=self._rates(job, until_at) if job.rates else {},
            stage_step_s=stages[0],
            stage_change_s=stages[1],
        )

    def _stages(self, job: ProbeJob, slow: float, until_at: float) -> tuple[dict[int, float], dict[int, float]]:
        """The pace at every smaller size of progressive resizing, and what going on to the next one costs."""
        law, sizes = self.law, [px for _, px in job.setting.recipe.stages(job.candidate.train_px)]
        paces = {px: law.step_s(replace(job.candidate, train_px=px), job.batch) for px in sizes[:-1]}
        sample_s = (QUICK_S if job.quick else SAMPLE_S)[1]
        self.spend(sum(max(sample_s, SAMPLE_STEPS * pace_s) + law.change_s for pace_s in paces.values()), until_at)
        return {px: slow * pace_s for px, pace_s in paces.items()}, dict.fromkeys(sizes[1:], slow * law.change_s)

    def _rates(self, job: ProbeJob, until_at: float) -> dict[int, float]:
        rates = {}
        for batch in (job.batch, *batches_to_compare(job.batch)):
            pace_s = self.law.device_s(job.candidate, batch)
            self.spend(max(SAMPLE_S[0], SAMPLE_STEPS * pace_s), until_at)
            rates[batch] = batch / pace_s
        return rates

    def _evaluate(self, job: EvaluateJob, until_at: float, on_progress: Callable[[Progress], None]) -> EvalResult:
        law, folder = self.law, Path(job.folder)
        accuracy = read_accuracy(folder)
        peak_bytes = min(law.memory_bytes(job.candidate, job.batch), job.setting.memory_bytes)
        there = read_json(EvalResult, folder / EVALUATED)
        weight_bytes, image_bytes = 4 * law.parameters(job.candidate), law.pass_bytes(max(job.views).px)
        batch = job.batch
        if job.inference_bytes is not None:
            batch = min(batch, max(1, (job.inference_bytes - weight_bytes) // image_bytes))
        found = there or EvalResult(
            done=(),
            ms_per_image={},
            batch=batch,
            peak_bytes=peak_bytes,
            weight_bytes=weight_bytes,
            image_bytes=image_bytes,
        )
        sizes = by_size(job.views, job.candidate.train_px)
        ways = [(split, view) for views in sizes for split in job.splits for view in views]
        for number, (split, view) in enumerate(ways):
            if (split, view.name) in found.done:
                continue
            truth = self.labels(split)
            image_s = law.eval_image_s(job.candidate, view.px)
            for _ in range(SLICES):
                self.spend(len(truth) * image_s / SLICES, until_at)
                if self.now() >= job.until_at:
                    return found
            on_progress(Progress(step=number + 1, total=len(ways), text=f"{split} split"))
            logits = law.logits(
                truth,
                job.setting.classes,
                accuracy=accuracy,
                train_px=job.candidate.train_px,
                split=split,
                view=view,
            )
            np.save(logits_path(folder, split, view), logits, allow_pickle=False)
            done = (*found.done, (split, view.name))
            found = replace(found, done=done, ms_per_image={**found.ms_per_image, view.name: 1e3 * image_s})
            (folder / EVALUATED).write_text(to_json(found), encoding="utf-8")
        counts = {split: len(self.images.indices(split)) for split in ("train", *job.splits)}
        passes = len(job.views) * sum(counts[split] for split in job.splits)
        familiar = sum(num_familiar(counts["train"], counts["val"], passes))
        self.spend(familiar * law.eval_image_s(job.candidate, job.candidate.train_px), until_at)
        if familiar and self.now() < job.until_at:
            save_file({"features": np.eye(4, dtype=np.float16)}, folder / NOVELTY)
            found = replace(found, novelty=0.25)
        return found
