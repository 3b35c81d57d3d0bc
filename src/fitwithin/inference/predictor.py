"""A delivered ensemble at work: probabilities for image files.

Shape suffixes: N images, K classes, V views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from fitwithin.data.batches import centre_box, resize
from fitwithin.data.decode import UNREADABLE, read_rgb
from fitwithin.engine.device import open_device
from fitwithin.inference.ensemble import Ensemble, average
from fitwithin.machine import DeviceName
from fitwithin.training import model as models

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats


class Predictor:
    """An ensemble loaded onto a device.

    Args:
        run: the folder of a run.
        ensemble: what it delivered.
        device: ``cpu`` or ``cuda:N``.
    """

    def __init__(self, run: Path, ensemble: Ensemble, device: DeviceName) -> None:
        self.ensemble = ensemble
        opened = open_device(device)
        self._device = opened.torch_device
        self._kind, self._dtype = opened.kind, opened.amp_dtype
        self._net, self.card = models.load(run / ensemble.folder, self._device)
        self._mean = torch.tensor(models.MEAN, device=self._device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(models.STD, device=self._device).view(1, 3, 1, 1) * 255

    def probabilities(self, images: Sequence[Image.Image]) -> Floats:
        """Mean probability over the ensemble's views, [N, K], for RGB images of any size."""
        logits = {}
        dtype = models.amp_dtype(self.card.precision, self._dtype)
        amp = torch.autocast(self._kind, dtype=dtype, enabled=dtype is not None)
        for view in self.ensemble.views:
            pixels = [self._crop(image, view.px) for image in images]
            x_bchw = torch.from_numpy(np.stack(pixels)).to(self._device).permute(0, 3, 1, 2).float()
            x_bchw = (x_bchw - self._mean) / self._std
            with torch.inference_mode(), amp:
                out = self._net(x_bchw.flip(3) if view.flip else x_bchw)
            logits[view] = np.asarray(out.float().cpu().numpy(), dtype=np.float32)
        return average(logits, self.ensemble.views)

    def _crop(self, image: Image.Image, px: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        pixels, out = np.asarray(image), np.empty((px, px, 3), np.uint8)
        return resize(pixels, centre_box(pixels.shape[0], pixels.shape[1], self.card.crop), out)

    def files(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Floats | None, str]]:
        """For each file: its probabilities [K], or None and the reason why it cannot be read."""
        size = max(1, self.ensemble.batch)
        for group in (paths[i : i + size] for i in range(0, len(paths), size)):
            images: list[Image.Image | str] = []
            for path in group:
                try:
                    images.append(read_rgb(path))
                except UNREADABLE as error:
                    images.append(f"{type(error).__name__}: {error}")
            readable = [image for image in images if isinstance(image, Image.Image)]
            rows = iter(self.probabilities(readable)) if readable else iter(())
            for path, image in zip(group, images, strict=True):
                yield (path, None, image) if isinstance(image, str) else (path, next(rows), "")
