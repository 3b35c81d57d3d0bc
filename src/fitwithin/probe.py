"""One probe: the real training step at one batch size, in this fresh process, under the cap; and its timing.

The step is the one train.py takes: optimizer state and all, followed by evaluation at the largest view, as in a turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fitwithin.baton import Baton
from fitwithin.bracket import APART, SCOUTED
from fitwithin.candidate import Candidate
from fitwithin.choice import rated_batches
from fitwithin.cuda import Cuda
from fitwithin.device import Cpu
from fitwithin.ensemble import View
from fitwithin.errors import CaptureError, DeviceFull, OutOfMemory, UsageError
from fitwithin.feeder import Feeder
from fitwithin.jobs import ProbeJob, Setting
from fitwithin.learner import Learner, eval_batch, split_logits
from fitwithin.loader import Batch, TrainBatches
from fitwithin.profile import Probe, Timing
from fitwithin.train import write_checkpoint

#: Optimizer state appears in the first step and shows in the second step's peak. A recorded step has the same peak
#: every time, and the second is the first that is recorded.
UPDATES, RECORDED_UPDATES = 3, 1

#: A timed process begins as a turn does, with so many steps: one, a checkpoint, the recording, and some in a row.
FIRST_STEPS = 4

#: The pace with the real loader is measured after a run-up until it is known to STEADY (95 % interval over the mean),
#: within these limits in seconds, over so many steps at least. A GPU that rested takes a while to raise its clocks, and
#: lowers them again under load: within half a second resnest50d_1s4x24d ran 1.3 % faster than it goes on (H100).
RUN_UP_S, SAMPLE_S, LONGEST_S, SAMPLE_STEPS, STEADY = 0.5, 0.5, 3.0, 6, 0.003

#: The dummy pace needs less: nothing but the device is in it.
DUMMY_SAMPLE_S = 0.15

#: More than are ever sampled.
PLENTY_OF_STEPS = 100_000

#: A probe in which the allocator gives memory back, or refuses some, is at the edge: its speed is not the trend's.
ALLOWED_RETRIES = 0


def probe(
    job: ProbeJob, device: Cpu | Cuda, feeder: Feeder, asked_at: float, scratch: Path, baton: Baton | None = None
) -> Probe:
    """Run the real step at ``job.batch``; what it says of memory and, if asked, of time.

    ``asked_at`` is the instant the process was asked for, ``scratch`` a folder for a checkpoint that is timed. A timed
    process has got the ``baton`` that let it start.
    """
    started_at = time.monotonic()
    learner: Learner | None = None
    timing: Timing | None = None
    points: tuple[tuple[int, int], ...] = ()
    reason, fatal, crowded, uncapturable = "", False, False, False
    needed_bytes = None
    if not job.timed:
        device.watch()
    try:
        with device.guard():
            learner = Learner(job.setting, job.candidate, device, captured=job.captured, chunks=job.chunks)
            startup_s = time.monotonic() - asked_at
            if job.timed:
                assert baton is not None, "whoever times must have waited for it"
                baton.measure()
                timing = _time(learner, job, device, feeder, startup_s, scratch, baton)
                baton.measured()
            else:
                _step_and_evaluate(learner, job, device, job.batch)
                needed_bytes = device.needed_bytes()
    except OutOfMemory as error:
        reason, crowded = str(error), isinstance(error, DeviceFull)
    except CaptureError as error:
        reason, uncapturable = str(error), True
    except UsageError as error:
        reason, fatal = str(error), True
    peak_bytes = device.peak_bytes()
    retries = device.retries()
    if not reason and peak_bytes > job.setting.memory_bytes:
        reason = f"the peak was {peak_bytes - job.setting.memory_bytes} bytes above the cap"
    if not reason and retries > ALLOWED_RETRIES:
        reason, crowded = f"the allocator gave memory back or refused some {retries} times", device.crowded()
    if not reason and job.scout and learner is not None:
        points = _scout(learner, job, device)
    return Probe(
        batch=job.batch,
        passed=not reason,
        peak_bytes=peak_bytes,
        reason=reason,
        fatal=fatal,
        chunks=job.chunks,
        crowded=crowded,
        uncapturable=uncapturable,
        parameters=learner.parameters if learner else 0,
        wall_s=time.monotonic() - started_at,
        timing=timing if not reason else None,
        points=points,
        needed_bytes=needed_bytes if not reason else None,
        usable_bytes=device.usable_bytes(),
        outside_bytes=device.outside_bytes(),
    )


#: Bytes per parameter that stay from step to step: float32 weights and AdamW's two moments.
KEPT_BYTES = 12


def _scout(learner: Learner, job: ProbeJob, device: Cpu | Cuda) -> tuple[tuple[int, int], ...]:
    """Two larger batches in the same process, as ``((batch, needed bytes), ...)``; what did not pass is left out.

    Where they lie: :data:`fitwithin.bracket.SCOUTED`.
    """
    points = [(job.batch, device.needed_bytes())]
    image_bytes = (points[0][1] - device.outside_bytes() - KEPT_BYTES * learner.parameters) / job.batch
    for share in SCOUTED:
        at, needed_bytes = points[-1]
        if len(points) > 1:
            image_bytes = (needed_bytes - points[0][1]) / (at - points[0][0])
        room = (device.usable_bytes() - needed_bytes) / max(image_bytes, 1.0)
        batch = min(int(share * (at + room)), job.limit)
        if batch < APART * at:
            break
        before = device.retries()
        device.empty_cache()
        device.watch()
        try:
            with device.guard():
                _step_and_evaluate(learner, job, device, batch)
        except OutOfMemory:
            break
        if device.retries() > before:
            break
        points.append((batch, device.needed_bytes()))
    return tuple(points[1:])


def dummy(setting: Setting, px: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels [B, H, W, 3] and labels [B]: the paper's dummy loader."""
    rng = np.random.default_rng(setting.seed)
    x = torch.from_numpy(rng.integers(0, 256, (batch, px, px, 3), dtype=np.uint8))
    y = torch.from_numpy(rng.integers(0, setting.classes, batch))
    return x, y


def _check_finite(job: ProbeJob, losses: list[torch.Tensor]) -> None:
    """UsageError unless the losses of the very first updates are finite."""
    found = [float(loss) for loss in losses]
    wrong = [loss for loss in found if not math.isfinite(loss)]
    if wrong:  # the last one may be finite again: float16's scaler leaves the update out
        raise UsageError(
            f"{job.candidate.model} computes a loss of {wrong[0]} in {job.candidate.precision} within its first "
            f"{len(found)} updates; another precision may do"
        )


def _step_and_evaluate(learner: Learner, job: ProbeJob, device: Cpu | Cuda, batch: int) -> None:
    """Updates, an evaluation pass at the largest size, and updates again; on CUDA those are recorded ones.

    What the allocator keeps from evaluation and from one update decides what the next ones need.
    """
    x, y = dummy(job.setting, job.candidate.train_px, batch)
    updates = RECORDED_UPDATES if job.captured and device.kind == "cuda" else UPDATES
    losses = [learner.step(x, y, 1e-4) for _ in range(updates)]
    device.settle()
    device.empty_cache()
    px = max(job.candidate.train_px, *job.setting.view_sizes)
    learner.logits(dummy(job.setting, px, eval_batch(batch // job.chunks))[0], flip=True)
    device.settle()
    device.empty_cache()
    losses += [learner.step(x, y, 1e-4) for _ in range(updates)]
    device.settle()  # a recorded step takes memory outside the allocator, which later probes keep free
    _check_finite(job, losses)


def _time(
    learner: Learner, job: ProbeJob, device: Cpu | Cuda, feeder: Feeder, startup_s: float, scratch: Path, baton: Baton
) -> Timing:
    """The pace of the device, of the loader and of both together, and what happens beside steps."""
    setting, candidate = job.setting, job.candidate
    strangers = device.strangers()
    begun_at = time.monotonic()
    with feeder.stream(
        TrainBatches,
        recipe=setting.recipe,
        px=candidate.train_px,
        batch=job.batch,
        seed=setting.seed,
        first_step=0,
        steps=PLENTY_OF_STEPS,
    ) as loaded:
        batches = iter(loaded)
        first_s, save_s = _first_steps(learner, job, device, batches, begun_at, scratch)
        baton.warm()
        device.settle()
        device.empty_cache()
        sizes = sorted({candidate.train_px, *setting.view_sizes})
        passes = {px: _evaluation(learner, job, feeder, px) for px in sizes}
        device.settle()
        device.empty_cache()
        ready = next(batches)
        learner.step(*ready, 1e-4)  # recorded anew, as after every evaluation
        capture_s = learner.capture_s
        loader_step_s = _loader_pace(batches, loaded.ahead)
        step_s, step_low_s, step_high_s = _pace(learner, device, batches)
        dummy_s = _dummy_pace(learner, device, ready)  # what lies in its slot by now is another batch, as good as any
        rates = {job.batch: job.batch / dummy_s}
        for batch in rated_batches(job.batch) if job.rates else ():
            rates[batch] = batch / _dummy_pace(learner, device, _prepared(learner, job, device, batch))
    return Timing(
        startup_s=startup_s,
        warmup_s=max(0.0, first_s - FIRST_STEPS * step_s),
        dummy_step_s=dummy_s,
        step_s=step_s,
        step_low_s=step_low_s,
        step_high_s=step_high_s,
        eval_image_s={px: image_s for px, (_, image_s) in passes.items()},
        eval_first_s={px: first_s for px, (first_s, _) in passes.items()},
        save_s=save_s,
        loader_step_s=loader_step_s,
        strangers=max(strangers, device.strangers()),
        capture_s=capture_s,
        rates=rates if job.rates else {},
    )


def _first_steps(
    learner: Learner,
    job: ProbeJob,
    device: Cpu | Cuda,
    batches: Iterator[Batch],
    begun_at: float,
    scratch: Path,
) -> tuple[float, float]:
    """What a turn begins with: the seconds of its first steps, and those of the checkpoint after the very first."""
    losses = [learner.step(*next(batches), 1e-4)]
    device.synchronize()
    stepped_at = time.monotonic()
    write_checkpoint(scratch / "checkpoint.pt", learner, {})
    saved_at = time.monotonic()
    for _ in range(FIRST_STEPS - 1):
        losses.append(learner.step(*next(batches), 1e-4))
        device.throttle()
    device.synchronize()
    first_s = stepped_at - begun_at + time.monotonic() - saved_at
    _check_finite(job, losses)
    return first_s, saved_at - stepped_at


def _prepared(learner: Learner, job: ProbeJob, device: Cpu | Cuda, batch: int) -> Batch:
    """A batch of another size that lies ready, after the first steps at that size."""
    x, y = dummy(job.setting, job.candidate.train_px, batch)
    ready = (x.pin_memory(), y.pin_memory()) if device.kind == "cuda" else (x, y)
    for _ in range(UPDATES):
        learner.step(*ready, 1e-4)
    return ready


def _dummy_pace(learner: Learner, device: Cpu | Cuda, ready: Batch) -> float:
    """Mean seconds per step with one batch that lies ready in the host's memory: the paper's dummy loader."""
    device.synchronize()
    begun_at, steps = time.monotonic(), 0
    while steps < SAMPLE_STEPS or time.monotonic() - begun_at < DUMMY_SAMPLE_S:
        learner.step(*ready, 1e-4)
        device.throttle()
        steps += 1
    device.synchronize()
    return (time.monotonic() - begun_at) / steps


def _loader_pace(batches: Iterator[Batch], ahead: int) -> float:
    """Mean seconds in which the loader makes a batch while nothing else is done; it has none in stock afterwards."""
    for _ in range(ahead):
        next(batches)
    begun_at, made = time.monotonic(), 0
    while made < ahead:
        next(batches)
        made += 1
    return (time.monotonic() - begun_at) / made


def _pace(learner: Learner, device: Cpu | Cuda, batches: Iterator[Batch]) -> tuple[float, float, float]:
    """Mean seconds per step, and its 95 % interval from the spread of chunks of steps."""
    marks: list[float] = []
    begun_at = time.monotonic()
    for x, y in batches:
        learner.step(x, y, 1e-4)
        device.throttle()
        now = time.monotonic()
        if now - begun_at >= RUN_UP_S:
            marks.append(now)
        if len(marks) <= SAMPLE_STEPS or now - marks[0] < SAMPLE_S:
            continue
        mean_s, error_s = _mean(np.diff(marks))
        if error_s <= STEADY * mean_s or now - marks[0] >= LONGEST_S:
            break
    return mean_s, max(mean_s - error_s, 0.5 * mean_s), mean_s + error_s


def _mean(steps_s: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean of SAMPLE_STEPS or more durations, and half the width of its 95 % interval."""
    means = np.array([chunk.mean() for chunk in np.array_split(steps_s, min(10, len(steps_s)))])
    return float(steps_s.mean()), 1.96 * float(means.std(ddof=1)) / math.sqrt(len(means))


def _evaluation(learner: Learner, job: ProbeJob, feeder: Feeder, px: int) -> tuple[float, float]:
    """An evaluation of the validation split at ``px`` with the real loader: what the first batch costs more, seconds
    per image of the others."""
    marks = [time.monotonic()]

    def note() -> bool:
        marks.append(time.monotonic())
        return True

    size, n = eval_batch(job.batch // job.chunks), len(feeder.pack.indices("val"))
    views = [View(px=px, flip=False)]
    split_logits(learner, feeder, "val", views, crop=job.setting.recipe.crop, batch=size, on_batch=note)
    whole_s = marks[-1] - marks[0]
    if len(marks) < 3:
        return 0.0, whole_s / n
    # All batches have the same size: the last is filled up.
    batch_s = (marks[-1] - marks[1]) / (len(marks) - 2)
    first_s = max(0.0, marks[1] - marks[0] - batch_s)
    return first_s, (whole_s - first_s) / n


def scratch_folder(job: ProbeJob) -> Path:
    """Where the probes of all runs with this cache have their throw-away files, and their locks."""
    return Path(job.setting.pack).parent.parent / "scratch"


def candidate_scratch(candidate: Candidate, folder: Path) -> Path:
    """A folder of its own for a candidate's throw-away files."""
    path = folder / candidate.name
    path.mkdir(parents=True, exist_ok=True)
    return path
