"""A delivered ensemble at work: probabilities for pictures.

Shape suffixes: N images, K classes, V views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from fitwithin.data.crew import Done
from fitwithin.data.decode_pool import CRASHED
from fitwithin.engine.device import open_device
from fitwithin.inference.ensemble import Ensemble
from fitwithin.inference.sources import Source
from fitwithin.machine import DeviceName
from fitwithin.training import model as models

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

Uint8s = npt.NDArray[np.uint8]


class Predictor:
    """An ensemble loaded onto a device.

    Args:
        folder: the folder of a model.
        ensemble: how it is used.
        device: ``cpu`` or ``cuda:N``.
    """

    def __init__(self, folder: Path, ensemble: Ensemble, device: DeviceName) -> None:
        self.ensemble = ensemble
        opened = open_device(device)
        self._device = opened.torch_device
        self._kind, self._dtype = opened.kind, opened.amp_dtype
        # As in the evaluation: on a CPU pixel by pixel, which takes two thirds of the time (regnety_002, 2 cores).
        memory_format = opened.memory_format
        net, self.card = models.load(folder, self._device)
        self._net = net.to(memory_format=memory_format)
        self._normalise = models.Normalise(self.card.mean, self.card.std, self._device, memory_format)

    def probabilities(self, pixels: Mapping[int, Uint8s]) -> Floats:
        """The ensemble's probabilities, [N, K], for pixels [N, H, W, 3] by the size of the views."""
        logits = {}
        dtype = models.amp_dtype(self.card.precision, self._dtype)
        amp = torch.autocast(self._kind, dtype=dtype, enabled=dtype is not None)
        for view in self.ensemble.views:
            x_bchw = self._normalise(self._normalise.floats(torch.from_numpy(pixels[view.px])))
            with torch.inference_mode(), amp:
                out = self._net(x_bchw.flip(3) if view.flip else x_bchw)
            logits[view] = np.asarray(out.float().cpu().numpy(), dtype=np.float32)
        return self.ensemble.probabilities(logits)

    def predict(self, read: Iterator[Done]) -> Iterator[tuple[Source, Floats | None, str]]:
        """For each picture that was read (crops.py): its probabilities [K], or None and the reason why there are
        none."""
        while group := list(islice(read, max(1, self.ensemble.batch))):
            crops = [done.answer for done in group if isinstance(done.answer, dict)]
            stacked = {px: np.stack([each[px] for each in crops]) for px in crops[0]} if crops else {}
            rows = iter(self.probabilities(stacked)) if crops else iter(())
            for done in group:
                if isinstance(done.answer, dict):
                    yield done.item, next(rows), ""
                else:
                    yield done.item, None, CRASHED if done.lost else done.answer
