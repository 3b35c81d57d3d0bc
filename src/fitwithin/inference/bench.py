"""How fast a model is on this machine: the time of its passes, from pixels on the device to probabilities."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fitwithin.engine.device import open_device
from fitwithin.engine.memory import status_bytes
from fitwithin.inference.model import Model
from fitwithin.inference.predictor import Predictor
from fitwithin.machine import DeviceName

#: Passes that are not counted: they load kernels. Then so many seconds of passes, within both counts.
WARM_UP, SECONDS, LEAST_PASSES, MOST_PASSES = 3, 3.0, 10, 1000


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The passes of ``batch`` images: the median and the 99th percentile of their milliseconds, over so many."""

    batch: int
    passes: int
    p50_ms: float
    p99_ms: float
    #: The most memory so far: of PyTorch's allocator on a GPU; on a CPU what the process has grown by.
    peak_bytes: int

    @property
    def images_per_s(self) -> float:
        """Images a second, one pass after the other."""
        return 1e3 * self.batch / self.p50_ms


def measure(model: Model, device: DeviceName, batches: Iterable[int]) -> Iterator[Speed]:
    """The model's speed with each of the batches, ascending."""
    opened = open_device(device)
    before = 0 if device.is_cuda else status_bytes("VmRSS")
    predictor = Predictor(model.folder, model.ensemble, device)
    for batch in sorted(set(batches)):
        pixels = {
            view.px: torch.zeros((batch, view.px, view.px, 3), dtype=torch.uint8, device=opened.torch_device)
            for view in model.ensemble.views
        }
        taken_ms: list[float] = []
        for number in range(WARM_UP + MOST_PASSES):
            begun_at = time.perf_counter()
            predictor.answers(pixels)  # it ends with values in main memory: nothing is left to wait for
            took_ms = 1e3 * (time.perf_counter() - begun_at)
            taken_ms += [took_ms] if number >= WARM_UP else []
            if len(taken_ms) >= LEAST_PASSES and sum(taken_ms) >= 1e3 * SECONDS:
                break
        peak = torch.cuda.max_memory_allocated(device.index) if device.is_cuda else status_bytes("VmHWM") - before
        p50_ms, p99_ms = np.quantile(taken_ms, (0.5, 0.99)).tolist()
        yield Speed(batch=batch, passes=len(taken_ms), p50_ms=p50_ms, p99_ms=p99_ms, peak_bytes=int(peak))
