"""One probe: the real training step at one batch size, in this fresh process, under the cap.

As in a trial, the step has its optimizer state, and an evaluation at the largest view follows.
"""

from __future__ import annotations

import time
from pathlib import Path

from fitwithin.data.batches import dummy_batch
from fitwithin.data.prefetch import PrefetchLoader
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import MIN_RATIO, SCOUTED, ProbeJob
from fitwithin.engine.results import Probe, Timing
from fitwithin.errors import CaptureError, DeviceFull, OutOfMemory, UsageError
from fitwithin.profiling.timing import measure
from fitwithin.training.distributed import SINGLE_PROCESS, ProcessGroup
from fitwithin.training.evaluation import eval_batch
from fitwithin.training.learner import Learner, check_finite

#: The optimizer state appears in the first step and shows in the second step's peak. A recorded step has the same peak
#: every time, and the second step (or pass of an evaluation) is the first that is recorded.
UPDATES, RECORDED_UPDATES = 3, 1
PASSES, RECORDED_PASSES = 1, 2

#: Bytes per parameter that stay from step to step: float32 weights and AdamW's two moments.
BYTES_PER_PARAMETER = 12


def probe(
    job: ProbeJob,
    device: Cpu | Cuda,
    feeder: PrefetchLoader,
    requested_at: float,
    team: ProcessGroup = SINGLE_PROCESS,
) -> Probe:
    """Run the real step at ``job.batch`` and measure its memory and, if asked, its time.

    ``requested_at`` is the instant the process was asked for. All processes of a ``team`` take these steps. (A timed
    process has :func:`~fitwithin.profiling.gpu_lock.timing_lock`.)
    """
    started_at = time.monotonic()
    learner: Learner | None = None
    timing: Timing | None = None
    scouted: tuple[tuple[int, int], ...] = ()
    reason, fatal, memory_taken_by_others, graph_capture_failed = "", False, False, False
    needed_bytes = None
    if not job.timed:
        device.record_allocations()
    try:
        with device.guard():
            learner = Learner(
                job.setting, job.candidate, device, cuda_graph=job.cuda_graph, accum_steps=job.accum_steps, team=team
            )
            startup_s = time.monotonic() - requested_at
            if job.timed:
                scratch = scratch_folder(job) / job.candidate.name
                scratch.mkdir(parents=True, exist_ok=True)
                timing = measure(learner, job, device, feeder, startup_s, scratch)
            else:
                _step_and_evaluate(learner, job, device, job.batch)
                needed_bytes = device.needed_bytes()
    except OutOfMemory as error:
        reason, memory_taken_by_others = str(error), isinstance(error, DeviceFull)
    except CaptureError as error:
        reason, graph_capture_failed = str(error), True
    except UsageError as error:
        reason, fatal = str(error), True
    peak_bytes = device.peak_bytes()
    retries = device.retries()
    if not reason and peak_bytes > job.setting.memory_bytes:
        reason = f"the peak was {peak_bytes - job.setting.memory_bytes} bytes above the cap"
    if not reason and retries:  # the batch is at the edge: its speed is not that of smaller ones
        reason = f"the allocator gave memory back or refused some {retries} times"
        memory_taken_by_others = device.memory_taken_by_others()
    if not reason and job.scout and learner is not None:
        scouted = _scout(learner, job, device)
    return Probe(
        batch=job.batch,
        passed=not reason,
        peak_bytes=peak_bytes,
        reason=reason,
        fatal=fatal,
        accum_steps=job.accum_steps,
        memory_taken_by_others=memory_taken_by_others,
        graph_capture_failed=graph_capture_failed,
        parameters=learner.parameters if learner else 0,
        wall_s=time.monotonic() - started_at,
        timing=timing if not reason else None,
        scouted=scouted,
        needed_bytes=needed_bytes if not reason else None,
        usable_bytes=device.usable_bytes(),
        non_allocator_bytes=device.non_allocator_bytes(),
    )


def _scout(learner: Learner, job: ProbeJob, device: Cpu | Cuda) -> tuple[tuple[int, int], ...]:
    """Run larger batches (SCOUTED) in the same process; ``((batch, needed bytes), ...)`` of those that passed."""
    points = [(job.batch, device.needed_bytes())]
    image_bytes = (points[0][1] - device.non_allocator_bytes() - BYTES_PER_PARAMETER * learner.parameters) / job.batch
    for share in SCOUTED:
        at, needed_bytes = points[-1]
        if len(points) > 1:
            image_bytes = (needed_bytes - points[0][1]) / (at - points[0][0])
        room = (device.usable_bytes() - needed_bytes) / max(image_bytes, 1.0)
        batch = min(int(share * (at + room)), job.limit)
        if batch < MIN_RATIO * at:
            break
        before = device.retries()
        device.empty_cache()
        device.record_allocations()
        try:
            with device.guard():
                _step_and_evaluate(learner, job, device, batch)
        except OutOfMemory:
            break
        if device.retries() > before:
            break
        points.append((batch, device.needed_bytes()))
    return tuple(points[1:])


def _step_and_evaluate(learner: Learner, job: ProbeJob, device: Cpu | Cuda, batch: int) -> None:
    """Updates, an evaluation pass at the largest size, and updates again: memory that the allocator keeps counts."""
    x, y = dummy_batch(job.candidate.train_px, batch, job.setting.classes, job.setting.seed, job.setting.canvas_px)
    recorded = job.cuda_graph and device.kind == "cuda"
    updates, passes = (RECORDED_UPDATES, RECORDED_PASSES) if recorded else (UPDATES, PASSES)
    losses = [learner.step(x, y, 1e-4) for _ in range(updates)]
    device.update_limit()
    device.empty_cache()
    px = max(job.candidate.train_px, *job.setting.view_sizes)
    x_view, _ = dummy_batch(px, eval_batch(batch // job.accum_steps), job.setting.classes, job.setting.seed)
    for _ in range(passes):
        learner.logits(x_view, flip=True)
    device.update_limit()
    device.empty_cache()
    losses += [learner.step(x, y, 1e-4) for _ in range(updates)]
    device.update_limit()  # a recorded step takes memory outside the allocator
    check_finite(job.candidate, losses)


def scratch_folder(job: ProbeJob) -> Path:
    """The folder of temporary files and locks, shared by all runs with this cache."""
    return Path(job.setting.pack).parent.parent / "scratch"
