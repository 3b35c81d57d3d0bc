"""A delivered ensemble at work: probabilities for pictures.

Shape suffixes: N images, K classes, V views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from fitwithin.data.batches import centre_box, resize
from fitwithin.data.decode import UNREADABLE
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
        self._net, self.card = models.load(folder, self._device)
        self._normalise = models.Normalise(self.card.mean, self.card.std, self._device, torch.contiguous_format)

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

    def _crops(self, source: Source) -> dict[int, Uint8s]:
        """The image's pixels at each size of the views, [H, W, 3]. The image itself is let go."""
        sizes = sorted({view.px for view in self.ensemble.views})
        # A JPEG may be decoded at a fraction that leaves twice the pixels of the largest view's crop.
        pixels = np.asarray(source.read(math.ceil(2 * sizes[-1] / self.card.crop)))
        box = centre_box(pixels.shape[0], pixels.shape[1], self.card.crop)
        return {px: resize(pixels, box, np.empty((px, px, 3), np.uint8)) for px in sizes}

    def predict(self, sources: Sequence[Source]) -> Iterator[tuple[Source, Floats | None, str]]:
        """For each picture: its probabilities [K], or None and the reason why it cannot be read.

        What is held at a time are the crops of a batch, and one whole picture.
        """
        size = max(1, self.ensemble.batch)
        for group in (sources[i : i + size] for i in range(0, len(sources), size)):
            found: list[dict[int, Uint8s] | str] = []
            for source in group:
                try:
                    found.append(self._crops(source))
                except MemoryError:
                    found.append("there is not enough memory to read it")
                except UNREADABLE as error:
                    found.append(str(error) or type(error).__name__)
            crops = [each for each in found if not isinstance(each, str)]
            stacked = {px: np.stack([each[px] for each in crops]) for px in crops[0]} if crops else {}
            rows = iter(self.probabilities(stacked)) if crops else iter(())
            for source, each in zip(group, found, strict=True):
                yield (source, None, each) if isinstance(each, str) else (source, next(rows), "")
