"""The losses of a trial: they stay on the device, and their mean is fetched now and then without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu


class LossMeter:
    """Takes the loss of every step and gives means of them, at most one every ``every_s`` seconds."""

    def __init__(self, device: Cpu | Cuda, every_s: float) -> None:
        self._device = device
        self._every_s = every_s
        self._read_at = time.monotonic()
        self._unread: list[torch.Tensor] = []
        #: The step of the reading under way, and what gives the mean of the losses up to it, or None for now.
        self._reading: tuple[int, Callable[[], float | None]] | None = None

    def clear(self) -> None:
        """Forget what was not read yet."""
        self._unread.clear()
        self._reading = None

    def read(self, step: int, loss: torch.Tensor, *, done: bool) -> Iterator[tuple[int, float]]:
        """Keep the loss of that step; the means that have become known, each with the step it reaches to.

        It waits for the device only if the steps are ``done``: then nothing stays unread.
        """
        self._unread.append(loss)
        if self._reading is None and (done or time.monotonic() - self._read_at >= self._every_s):
            self._fetch(step)
        if done:
            self._device.synchronize()
        yield from self._there()
        if done and self._unread:
            self._fetch(step)
            self._device.synchronize()
            yield from self._there()

    def _fetch(self, step: int) -> None:
        mean = torch.stack(self._unread).mean()
        self._reading = step, self._device.read_async(mean)
        self._unread.clear()
        self._read_at = time.monotonic()

    def _there(self) -> Iterator[tuple[int, float]]:
        """The mean that was asked for, if it is there."""
        if self._reading is not None and (mean := self._reading[1]()) is not None:
            step, self._reading = self._reading[0], None
            yield step, mean
