"""What a square input shows of a picture that is not square: its centre, all of it squeezed, or all of it with borders.

Shape suffixes: H W pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fitwithin.recipe import Recipe

Box = tuple[int, int, int, int]  # left, top, right, bottom; it may reach beyond the picture

#: What timm calls each of recipe.FITS in a model's configuration (``crop_mode``).
CROP_MODES = {"crop": "center", "pad": "border", "squash": "squash"}

#: The colour of borders: the mean of ImageNet's images, as 8-bit RGB.
BORDER = (124, 116, 104)


class Frame(NamedTuple):
    """Which part of a picture an input shows: the centre's share ``crop`` of the sides, by one of recipe.FITS."""

    crop: float
    fit: str = "crop"

    def box(self, height: int, width: int) -> Box:
        """The part of a picture of that size; under ``pad`` it may reach beyond."""
        side = min(height, width) if self.fit == "crop" else max(height, width)
        wide, high = (width, height) if self.fit == "squash" else (side, side)
        wide, high = max(1, round(wide * self.crop)), max(1, round(high * self.crop))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high

    def __str__(self) -> str:
        return f"{self.crop} {self.fit}"

    @classmethod
    def of(cls, recipe: Recipe) -> Frame:
        """What evaluations under a recipe see."""
        return cls(recipe.crop_pct, recipe.fit)

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Frame:
        """What a model sees by its configuration, as timm writes it (``pretrained_cfg``)."""
        return cls(config["crop_pct"], next(fit for fit, mode in CROP_MODES.items() if mode == config["crop_mode"]))

    @classmethod
    def parse(cls, text: str) -> Frame:
        """The frame of that text."""
        crop, fit = text.split()
        return cls(float(crop), fit)


def elongation(heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]) -> float:
    """How many times as long as wide the median picture is, whichever way it lies; 1 without any."""
    ratios = np.maximum(heights, widths) / np.maximum(1, np.minimum(heights, widths))
    return float(np.median(ratios)) if len(ratios) else 1.0


def cut(image: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """The part of an image [H, W, 3] in a box, with borders where the box reaches beyond: a view of it, or new."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return image[top:bottom, left:right]
    out = np.empty((bottom - top, right - left, 3), np.uint8)
    out[:] = BORDER
    inside = image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    y, x = max(0, -top), max(0, -left)
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out
