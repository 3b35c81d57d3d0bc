"""How long everything takes at one batch size: the timed part of a probe, in this fresh process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fitwithin.candidate import View
from fitwithin.data.batches import Batch, TrainBatches, dummy_batch
from fitwithin.data.framing import Frame
from fitwithin.data.prefetch import PrefetchLoader, Stream
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import ProbeJob, batches_to_compare
from fitwithin.engine.results import Timing
from fitwithin.profiling.interpolate import interpolate_step_s
from fitwithin.training.evaluation import eval_batch, ms_per_image, split_logits
from fitwithin.training.learner import Learner, check_finite, write_checkpoint
from fitwithin.training.loop import MAX_STEPS
from fitwithin.training.progress import first_and_pace

#: Seconds per step, and the ends of its 95 % interval.
Interval = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a pace is measured: after a run-up, in which a GPU raises its clocks, over ``least_s`` and ``steps`` or more,
    until half its 95 % interval is at most ``steady`` of the mean or ``most_s`` are over. That half is taken to be at
    least ``error`` of the mean."""

    run_up_s: float
    least_s: float
    most_s: float
    steps: int
    steady: float
    error: float = 0.0


#: The usual sampling, and that of a quick profile, which takes as long as recording a step.
USUAL = Sampling(run_up_s=0.5, least_s=0.5, most_s=3.0, steps=6, steady=0.003)
BRIEF = Sampling(run_up_s=0.1, least_s=0.15, most_s=0.3, steps=3, steady=0.02, error=0.05)

#: A quick timing looks at BRIEF_BATCHES of an evaluation, and at more for BRIEF_EVALUATION_S, up to BRIEF_MOST. (Three
#: predicted 0.12 to 0.54 s for validations that took 0.13 to 0.34: 64 and 80 px, H100.)
BRIEF_BATCHES, BRIEF_EVALUATION_S, BRIEF_MOST = 3, 0.15, 12

#: The steps with which a timed process begins, as a trial does: one, a checkpoint, the recording, and some in a row.
FIRST_STEPS = 4

#: The dummy pace needs fewer steps: it is the device's alone.
DUMMY_SAMPLE_S, DUMMY_STEPS = 0.15, 6

#: The steps until a batch of another size has its steady pace.
PREPARED = 3

#: The steps that show the cost of another size: one, its recording, and the first that is replayed.
CHANGE_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """The steps at the beginning, after a change of the size, and of the dummy pace."""

    first: int = FIRST_STEPS
    change: int = CHANGE_STEPS
    dummy: int = DUMMY_STEPS


#: A quick timing on a CPU: nothing is recorded there, and a step may take seconds. The sizes between the smallest and
#: the largest are interpolated.
QUICK_CPU = StepCounts(first=2, change=1, dummy=2)


def measure(
    learner: Learner, job: ProbeJob, device: Cpu | Cuda, feeder: PrefetchLoader, startup_s: float, scratch: Path
) -> Timing:
    """Seconds of everything that a plan needs: steps of the device, of the loader and of both together, evaluation,
    checkpoint.

    As in a trial, the sizes of progressive resizing follow each other. The pace is that of the step as recorded first:
    recorded again after an evaluation, ResNeSt's float16 steps were 1.2 to 1.8 % faster than in trials (H100). No other
    process may start meanwhile: beside a start, eight of 40 samples had an interval of 1 to 3.4 %, where 0.1 is usual.

    Processes that train together take the same steps; the first one decides when to stop.
    """
    candidate = job.candidate
    num_other_processes = device.num_other_processes()
    stages = [px for _, px in job.setting.recipe.stages(candidate.train_px)]
    brief_cpu = job.quick and device.kind == "cpu"
    counts, sizes = (QUICK_CPU, sorted({stages[0], stages[-1]})) if brief_cpu else (StepCounts(), stages)
    first_s = save_s = 0.0
    paces: dict[int, Interval] = {}
    changes_s: dict[int, float] = {}
    fields: dict[str, Any] = {}
    for px in sizes:
        begun_at = time.monotonic()
        with feeder.stream(
            TrainBatches, **learner.loader_args(px), batch=job.batch, first_step=0, steps=MAX_STEPS
        ) as loaded:
            batches = iter(loaded)
            if px == sizes[0]:
                first_s, save_s = _first_steps(learner, job, device, batches, begun_at, scratch, counts.first)
            else:
                changes_s[px] = _change(learner, device, batches, begun_at, counts.change)
            paces[px] = _pace(learner, device, batches, BRIEF if job.quick else USUAL)
            if px == sizes[-1]:
                fields = _dummy_paces(learner, job, device, next(batches), counts.dummy)
                fields.update(_beside_steps(learner, job, device, feeder))
                if not job.quick:
                    learner.step(*next(batches), 1e-4)  # recorded anew, as after every evaluation
                fields.update(capture_s=learner.capture_s, loader_step_s=_loader_pace(batches, loaded.prefetch))
    step_s, step_low_s, step_high_s = paces[candidate.train_px]
    return Timing(
        startup_s=startup_s,
        warmup_s=max(0.0, first_s - counts.first * paces[sizes[0]][0]),
        step_s=step_s,
        step_low_s=step_low_s,
        step_high_s=step_high_s,
        save_s=save_s,
        num_other_processes=max(num_other_processes, device.num_other_processes()),
        cpu_taken=device.cpu_taken(),
        stage_step_s={
            px: interpolate_step_s({size: pace[0] for size, pace in paces.items()}, px) for px in stages[:-1]
        },
        stage_change_s={px: max(0.0, spent_s - counts.change * paces[px][0]) for px, spent_s in changes_s.items()},
        **fields,
    )


def _beside_steps(learner: Learner, job: ProbeJob, device: Cpu | Cuda, feeder: PrefetchLoader) -> dict[str, Any]:
    """The seconds of evaluations, by size."""
    device.update_limit()
    device.empty_cache()
    sizes = sorted({job.candidate.train_px, *job.setting.view_sizes})
    passes = dict.fromkeys(sizes, (0.0, 0.0, 0.0))
    if learner.team.is_main:
        # A size that is not measured is taken to cost what the next larger one does.
        larger = sizes[-1]
        seen = {job.candidate.train_px, larger} if job.quick else set(sizes)
        for px in reversed(sizes):
            passes[px] = _evaluation(learner, job, feeder, px) if px in seen else passes[larger]
            larger = px
    learner.release()  # as in a trial, the other processes wait at the next step
    device.update_limit()
    device.empty_cache()
    return {
        "eval_first_s": {px: first_s for px, (first_s, _, _) in passes.items()},
        "eval_image_s": {px: image_s for px, (_, image_s, _) in passes.items()},
        "eval_device_s": {px: device_s for px, (_, _, device_s) in passes.items()},
    }


def _dummy_paces(learner: Learner, job: ProbeJob, device: Cpu | Cuda, ready: Batch, steps: int) -> dict[str, Any]:
    """The pace with a batch that lies ready, and if asked the images/s of smaller batches."""
    dummy_s = _dummy_pace(learner, device, ready, steps)
    rates = {job.batch: job.batch / dummy_s}
    for batch in batches_to_compare(job.batch) if job.rates else ():
        rates[batch] = batch / _dummy_pace(learner, device, _prepared(learner, job, device, batch))
    if len(rates) > 1:
        learner.step(*ready, 1e-4)  # back at the batch of the trial
    return {"dummy_step_s": dummy_s, "rates": rates if job.rates else {}}


def _first_steps(
    learner: Learner,
    job: ProbeJob,
    device: Cpu | Cuda,
    batches: Iterator[Batch],
    begun_at: float,
    scratch: Path,
    steps: int,
) -> tuple[float, float]:
    """The seconds of a trial's first steps, and of the checkpoint after the first one."""
    losses = [learner.step(*next(batches), 1e-4)]
    device.synchronize()
    stepped_at = time.monotonic()
    write_checkpoint(scratch / "checkpoint.pt", learner, {})
    saved_at = time.monotonic()
    for _ in range(steps - 1):
        losses.append(learner.step(*next(batches), 1e-4))
        device.limit_run_ahead()
    device.synchronize()
    first_s = stepped_at - begun_at + time.monotonic() - saved_at
    check_finite(job.candidate, losses)
    return first_s, saved_at - stepped_at


def _change(learner: Learner, device: Cpu | Cuda, batches: Iterator[Batch], begun_at: float, steps: int) -> float:
    """Seconds since ``begun_at`` that the first ``steps`` of another size took."""
    for _ in range(steps):
        learner.step(*next(batches), 1e-4)
        device.limit_run_ahead()
    device.synchronize()
    return time.monotonic() - begun_at


def _prepared(learner: Learner, job: ProbeJob, device: Cpu | Cuda, batch: int) -> Batch:
    """A batch of another size that lies ready, after the first steps at that size."""
    x, y = dummy_batch(job.candidate.train_px, batch, job.setting.classes, job.setting.seed, job.setting.canvas_px)
    ready = (x.pin_memory(), y.pin_memory()) if device.kind == "cuda" else (x, y)
    for _ in range(PREPARED):
        learner.step(*ready, 1e-4)
    return ready


def _dummy_pace(learner: Learner, device: Cpu | Cuda, ready: Batch, least: int = DUMMY_STEPS) -> float:
    """Mean seconds per step with one batch that lies ready in the host's memory: the paper's dummy loader."""
    device.synchronize()
    begun_at, steps = time.monotonic(), 0
    while learner.team.broadcast([steps < least or time.monotonic() - begun_at < DUMMY_SAMPLE_S])[0]:
        learner.step(*ready, 1e-4)
        device.limit_run_ahead()
        steps += 1
    device.synchronize()
    return (time.monotonic() - begun_at) / steps


def _loader_pace(batches: Iterator[Batch], prefetch: int) -> float:
    """Mean seconds in which the loader makes a batch while nothing else is done, after its stock is used up."""
    for _ in range(prefetch):
        next(batches)
    begun_at = time.monotonic()
    for _ in range(prefetch):
        next(batches)
    return (time.monotonic() - begun_at) / prefetch


def _pace(learner: Learner, device: Cpu | Cuda, batches: Iterator[Batch], sampling: Sampling) -> Interval:
    """Mean seconds per step, and its 95 % interval from the spread of chunks of steps."""
    marks: list[float] = []
    begun_at, mean_s, error_s, enough = time.monotonic(), 0.0, 0.0, False
    for x, y in learner.team.lockstep(batches):
        learner.step(x, y, 1e-4)
        device.limit_run_ahead()
        now = time.monotonic()
        if now - begun_at >= sampling.run_up_s:
            marks.append(now)
        if len(marks) > sampling.steps and now - marks[0] >= sampling.least_s:
            mean_s, error_s = _mean(np.diff(marks))
            enough = error_s <= sampling.steady * mean_s or now - marks[0] >= sampling.most_s
            error_s = max(error_s, sampling.error * mean_s)
        if learner.team.broadcast([enough])[0]:
            break
    return mean_s, max(mean_s - error_s, 0.5 * mean_s), mean_s + error_s


def _mean(steps_s: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean of three or more durations, and half the width of its 95 % interval."""
    means = np.array([chunk.mean() for chunk in np.array_split(steps_s, min(10, len(steps_s)))])
    return float(steps_s.mean()), 1.96 * float(means.std(ddof=1)) / math.sqrt(len(means))


def _evaluation(learner: Learner, job: ProbeJob, feeder: PrefetchLoader, px: int) -> tuple[float, float, float]:
    """An evaluation of the validation split at ``px`` with the real loader: the extra seconds of the first batch, the
    seconds per image of the others, and those of the device alone."""
    marks = [time.monotonic()]

    def on_batch() -> bool:
        marks.append(time.monotonic())
        seen, since_s = len(marks) - 1, marks[-1] - marks[0]
        return not job.quick or seen < BRIEF_BATCHES or (seen < BRIEF_MOST and since_s < BRIEF_EVALUATION_S)

    size, n = eval_batch(job.batch // job.accum_steps), len(feeder.pack.indices("val"))
    views = [View(px=px, flip=False)]
    split_logits(learner, feeder, "val", views, frame=Frame.of(job.setting.recipe), batch=size, on_batch=on_batch)
    whole_s, device_s = marks[-1] - marks[0], ms_per_image(learner, views[0], size, eager=False) / 1e3
    if len(marks) < 3:
        return 0.0, whole_s / n, device_s
    # All batches have the same size: the last one is padded.
    first_s, batch_s = first_and_pace(marks, Stream.prefetch)
    return first_s, batch_s / size if job.quick else (whole_s - first_s) / n, device_s
