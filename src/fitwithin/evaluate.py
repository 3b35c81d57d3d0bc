"""Logits of a saved model under all views, written to disk, and what each view costs per image."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fitwithin import model as models
from fitwithin.assemble import logits_path
from fitwithin.costs import VIEW_PASSES, VIEW_S
from fitwithin.cuda import Cuda
from fitwithin.device import Cpu
from fitwithin.ensemble import Floats, View
from fitwithin.feeder import Feeder
from fitwithin.jobs import EVALUATED, Evaluated, EvaluateJob, Progress, read_evaluated
from fitwithin.learner import Learner, eval_batch, split_logits


def evaluate(job: EvaluateJob, device: Cpu | Cuda, feeder: Feeder, emit: Callable[[Progress], None]) -> Evaluated:
    """Write the logits of every split and view, split by split and size by size, while time lasts; time each view.

    How far it got is written after every size: nothing of that is lost with the process.
    """
    folder = Path(job.folder)
    learner = Learner(job.setting, job.candidate, device)
    state, _ = models.load(folder, device.torch_device)
    learner.net.load_state_dict(state.state_dict())
    del state
    size = eval_batch(job.batch)
    sizes = [
        (split, px, list(views)) for split in job.splits for px, views in groupby(sorted(job.views), key=lambda v: v.px)
    ]
    batches = {split: -(-len(feeder.pack.indices(split)) // size) for split in job.splits}
    total = sum(batches[split] for split, _, _ in sizes)
    there = read_evaluated(folder / EVALUATED)
    found = there or Evaluated(done=(), ms_per_image={}, batch=size, peak_bytes=0)
    seen, seen_at = 0, 0.0

    def go_on() -> bool:
        """Whether this batch was the last one of its size, or the next, if it takes as long, is done in time."""
        nonlocal seen, seen_at
        now = time.monotonic()
        seen, batch_s, seen_at = seen + 1, now - seen_at, now
        emit(Progress(step=seen, total=total, text=f"{split} split", facts={"peak_bytes": device.peak_bytes()}))
        return seen == ends_after or now + batch_s < job.until_at

    ends_after = 0
    for split, _, views in sizes:
        ends_after += batches[split]
        if all((split, view.name) in found.done for view in views):
            seen = ends_after
            continue
        seen_at = time.monotonic()
        logits = split_logits(
            learner,
            feeder,
            split,
            views,
            crop=job.setting.recipe.crop,
            batch=size,
            on_batch=go_on,
            until_at=job.until_at,
        )
        if logits is None:
            break
        for view, rows in logits.items():
            models.write_atomically(logits_path(folder, split, view), lambda path, rows=rows: _save(path, rows))
        costs = {v.name: _ms_per_image(learner, v, size) for v in views if v.name not in found.ms_per_image}
        found = replace(
            found,
            done=(*found.done, *((split, view.name) for view in logits)),
            ms_per_image={**found.ms_per_image, **costs},
            peak_bytes=max(found.peak_bytes, device.peak_bytes()),
        )
        text = json.dumps(asdict(found), allow_nan=False)
        models.write_atomically(folder / EVALUATED, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        device.empty_cache()
    return replace(found, peak_bytes=max(found.peak_bytes, device.peak_bytes()))


def _save(path: Path, rows: Floats) -> None:
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def _ms_per_image(learner: Learner, view: View, batch: int) -> float:
    """Median milliseconds per image of one forward pass of ``batch`` images that are on the device already."""
    x_bhwc = torch.zeros((batch, view.px, view.px, 3), dtype=torch.uint8, device=learner.device.torch_device)
    taken: list[float] = []
    while len(taken) < VIEW_PASSES and sum(taken) < VIEW_S:
        learner.device.synchronize()
        begun_at = time.monotonic()
        learner.logits(x_bhwc, flip=view.flip)
        learner.device.synchronize()
        taken.append(time.monotonic() - begun_at)
    return 1e3 * median(taken) / batch
