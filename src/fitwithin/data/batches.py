"""Packed images to batches: random crops for training, centre crops for evaluation.

Shape suffixes: B batch, H W pixels (bytes lie as B H W 3 until the device permutes them), P side after resizing.

A device that resizes training images itself (training/augment.py) gets each crop as it is stored, in the top left
corner of a canvas. Its labels are rows of three: class, height and width.

Every random draw is a function of (seed, epoch, position): batch ``i`` depends neither on the number of workers nor on
interruptions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from fitwithin.data.framing import Box, Frame, cut
from fitwithin.data.pack import Pack
from fitwithin.recipe import Recipe

#: RandomResizedCrop's tries before it falls back to a centre crop (torchvision).
MAX_TRIES = 10

Ints = npt.NDArray[np.int64]
Batch = tuple[torch.Tensor, torch.Tensor]
Fill = Callable[[npt.NDArray[np.uint8], range], None]


def dummy_batch(px: int, batch: int, classes: int, seed: int, canvas_px: int | None = None) -> Batch:
    """Random pixels [B, H, W, 3] and labels [B], or on canvases labels [B, 3]: the paper's dummy loader."""
    rng = np.random.default_rng(seed)
    side = canvas_px or px
    x = torch.from_numpy(rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8))
    y = rng.integers(0, classes, batch)
    if canvas_px is not None:
        y = np.column_stack([y, rng.integers(1, side + 1, (batch, 2))])
    return x, torch.from_numpy(y)


@dataclass(frozen=True, kw_only=True)
class Crops:
    """One epoch's draws: the order of images, and for each position its crop box (left, top, right, bottom)."""

    order: Ints
    boxes: npt.NDArray[np.int32]


def balanced_order(labels: Ints, rng: np.random.Generator) -> Ints:
    """As many positions as there are, in random order, with all classes equally often (or once more): images of rare
    classes come again and again, each before any of them comes once more."""
    classes = np.unique(labels)
    shares = np.full(len(classes), len(labels) // len(classes))
    shares[rng.permutation(len(classes))[: len(labels) % len(classes)]] += 1
    parts = []
    for label, share in zip(classes, shares, strict=True):
        own = np.flatnonzero(labels == label)
        rounds = [rng.permutation(own) for _ in range(-(-int(share) // len(own)))]
        parts.append(np.concatenate([np.zeros(0, np.int64), *rounds])[:share])
    return rng.permutation(np.concatenate(parts)).astype(np.int64)


def sample_crops(
    heights: Ints, widths: Ints, recipe: Recipe, *, seed: int, epoch: int, balanced: Ints | None = None
) -> Crops:
    """The crops of an epoch over images of these sizes: torchvision's RandomResizedCrop, for all at once. With the
    labels of images to be ``balanced``, all classes come equally often."""
    rng = np.random.default_rng((seed, epoch))
    n = len(heights)
    order = rng.permutation(n).astype(np.int64) if balanced is None else balanced_order(balanced, rng)
    high, wide = heights[order, None].astype(np.float64), widths[order, None].astype(np.float64)
    own_high, own_wide = high, wide
    if recipe.fit != "crop":  # crops of the square that the whole picture makes
        high = wide = np.maximum(high, wide)
    area = high * wide * rng.uniform(*recipe.crop_scale, size=(n, MAX_TRIES))
    ratio = np.exp(rng.uniform(math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1]), size=(n, MAX_TRIES)))
    crop_w, crop_h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = np.logical_and.reduce([crop_w >= 1, crop_h >= 1, crop_w <= wide, crop_h <= high])
    first = fits.argmax(axis=1)[:, None]
    crop_w, crop_h = np.take_along_axis(crop_w, first, 1), np.take_along_axis(crop_h, first, 1)
    left = np.floor(rng.random((n, 1)) * (wide - crop_w + 1))
    top = np.floor(rng.random((n, 1)) * (high - crop_h + 1))
    # None of the tries fits in a very long image: the largest centre crop within the allowed aspect.
    none_fits = ~fits.any(axis=1)[:, None]
    low_ratio, high_ratio = recipe.crop_ratio
    centre_w = np.where(wide / high > high_ratio, np.round(high * high_ratio), wide)
    centre_h = np.where(wide / high < low_ratio, np.round(wide / low_ratio), high)
    crop_w, crop_h = np.where(none_fits, centre_w, crop_w), np.where(none_fits, centre_h, crop_h)
    left = np.where(none_fits, np.floor((wide - crop_w) / 2), left)
    top = np.where(none_fits, np.floor((high - crop_h) / 2), top)
    if recipe.fit == "pad":
        left, top = left - np.floor((wide - own_wide) / 2), top - np.floor((high - own_high) / 2)
    elif recipe.fit == "squash":
        across, down = own_wide / wide, own_high / high
        crop_w, crop_h = np.maximum(1, np.round(across * crop_w)), np.maximum(1, np.round(down * crop_h))
        left = np.minimum(np.floor(across * left), own_wide - crop_w)
        top = np.minimum(np.floor(down * top), own_high - crop_h)
    boxes = np.concatenate([left, top, left + crop_w, top + crop_h], axis=1).astype(np.int32)
    return Crops(order=order, boxes=boxes)


def resize(image: npt.NDArray[np.uint8], box: Box, out: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Resize the ``box`` of ``image`` [H, W, 3], borders included, into ``out`` [P, P, 3], bilinear and antialiased.

    PyTorch's kernel for uint8 agrees with Pillow's to 2 of 255, takes a third of the time (40 to 90 against 110 to 310
    us for crops of 160 x 180 to 220 x 250 px to 160, one core of an Intel Xeon), and frees the interpreter.
    """
    part = np.array(cut(image, box))  # out of the memory map: only what lies in the box
    # Numpy gives an axis of length 1 a stride that makes PyTorch take pixels for planes: 120 us, and 85 to write them.
    x_bchw = torch.from_numpy(part).unsqueeze(0).permute(0, 3, 1, 2)
    x_bchw = F.interpolate(x_bchw, out.shape[:2], mode="bilinear", antialias=True)
    out[:] = x_bchw[0].permute(1, 2, 0).numpy()
    return out


class Batches(ABC):
    """Batches by number: uint8 pixels [B, H, W, 3], ``px`` a side, and labels [B]; on canvases labels are [B, 3].

    A batch is a function of its number alone.
    """

    def __init__(self, pack: Pack, *, px: int, batch: int, count: int, canvases: bool = False) -> None:
        self._pack = pack
        self.px = px
        self.size = batch
        self._count = count
        self.label_shape = (batch, 3) if canvases else (batch,)

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def prepare(self, number: int) -> tuple[Ints, Fill]:
        """The labels of a batch, fewer than its positions if it is filled up; and a function that writes the pixels of
        a range of positions into an array."""


class TrainBatches(Batches):
    """Training batches from ``first_step`` on, up to step ``steps``.

    Images come in a new random order every epoch; a batch may span two epochs, so that no image is dropped. If
    ``ranks`` processes make an update, these are the ``rank``-th one's slices of it, of ``batch`` images each.

    If they are ``balanced``, all classes come equally often.

    Images are resized to ``px``. With ``canvas_px``, which is ``px`` or more, they lie on canvases of that side and are
    resized only if they are too large for it, as one in seven crops of a photograph of 4:3.
    """

    def __init__(
        self,
        pack: Pack,
        recipe: Recipe,
        *,
        px: int,
        batch: int,
        seed: int,
        first_step: int,
        steps: int,
        rank: int = 0,
        ranks: int = 1,
        canvas_px: int | None = None,
        balanced: bool = False,
    ) -> None:
        assert canvas_px is None or canvas_px >= px, "a crop resized here must have room"
        count = max(0, steps - first_step)
        super().__init__(pack, px=canvas_px or px, batch=batch, count=count, canvases=canvas_px is not None)
        self._train_px = px
        self._canvas_px = canvas_px
        self._rank = rank
        self._ranks = ranks
        self._recipe = recipe
        self._seed = seed
        self._first = first_step
        self._indices = pack.indices("train")
        self._heights = np.asarray(pack.heights[self._indices], dtype=np.int64)
        self._widths = np.asarray(pack.widths[self._indices], dtype=np.int64)
        self._balanced = pack.labels[self._indices] if balanced else None
        self._epochs: dict[int, Crops] = {}

    def _epoch(self, epoch: int) -> Crops:
        if epoch not in self._epochs:
            self._epochs = {e: crops for e, crops in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = sample_crops(
                self._heights, self._widths, self._recipe, seed=self._seed, epoch=epoch, balanced=self._balanced
            )
        return self._epochs[epoch]

    def prepare(self, number: int) -> tuple[Ints, Fill]:
        """Random crops; whoever trains on them mirrors them."""
        n = len(self._indices)
        slices = (self._first + number) * self._ranks + self._rank
        positions = slices * self.size + np.arange(self.size)
        epochs = positions // n
        drawn = [(self._epoch(int(epoch)), positions[epochs == epoch] % n) for epoch in np.unique(epochs)]
        chosen = self._indices[np.concatenate([crops.order[at] for crops, at in drawn])]
        boxes = np.concatenate([crops.boxes[at] for crops, at in drawn])
        sides = boxes[:, [3, 2]] - boxes[:, [1, 0]]
        fits = (sides <= (self._canvas_px or 0)).all(axis=1)
        sides[~fits] = self._train_px

        def fill(out: npt.NDArray[np.uint8], part: range) -> None:
            for i in part:
                left, top, right, bottom = boxes[i].tolist()
                box, image = (left, top, right, bottom), self._pack.image(int(chosen[i]))
                height, width = sides[i].tolist()
                place = out[i, :height, :width]
                if fits[i]:
                    place[:] = cut(image, box)
                else:
                    resize(image, box, place)

        labels = self._pack.labels[chosen]
        return labels if self._canvas_px is None else np.column_stack([labels, sides]), fill


class EvalBatches(Batches):
    """The images of a split in stored order, or those at the positions ``indices``, in the ``frame``; the last batch is
    filled up with black.

    Every batch has the same shape: a new one costs seconds on its first use on a GPU.
    """

    def __init__(
        self, pack: Pack, split: str = "", *, frame: Frame, px: int, batch: int, indices: Ints | None = None
    ) -> None:
        self.indices = pack.indices(split) if indices is None else indices
        super().__init__(pack, px=px, batch=batch, count=-(-len(self.indices) // batch))
        self._frame = frame

    def prepare(self, number: int) -> tuple[Ints, Fill]:
        """What the frame shows."""
        chosen = self.indices[number * self.size : (number + 1) * self.size]

        def fill(out: npt.NDArray[np.uint8], part: range) -> None:
            for i in part:
                if i < len(chosen):
                    image = self._pack.image(int(chosen[i]))
                    resize(image, self._frame.box(image.shape[0], image.shape[1]), out[i])
                else:
                    out[i] = 0

        return self._pack.labels[chosen], fill
