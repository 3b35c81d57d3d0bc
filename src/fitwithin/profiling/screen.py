"""The paces of backbones' precisions and layouts at one small batch, in one process."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import groupby

import numpy as np
import torch

from fitwithin.candidate import Candidate
from fitwithin.data.batches import Batch, dummy_batch
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import CompareJob
from fitwithin.engine.results import CompareResult, StepTiming
from fitwithin.errors import OutOfMemory
from fitwithin.training import model as models
from fitwithin.training.learner import Learner

#: Variants are compared at the first of these batches at which all of them run within the cap.
BATCHES = (64, 16, 4)

#: The steps until a pace is steady, the number of chunks that are timed, and the seconds of each.
WARM, CHUNKS, CHUNK_S = 4, 5, 0.04

#: The same on a device that is slow: its step takes longer than a chunk, and nothing is recorded.
SLOW_WARM, SLOW_CHUNKS = 1, 2

#: The images of an untimed first step, which loads libraries.
FIRST_BATCH = 4


def screen(job: CompareJob, device: Cpu | Cuda) -> CompareResult:
    """The pace of every variant; a backbone is left out if one of its variants fails or fits at none of BATCHES.

    A ``quick`` job also leaves out variants whose kernels are built for every shape, if there is another: that takes
    10 s for each size of progressive resizing (H100, efficientnet_b0 and mobilenetv3 in channels_last).
    """
    paces: dict[str, StepTiming] = {}
    with suppress(Exception), device.guard():
        Learner(job.setting, job.candidates[0], device).step(*_batch(job, job.candidates[0], FIRST_BATCH), 1e-4)
        device.synchronize()
    for _, variants in groupby(job.candidates, key=lambda candidate: candidate.model):
        device.update_limit()
        device.empty_cache()
        with suppress(Exception):
            paces.update(_paces(job, list(variants), device))
    return CompareResult(paces=paces, peak_bytes=device.peak_bytes(), cpu_taken=device.cpu_taken())


def _paces(job: CompareJob, variants: list[Candidate], device: Cpu | Cuda) -> dict[str, StepTiming]:
    """The paces of one backbone's variants."""
    for batch in BATCHES:
        found = {}
        with suppress(OutOfMemory):
            for candidate in variants:
                with device.guard():
                    pace = _pace(job, candidate, batch, device, builds=not job.quick or len(variants) == 1)
                if pace is not None:
                    found[candidate.name] = pace
                device.update_limit()
                device.empty_cache()
            return found
        device.empty_cache()
    return {}


def _batch(job: CompareJob, candidate: Candidate, batch: int) -> Batch:
    return dummy_batch(candidate.train_px, batch, job.setting.classes, job.setting.seed, job.setting.canvas_px)


def _pace(job: CompareJob, candidate: Candidate, batch: int, device: Cpu | Cuda, *, builds: bool) -> StepTiming | None:
    """The pace of one variant; None if its kernels must be built and ``builds`` is false."""
    torch.set_float32_matmul_precision("highest")  # a variant before this one may have lowered it
    learner = Learner(job.setting, candidate, device, cuda_graph=True)
    if not builds and candidate.layout == "channels_last" and learner.amp_dtype and models.depthwise(learner.net):
        return None
    x, y = _batch(job, candidate, batch)

    def timed(steps: int) -> float:
        begun_at = time.monotonic()
        for _ in range(steps):
            learner.step(x, y, 1e-4)
            device.limit_run_ahead()
        device.synchronize()
        return (time.monotonic() - begun_at) / steps

    device.synchronize()
    warm = WARM if device.kind == "cuda" else SLOW_WARM
    warm_s = warm * timed(warm)
    once_s = timed(1)
    if device.kind != "cuda" and once_s > CHUNK_S:
        steps, chunks = 1, SLOW_CHUNKS
    else:
        steps, chunks = max(2, int(CHUNK_S / max(once_s, 1e-4))), CHUNKS
    means = [timed(steps) for _ in range(chunks)]
    learner.release()
    step_s, spread_s = float(np.mean(means)), float(np.std(means, ddof=1)) / len(means) ** 0.5
    first_s = max(0.0, warm_s - warm * step_s)
    return StepTiming(batch=batch, step_s=step_s, error_s=1.96 * spread_s, first_s=first_s)
