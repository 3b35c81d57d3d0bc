"""A delivered ensemble at work: probabilities for pictures.

Shape suffixes: N images, K classes, V views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from fitwithin.candidate import View
from fitwithin.data.crew import Done
from fitwithin.data.decode_pool import CRASHED
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu, open_device
from fitwithin.engine.results import NOVELTY
from fitwithin.inference.ensemble import Ensemble
from fitwithin.inference.predictions import Answer
from fitwithin.inference.sources import Source
from fitwithin.machine import DeviceName
from fitwithin.training import model as models

Uint8s = npt.NDArray[np.uint8]


class _Net:
    """A member of the ensemble on a device, with what it takes pictures by."""

    def __init__(self, folder: Path, device: Cpu | Cuda) -> None:
        net, self.card = models.load(folder, device.torch_device)
        # As in the evaluation: on a CPU pixel by pixel, which takes two thirds of the time (regnety_002, 2 cores).
        memory_format = torch.channels_last if self.card.layout == "channels_last" else device.memory_format
        self.net = net.to(memory_format=memory_format)
        self.normalise = models.Normalise(self.card.mean, self.card.std, device.torch_device, memory_format)
        self.amp_dtype = models.amp_dtype(self.card.precision, device.amp_dtype)


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
        self._device, self._kind = opened.torch_device, opened.kind
        #: By member.
        self._nets = {each: _Net(ensemble.folder_of(each, folder), opened) for each in ensemble.joined}
        self.card = self._nets[0].card
        #: The view that shows how unlike the training images a picture is, and their features [M, D].
        self._novelty_view = next((view for view in sorted(ensemble.views) if self._shows_novelty(view)), None)
        self._known_MD = None
        if self._novelty_view is not None:
            self._known_MD = load_file(folder / NOVELTY, device=str(self._device))["features"].float()

    def _shows_novelty(self, view: View) -> bool:
        return bool(self.ensemble.novelty) and not view.member and view.px == self.card.train_px

    def answers(self, pixels: Mapping[int, Uint8s | torch.Tensor]) -> list[Answer]:
        """The ensemble's answers for pixels [N, H, W, 3] by the size of the views."""
        logits, last = {}, models.LastFeatures(self._nets[0].net)
        x_bhwc = {px: torch.as_tensor(each) for px, each in pixels.items()}
        novelty: list[float] | None = None
        normal: dict[tuple[int, int], torch.Tensor] = {}
        for view in dict.fromkeys(self.ensemble.views):
            net, key = self._nets[view.member], (view.member, view.px)
            amp = torch.autocast(self._kind, dtype=net.amp_dtype, enabled=net.amp_dtype is not None)
            if key not in normal:
                normal[key] = net.normalise(net.normalise.floats(x_bhwc[view.px]))
            x_bchw = normal[key]
            with torch.inference_mode(), amp, last if view == self._novelty_view else nullcontext():
                out = net.net(x_bchw.flip(3) if view.flip else x_bchw)
            logits[view] = np.asarray(out.float().cpu().numpy(), dtype=np.float32)
        if self._known_MD is not None and last.seen is not None and self.ensemble.novelty:
            novelty = (models.nearest_distance(last.seen, self._known_MD) / self.ensemble.novelty).tolist()
        probabilities_NK = self.ensemble.probabilities(logits)
        return [Answer(row, novelty[place] if novelty else None) for place, row in enumerate(probabilities_NK)]

    def predict(self, read: Iterator[Done]) -> Iterator[tuple[Source, Answer | None, str]]:
        """For each picture that was read (crops.py): its answer, or None and the reason why there is none."""
        while group := list(islice(read, max(1, self.ensemble.batch))):
            crops = [done.answer for done in group if isinstance(done.answer, dict)]
            stacked = {px: np.stack([each[px] for each in crops]) for px in crops[0]} if crops else {}
            answers = iter(self.answers(stacked)) if crops else iter(())
            for done in group:
                if isinstance(done.answer, dict):
                    yield done.item, next(answers), ""
                else:
                    yield done.item, None, CRASHED if done.lost else done.answer
