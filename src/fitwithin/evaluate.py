"""Logits of a saved model under all views, written to disk, and what each view costs per image."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fitwithin import model as models
from fitwithin.assemble import logits_path
from fitwithin.cuda import Cuda
from fitwithin.device import Cpu
from fitwithin.ensemble import Floats, View
from fitwithin.feeder import Feeder
from fitwithin.jobs import Evaluated, EvaluateJob, Progress
from fitwithin.learner import Learner, eval_batch, split_logits

#: Forward passes timed per view.
REPEATS = 5


def evaluate(job: EvaluateJob, device: Cpu | Cuda, feeder: Feeder, emit: Callable[[Progress], None]) -> Evaluated:
    """Write the logits of every split and view, split by split, while time lasts; then time each view."""
    folder = Path(job.folder)
    learner = Learner(job.setting, job.candidate, device)
    state, _ = models.load(folder, device.torch_device)
    learner.net.load_state_dict(state.state_dict())
    del state
    size = eval_batch(job.batch)
    sizes = [
        (split, px, list(views)) for split in job.splits for px, views in groupby(sorted(job.views), key=lambda v: v.px)
    ]
    total = sum(-(-len(feeder.pack.indices(split)) // size) for split, _, _ in sizes)
    seen = 0
    done: list[tuple[str, str]] = []

    def go_on() -> bool:
        nonlocal seen
        seen += 1
        emit(Progress(step=seen, total=total, text=f"{split} split", facts={"peak_bytes": device.peak_bytes()}))
        return time.monotonic() < job.until_at

    costs: dict[str, float] = {}
    for split, _, views in sizes:
        found = split_logits(
            learner,
            feeder,
            split,
            views,
            crop=job.setting.recipe.crop,
            batch=size,
            on_batch=go_on,
            until_at=job.until_at,
        )
        if found is None:
            break
        for view, logits in found.items():
            models.write_atomically(logits_path(folder, split, view), lambda path, rows=logits: _save(path, rows))
            done.append((split, view.name))
            if view.name not in costs:
                costs[view.name] = _ms_per_image(learner, view, size)
        device.empty_cache()
    return Evaluated(done=tuple(done), ms_per_image=costs, batch=size, peak_bytes=device.peak_bytes())


def _save(path: Path, rows: Floats) -> None:
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def _ms_per_image(learner: Learner, view: View, batch: int) -> float:
    """Median milliseconds per image of one forward pass of ``batch`` images that are on the device already."""
    x_bhwc = torch.zeros((batch, view.px, view.px, 3), dtype=torch.uint8, device=learner.device.torch_device)
    taken = []
    for _ in range(REPEATS):
        learner.device.synchronize()
        begun_at = time.monotonic()
        learner.logits(x_bhwc, flip=view.flip)
        learner.device.synchronize()
        taken.append((time.monotonic() - begun_at) / batch * 1e3)
    return median(taken)
