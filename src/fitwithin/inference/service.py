"""The model behind a service: pictures of many requests read side by side, and answered together.

Everything that a request may ask for is bounded. What is refused has the status that HTTP has for it.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import prometheus_client as prometheus
from fastapi import HTTPException
from PIL import Image, UnidentifiedImageError

from fitwithin.data.decode import UNREADABLE
from fitwithin.inference import batcher
from fitwithin.inference.batcher import Batcher, Full
from fitwithin.inference.crops import Crops, cropper
from fitwithin.inference.model import Model
from fitwithin.inference.predictions import Answer
from fitwithin.inference.predictor import Predictor
from fitwithin.inference.sources import Source
from fitwithin.machine import DeviceName, cores

#: A picture at the sizes of the views, uint8 [P, P, 3].
Pixels = dict[int, np.ndarray[Any, np.dtype[np.uint8]]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for, and how much may go on at a time."""

    #: Bytes of a body, and pixels of a picture.
    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    #: Pictures in a request, and those of all requests that wait for the model.
    files: int = 32
    waiting: int = 256
    #: Seconds for a body to arrive, and for the answer.
    body_s: float = 15.0
    answer_s: float = 30.0


class Counters:
    """What is counted, for Prometheus."""

    def __init__(self) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "fitwithin_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "fitwithin_request_seconds", "Seconds of a prediction request.", registry=registry
        )
        self.pictures = prometheus.Counter("fitwithin_pictures", "Pictures that were answered.", registry=registry)
        self.novel = prometheus.Counter(
            "fitwithin_novel_pictures", "Pictures that are unlike all training images.", registry=registry
        )
        self.batches = prometheus.Histogram(
            "fitwithin_batch_pictures", "Pictures in a pass of the model.", buckets=batcher.BATCHES, registry=registry
        )
        self.waiting = prometheus.Gauge(
            "fitwithin_waiting_pictures", "Pictures that wait for the model.", registry=registry
        )

    def text(self) -> bytes:
        """All of it."""
        return prometheus.generate_latest(self.registry)


class Service:
    """The model at work. It is ``ready`` once it is loaded."""

    def __init__(self, model: Model, device: DeviceName, limits: Limits) -> None:
        self.model, self.device, self.limits = model, device, limits
        self.counters = Counters()
        #: What passes of the model take.
        self.curve: list[batcher.Point] = []
        self._batcher: Batcher[Pixels, Answer] | None = None
        #: Reads pictures, no more at a time than there are cores: each may need the memory of all its pixels.
        self._reading = asyncio.Semaphore(cores())

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._batcher is not None

    def load(self) -> None:
        """Put the model onto its device, and find its best batch."""
        predictor = Predictor(self.model.folder, self.model.ensemble, self.device)
        sizes = sorted({view.px for view in self.model.ensemble.views})
        self._crop = cropper(",".join(map(str, sizes)), str(predictor.card.frame))

        def work(pictures: list[Pixels]) -> list[Answer]:
            return predictor.answers({px: np.stack([each[px] for each in pictures]) for px in sizes})

        self.curve = batcher.measure(work, {px: np.zeros((px, px, 3), np.uint8) for px in sizes})
        self._batcher = found = Batcher(
            work,
            most=batcher.best_batch(self.curve),
            waiting=self.limits.waiting,
            on_batch=self.counters.batches.observe,
        )
        self.counters.waiting.set_function(lambda: found.waiting)

    def close(self) -> None:
        """End the work."""
        if self._batcher is not None:
            self._batcher.close()

    def read(self, content: bytes) -> Crops:
        """A picture's pixels for the model, or why there are none.

        Raises:
            HTTPException: 413 for too many pixels, 415 for something that is no picture.
        """
        try:
            with Image.open(io.BytesIO(content)) as image:
                pixels = image.width * image.height
        except Image.DecompressionBombError:
            pixels = self.limits.pixels + 1
        except UnidentifiedImageError as error:
            raise HTTPException(415, "this is no picture in a format that is known here") from error
        except UNREADABLE as error:
            return str(error) or type(error).__name__
        if pixels > self.limits.pixels:
            raise HTTPException(413, f"the picture has more than {self.limits.pixels:,} pixels; scale it down")
        (found,) = self._crop([Source(name="", content=content)])
        return found

    async def predict(self, contents: Sequence[bytes]) -> list[Answer | str]:
        """The answer for each picture, or why there is none.

        Raises:
            HTTPException: as of :meth:`read`; 429 if too many pictures wait, 503 if the answer took too long.
        """
        assert self._batcher is not None
        read: list[Crops] = []
        for content in contents:
            async with self._reading:
                read.append(await asyncio.to_thread(self.read, content))
        try:
            futures = [self._batcher.submit(each) for each in read if isinstance(each, dict)]
        except Full:
            raise HTTPException(429, "too many pictures wait; try again soon", {"Retry-After": "1"}) from None
        try:
            waiting = asyncio.gather(*map(asyncio.wrap_future, futures))
            answers = iter(await asyncio.wait_for(waiting, self.limits.answer_s))
        except TimeoutError:
            raise HTTPException(503, "the answer took too long; try again later", {"Retry-After": "5"}) from None
        return [each if isinstance(each, str) else next(answers) for each in read]
