"""The paces of a backbone's precisions and layouts at one small batch, in one process: cheap evidence for pruning."""

from __future__ import annotations

import time

import numpy as np
import torch

from fitwithin.candidate import Candidate
from fitwithin.cuda import Cuda
from fitwithin.device import Cpu
from fitwithin.errors import OutOfMemory
from fitwithin.jobs import Screened, ScreenJob
from fitwithin.learner import Learner
from fitwithin.loader import dummy
from fitwithin.pruning import Pace

#: The batches to compare at: the first at which every variant runs within the cap.
BATCHES = (64, 16, 4)

#: Steps until a pace is steady, how many chunks of a pace are timed, and seconds of each.
WARM, CHUNKS, CHUNK_S = 4, 5, 0.04


def screen(job: ScreenJob, device: Cpu | Cuda) -> Screened:
    """The pace of every variant; a variant that fails is left out.

    Raises:
        OutOfMemory: no batch of BATCHES fits.
        CaptureError: a step cannot be recorded as a CUDA graph.
    """
    for place, batch in enumerate(BATCHES):
        try:
            paces = {}
            for candidate in job.candidates:
                with device.guard():
                    paces[candidate.name] = _pace(job, candidate, batch, device)
                device.settle()
                device.empty_cache()
            return Screened(paces=paces)
        except OutOfMemory:
            if place == len(BATCHES) - 1:
                raise
            device.empty_cache()
    raise AssertionError("unreachable")


def _pace(job: ScreenJob, candidate: Candidate, batch: int, device: Cpu | Cuda) -> Pace:
    torch.set_float32_matmul_precision("highest")  # a variant before this one may have lowered it
    learner = Learner(job.setting, candidate, device, captured=True)
    x, y = dummy(candidate.train_px, batch, job.setting.classes, job.setting.seed, job.setting.canvas_px)
    for _ in range(WARM):
        learner.step(x, y, 1e-4)
    device.synchronize()
    begun_at = time.monotonic()
    learner.step(x, y, 1e-4)
    device.synchronize()
    steps = max(2, int(CHUNK_S / max(time.monotonic() - begun_at, 1e-4)))
    means = []
    for _ in range(CHUNKS):
        begun_at = time.monotonic()
        for _ in range(steps):
            learner.step(x, y, 1e-4)
            device.throttle()
        device.synchronize()
        means.append((time.monotonic() - begun_at) / steps)
    learner.release()
    spread_s = float(np.std(means, ddof=1)) / len(means) ** 0.5
    return Pace(batch=batch, step_s=float(np.mean(means)), error_s=1.96 * spread_s)
