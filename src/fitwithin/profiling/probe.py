"""One probe: the real training step at one batch size, in this fresh process, under the cap.

The step is that of training: optimizer state and all, followed by evaluation at the largest view, as in a trial.
"""

from __future__ import annotations

import time
from pathlib import Path

from fitwithin.candidate import Candidate
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

#: Optimizer state appears in the first step and shows in the second step's peak. A recorded step has the same peak
#: every time, and the second is the first that is recorded. So it is with evaluation's passes.
UPDATES, RECORDED_UPDATES = 3, 1
PASSES, RECORDED_PASSES = 1, 2

#: A probe in which the allocator gives memory back, or refuses some, is at the edge: its speed is not the trend's.
ALLOWED_RETRIES = 0


def probe(
    job: ProbeJob,
    device: Cpu | Cuda,
    feeder: PrefetchLoader,
    requested_at: float,
    scratch: Path,
    team: ProcessGroup = SINGLE_PROCESS,
) -> Probe:
    """Run the real step at ``job.batch``; what it says of memory and, if asked, of time.

    ``requested_at`` is the instant the process was asked for, ``scratch`` a folder for a checkpoint that is timed. All
    of a ``team`` take these steps. (A timed process has :func:`~fitwithin.profiling.gpu_lock.timing_lock`.)
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
    if not reason and retries > ALLOWED_RETRIES:
        reason, memory_taken_by_others = (
            f"the allocator gave memory back or refused some {retries} times",
            device.memory_taken_by_others(),
        )
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


#: Bytes per parameter that stay from step to step: float32 weights and AdamW's two moments.
BYTES_PER_PARAMETER = 12


def _scout(learner: Learner, job: ProbeJob, device: Cpu | Cuda) -> tuple[tuple[int, int], ...]:
    """Two larger batches in the same process, as ``((batch, needed bytes), ...)``; what did not pass is left out.

    Where they lie: :data:`fitwithin.engine.jobs.SCOUTED`.
    """
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
    """Updates, an evaluation pass at the largest size, and updates again; on CUDA those are recorded ones.

    What the allocator keeps from evaluation and from one update decides what the next ones need.
    """
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
    device.update_limit()  # a recorded step takes memory outside the allocator, which later probes keep free
    check_finite(job.candidate, losses)


def scratch_folder(job: ProbeJob) -> Path:
    """Where the probes of all runs with this cache have their throw-away files, and their locks."""
    return Path(job.setting.pack).parent.parent / "scratch"


def candidate_scratch(candidate: Candidate, folder: Path) -> Path:
    """A folder of its own for a candidate's throw-away files."""
    path = folder / candidate.name
    path.mkdir(parents=True, exist_ok=True)
    return path
