"""Packed images to batches: random crops and flips for training, centre crops for evaluation, in threads, ahead of use.

Shape suffixes: B batch, H W pixels (bytes lie as B H W 3 until the device permutes them).

Every random draw is a function of (seed, epoch, position), so that batch ``i`` is the same however many threads make
it, and whether a run was interrupted before it or not.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fitwithin.pack import Pack
from fitwithin.recipe import Recipe

#: Batches made ahead of their use.
AHEAD = 3

#: RandomResizedCrop's tries before it falls back to a centre crop (torchvision).
TRIES = 10

Ints = npt.NDArray[np.int64]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Crops:
    """One epoch's draws: the order of images; for each position its crop box (left, top, right, bottom) and flip."""

    order: Ints
    boxes: npt.NDArray[np.float32]
    flips: npt.NDArray[np.bool_]


def draw(heights: Ints, widths: Ints, recipe: Recipe, *, seed: int, epoch: int) -> Crops:
    """The draws of an epoch over images of these sizes: torchvision's RandomResizedCrop and a flip, for all at once."""
    rng = np.random.default_rng((seed, epoch))
    n = len(heights)
    order = rng.permutation(n).astype(np.int64)
    high, wide = heights[order, None].astype(np.float64), widths[order, None].astype(np.float64)
    area = high * wide * rng.uniform(*recipe.crop_scale, size=(n, TRIES))
    ratio = np.exp(rng.uniform(math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1]), size=(n, TRIES)))
    crop_w, crop_h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits: npt.NDArray[np.bool_] = np.asarray((crop_w >= 1) & (crop_h >= 1) & (crop_w <= wide) & (crop_h <= high))
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
    boxes = np.concatenate([left, top, left + crop_w, top + crop_h], axis=1).astype(np.float32)
    return Crops(order=order, boxes=boxes, flips=rng.random(n) < recipe.flip)


def resize(image: npt.NDArray[np.uint8], box: tuple[float, float, float, float], px: int) -> npt.NDArray[np.uint8]:
    """The part of ``image`` [H, W, 3] within ``box`` at ``px`` x ``px``, antialiased bilinear."""
    # Only the rows and columns inside the box are copied out of the memory map.
    left, top = int(box[0]), int(box[1])
    right, bottom = int(np.ceil(box[2])), int(np.ceil(box[3]))
    part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return np.asarray(part.resize((px, px), Image.Resampling.BILINEAR, box=inner, reducing_gap=2.0))


def centre_box(height: int, width: int, crop: float) -> tuple[float, float, float, float]:
    """The centre square with ``crop`` of the shorter side."""
    side = min(height, width) * crop
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


class _Ahead(ABC):
    """Batches made by a thread pool, AHEAD of them in flight, handed out in order."""

    def __init__(self, count: int, workers: int) -> None:
        self._count = count
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        self._warm()
        self._flight: deque[tuple[list[Future[None]], Batch]] = deque()
        self._next = 0

    def _warm(self) -> None:
        """Start every thread now: under a CPU's memory limit none may start later."""
        gate = threading.Barrier(self._workers + 1)
        for _ in range(self._workers):
            self._pool.submit(gate.wait)
        gate.wait()

    @abstractmethod
    def _start(self, number: int) -> tuple[list[Future[None]], Batch]:
        """Put the work of batch ``number`` into the pool."""

    def __iter__(self) -> Iterator[Batch]:
        while self._next < self._count or self._flight:
            while self._next < self._count and len(self._flight) < AHEAD:
                self._flight.append(self._start(self._next))
                self._next += 1
            futures, batch = self._flight.popleft()
            for future in futures:
                future.result()
            yield batch

    def close(self) -> None:
        """Let the threads end; unfinished batches are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _split(self, size: int) -> list[range]:
        """Positions 0..size in one piece per worker."""
        edges = np.linspace(0, size, self._workers + 1).astype(int)
        return [range(a, b) for a, b in pairwise(edges.tolist()) if b > a]


class TrainStream(_Ahead):
    """Training batches ``first_step`` to ``steps``, uint8 [B, H, W, 3] and labels [B].

    Images come in a new random order every epoch; a batch may span two epochs, so that no image is dropped.
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
        workers: int,
        pin: bool,
    ) -> None:
        super().__init__(max(0, steps - first_step), workers)
        self._pack, self._recipe, self._px, self._size = pack, recipe, px, batch
        self._seed, self._first, self._pin = seed, first_step, pin
        self._indices = pack.indices("train")
        self._heights = np.asarray(pack.heights[self._indices], dtype=np.int64)
        self._widths = np.asarray(pack.widths[self._indices], dtype=np.int64)
        self._epochs: dict[int, Crops] = {}

    def _epoch(self, epoch: int) -> Crops:
        if epoch not in self._epochs:
            self._epochs = {e: crops for e, crops in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = draw(self._heights, self._widths, self._recipe, seed=self._seed, epoch=epoch)
        return self._epochs[epoch]

    def _start(self, number: int) -> tuple[list[Future[None]], Batch]:
        n = len(self._indices)
        positions = (self._first + number) * self._size + np.arange(self._size)
        picks = [(self._epoch(int(p) // n), int(p) % n) for p in positions]
        x = torch.empty((self._size, self._px, self._px, 3), dtype=torch.uint8, pin_memory=self._pin)
        chosen = self._indices[[crops.order[at] for crops, at in picks]]
        y = torch.from_numpy(self._pack.labels[chosen].astype(np.int64))
        out = x.numpy()

        def fill(part: range) -> None:
            for i in part:
                crops, at = picks[i]
                pixels = resize(self._pack.image(int(chosen[i])), tuple(crops.boxes[at].tolist()), self._px)
                out[i] = pixels[:, ::-1] if crops.flips[at] else pixels

        futures = [self._pool.submit(fill, part) for part in self._split(self._size)]
        return futures, (x, y.pin_memory() if self._pin else y)


class EvalStream(_Ahead):
    """The images of a split in stored order, centre crops; the last batch is filled up with black.

    Every batch has the same shape: a new one costs seconds on its first use on a GPU.
    """

    def __init__(self, pack: Pack, split: str, *, crop: float, px: int, batch: int, workers: int, pin: bool) -> None:
        self.indices = pack.indices(split)
        super().__init__(-(-len(self.indices) // batch), workers)
        self._pack, self._crop, self._px, self._size, self._pin = pack, crop, px, batch, pin

    def _start(self, number: int) -> tuple[list[Future[None]], Batch]:
        chosen = self.indices[number * self._size : (number + 1) * self._size]
        x = torch.empty((self._size, self._px, self._px, 3), dtype=torch.uint8, pin_memory=self._pin)
        y = torch.from_numpy(self._pack.labels[chosen].astype(np.int64))
        out = x.numpy()

        def fill(part: range) -> None:
            for i in part:
                if i < len(chosen):
                    image = self._pack.image(int(chosen[i]))
                    out[i] = resize(image, centre_box(image.shape[0], image.shape[1], self._crop), self._px)
                else:
                    out[i] = 0

        futures = [self._pool.submit(fill, part) for part in self._split(self._size)]
        return futures, (x, y)
