"""One probe: the real training step at one batch size, in this fresh process, under the cap; and its timing.

The step is the one train.py takes: optimizer state and all, followed by evaluation at the largest view, as in a turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fitwithin.candidate import Candidate
from fitwithin.device import Cpu, Cuda
from fitwithin.errors import OutOfMemory, UsageError
from fitwithin.jobs import ProbeJob
from fitwithin.learner import Learner, count_correct, eval_batch
from fitwithin.loader import Batch, TrainBatches, stream
from fitwithin.pack import Pack
from fitwithin.profile import Probe, Timing
from fitwithin.train import write_checkpoint

#: Optimizer state appears in the first step and shows in the second step's peak.
UPDATES = 3

#: How long each pace is measured, and the least number of steps.
SAMPLE_S, SAMPLE_STEPS = 1.5, 6

#: More than are ever sampled.
PLENTY_OF_STEPS = 100_000

#: A probe that gives memory back and tries again is at the edge: its speed is no longer the trend's.
ALLOWED_RETRIES = 0


def probe(job: ProbeJob, device: Cpu | Cuda, pack: Pack, asked_at: float, scratch: Path) -> Probe:
    """Run the real step at ``job.batch``; what it says of memory and, if asked, of time.

    ``asked_at`` is the instant the process was asked for, ``scratch`` a folder for a checkpoint that is timed.
    """
    started_at = time.monotonic()
    learner: Learner | None = None
    timing: Timing | None = None
    points: tuple[tuple[int, int], ...] = ()
    reason, fatal = "", False
    try:
        with device.guard():
            learner = Learner(job.setting, job.candidate, device)
            startup_s = time.monotonic() - asked_at
            first_s = _steps(learner, job, device, job.batch)
            if job.timed:
                timing = _time(learner, job, device, pack, startup_s=startup_s, first_s=first_s, scratch=scratch)
    except OutOfMemory as error:
        reason = str(error)
    except UsageError as error:
        reason, fatal = str(error), True
    peak_bytes = device.peak_bytes()
    retries = device.retries()
    if not reason and peak_bytes > job.setting.memory_bytes:
        reason = f"the peak was {peak_bytes - job.setting.memory_bytes} bytes above the cap"
    if not reason and retries > ALLOWED_RETRIES:
        reason = f"the allocator gave memory back and tried again {retries} times"
    if not reason and job.scout and learner is not None:
        points = _scout(learner, job, device)
    return Probe(
        batch=job.batch,
        passed=not reason,
        peak_bytes=peak_bytes,
        reason=reason,
        fatal=fatal,
        parameters=learner.parameters if learner else 0,
        wall_s=time.monotonic() - started_at,
        timing=timing if not reason else None,
        points=points,
        usable_bytes=device.usable_bytes(),
        outside_bytes=device.outside_bytes(),
    )


#: Bytes per parameter that stay from step to step: float32 weights and AdamW's two moments.
KEPT_BYTES = 12


def _scout(learner: Learner, job: ProbeJob, device: Cpu | Cuda) -> tuple[tuple[int, int], ...]:
    """Steps at about half of the largest batch that seems to fit: ``((batch, peak),)``, or nothing if they did not."""
    peak_bytes, usable = device.peak_bytes(), device.usable_bytes()
    image_bytes = (peak_bytes - device.outside_bytes() - KEPT_BYTES * learner.parameters) / job.batch
    room = int((usable - peak_bytes) / (2 * max(image_bytes, 1.0)))
    batch = min(job.batch + room, job.limit)
    if batch < 2 * job.batch:
        return ()
    before = device.retries()
    try:
        with device.guard():
            _steps(learner, job, device, batch)
    except OutOfMemory:
        return ()
    return ((batch, device.peak_bytes()),) if device.retries() == before else ()


def _dummy(job: ProbeJob, px: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels and labels: the paper's dummy loader."""
    rng = np.random.default_rng(job.setting.seed)
    x = torch.from_numpy(rng.integers(0, 256, (batch, px, px, 3), dtype=np.uint8))
    y = torch.from_numpy(rng.integers(0, job.setting.classes, batch))
    return x, y


def _steps(learner: Learner, job: ProbeJob, device: Cpu | Cuda, batch: int) -> list[float]:
    """A few updates, an evaluation pass at every size, one more update; seconds of each update."""
    x, y = _dummy(job, job.candidate.train_px, batch)
    taken = [_timed_step(learner, x, y, device) for _ in range(UPDATES)]
    device.settle()
    device.empty_cache()
    size = eval_batch(batch)
    for px in sorted({job.candidate.train_px, *job.setting.view_sizes}):
        learner.logits(_dummy(job, px, size)[0], flip=True)
    device.settle()
    device.empty_cache()
    taken.append(_timed_step(learner, x, y, device))
    return taken


def _timed_step(learner: Learner, x: torch.Tensor, y: torch.Tensor, device: Cpu | Cuda) -> float:
    begun_at = time.monotonic()
    learner.step(x, y, 1e-4)
    device.synchronize()
    return time.monotonic() - begun_at


def _time(
    learner: Learner,
    job: ProbeJob,
    device: Cpu | Cuda,
    pack: Pack,
    *,
    startup_s: float,
    first_s: list[float],
    scratch: Path,
) -> Timing:
    setting, candidate = job.setting, job.candidate
    dummy = _dummy_pace(learner, job, device)
    source = TrainBatches(
        pack,
        setting.recipe,
        px=candidate.train_px,
        batch=job.batch,
        seed=setting.seed,
        first_step=0,
        steps=PLENTY_OF_STEPS,
    )
    with stream(source, setting.workers, device.kind) as loaded:
        batches = iter(loaded)
        # The loader starts with batches made ahead: only what follows shows its pace.
        for _ in range(loaded.ahead + 2):
            learner.step(*next(batches), 1e-4)
        real = _pace(learner, device, batches)
    device.empty_cache()
    images, firsts = {}, []
    for px in sorted({candidate.train_px, *setting.view_sizes}):
        images[px], first = _evaluation_pace(learner, job, device, pack, px)
        firsts.append(first)
    device.empty_cache()
    begun_at = time.monotonic()
    write_checkpoint(scratch / "checkpoint.pt", learner, {})
    return Timing(
        startup_s=startup_s,
        warmup_s=max(0.0, sum(first_s) - len(first_s) * dummy[0]),
        dummy_step_s=dummy[0],
        step_s=real[0],
        step_low_s=real[1],
        step_high_s=real[2],
        eval_image_s=images,
        eval_first_s=max(firsts),
        save_s=time.monotonic() - begun_at,
    )


def _dummy_pace(learner: Learner, job: ProbeJob, device: Cpu | Cuda) -> tuple[float, float, float]:
    """The pace with one batch that is on the device already; the batch is gone when this returns."""
    x, y = _dummy(job, job.candidate.train_px, job.batch)
    return _pace(learner, device, repeat((x.to(device.torch_device), y.to(device.torch_device))))


def _pace(learner: Learner, device: Cpu | Cuda, batches: Iterable[Batch]) -> tuple[float, float, float]:
    """Mean seconds per step over SAMPLE_S, and its 95 % interval from the spread of chunks of steps."""
    device.synchronize()
    marks = [time.monotonic()]
    for x, y in batches:
        learner.step(x, y, 1e-4)
        device.throttle()
        marks.append(time.monotonic())
        if len(marks) > SAMPLE_STEPS and marks[-1] - marks[0] >= SAMPLE_S:
            break
    device.synchronize()
    steps = len(marks) - 1
    mean = (time.monotonic() - marks[0]) / steps
    chunks = np.array_split(np.diff(marks), min(10, steps))
    means = np.array([chunk.mean() for chunk in chunks])
    error = 1.96 * float(means.std(ddof=1)) / np.sqrt(len(means)) if len(means) > 1 else 0.05 * mean
    return mean, max(mean - error, 0.5 * mean), mean + error


def _evaluation_pace(learner: Learner, job: ProbeJob, device: Cpu | Cuda, pack: Pack, px: int) -> tuple[float, float]:
    """Seconds per image of evaluation at ``px`` with the real loader, and the extra cost of beginning one."""
    size = eval_batch(job.batch)
    n = len(pack.indices("val"))

    def once() -> float:
        begun_at = time.monotonic()
        count_correct(
            learner, pack, "val", px=px, crop=job.setting.recipe.crop, batch=size, workers=job.setting.workers
        )
        device.synchronize()
        return time.monotonic() - begun_at

    first_s = once()
    again_s = [once()] if first_s < 2 * SAMPLE_S else []
    whole_s = median([*again_s] or [first_s])
    return whole_s / n, max(0.0, first_s - whole_s)


def candidate_scratch(candidate: Candidate, folder: Path) -> Path:
    """A folder of its own for a candidate's throw-away files."""
    path = folder / candidate.name
    path.mkdir(parents=True, exist_ok=True)
    return path
