"""Everything a run works with, handed from phase to phase, and what shows its progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fitwithin.accountant import Accountant, OpenEntry
from fitwithin.budget import Remaining
from fitwithin.candidate import Candidate
from fitwithin.data.dataset import DataFacts, Images
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.results import Progress
from fitwithin.planning.cost import Workload
from fitwithin.planning.pool import Pool
from fitwithin.request import Request
from fitwithin.store import Store
from fitwithin.weights.find import Weights


class Reporter(Protocol):
    """Shows what is going on; called from any thread. Slots that work side by side have a lane each."""

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """A stretch of work begins, and the one before in its lane ends; without a lane all of them end."""

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """``done`` of ``total`` of the stretch is done."""

    def say(self, line: str) -> None:
        """A line to show as it is."""


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """Nothing."""

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Everything a run works with.

    There are no ``candidates`` until they are chosen (pipeline/choose.py). ``workers`` is the number of loader
    processes for each process that trains; ``closing_s`` is kept for the report.
    """

    request: Request
    folder: Path
    engine: Engine
    store: Store
    accountant: Accountant
    reporter: Reporter
    candidates: Sequence[Candidate]
    images: Images
    workers: int
    closing_s: float
    #: What was chosen, where the user named no backbones or no sizes.
    pool: Pool | None = None
    #: The pretrained weights that the run starts from, by its candidates; none for a random start.
    weights: tuple[Weights, ...] = ()

    @property
    def setting(self) -> JobSettings:
        """What every job shares."""
        request = self.request
        return JobSettings(
            device=request.device,
            memory_bytes=request.budget.memory_bytes,
            accounting=request.budget.accounting,
            pack=str(self.images.folder),
            classes=len(self.images.classes),
            recipe=request.recipe,
            view_sizes=request.test_sizes,
            seed=request.seed,
            workers=self.workers,
            data_parallel=request.data_parallel,
            jobs_per_host=1 if request.engine == "ray" else request.slots,
            canvas_px=request.canvas_px,
            weights=self.weights,
            class_weights=self.class_weights,
            balanced=request.balance == "sampling",
        )

    @property
    def class_weights(self) -> tuple[float, ...]:
        """The weights of the classes in training by the inverse of their images, 1 for the mean image; none unless they
        were asked for."""
        if self.request.balance not in ("weights", "sampling"):
            return ()
        labels, classes = self.images.labels[self.images.indices("train")], len(self.images.classes)
        counts = [int((labels == label).sum()) for label in range(classes)]
        return tuple(len(labels) / (classes * max(1, count)) for count in counts)

    @property
    def chosen(self) -> bool:
        """Whether the candidates were chosen for what is known of them, and not named."""
        return bool(self.weights) or (self.pool is not None and not self.pool.named)

    @property
    def data(self) -> DataFacts:
        """The sizes of the splits."""
        counts = {split: len(self.images.indices(split)) for split in ("train", "val", "test")}
        return DataFacts(**counts, classes=len(self.images.classes))

    @property
    def workload(self) -> Workload:
        """What all its trials have in common, for the plan."""
        request, scope = self.request, self.request.budget.scope
        return Workload(data=self.data, recipe=request.recipe, view_sizes=request.test_sizes, scope=scope)

    def seated(self, slot: int) -> JobSettings:
        """What the jobs of a slot share: its devices follow those of the slot before."""
        setting = self.setting
        if self.request.engine == "ray":  # Ray assigns the GPUs
            return setting
        return replace(setting, device=setting.device.next(slot * self.request.data_parallel))

    def book(self, phase: str, key: str, *, reserved_s: float) -> OpenEntry:
        """An entry of the ledger for the work of a slot; a concurrent one if there are several slots."""
        gpus, several = self.request.data_parallel, self.request.slots > 1
        return self.accountant.entry(phase, key, gpus=gpus, reserved_s=reserved_s, concurrent=several)

    def remaining(self) -> Remaining:
        """What is left of the whole run's budget for its slots."""
        return self.accountant.remaining(self.request.data_parallel, self.request.slots)

    def promise_s(self, seconds: float, *, gpus: int) -> float:
        """``seconds``, but no more than the whole run has left: what the ledger may reserve."""
        if self.request.budget.scope == "candidate":
            return seconds
        left = self.accountant.remaining(max(1, gpus))
        return min(seconds, left.usable_s if gpus else left.time_s)

    def lane(self, slot: int) -> int | None:
        """The reporter's lane of a slot; None if there is one slot."""
        return slot if self.request.slots > 1 else None

    def progress(self, progress: Progress, slot: int = 0) -> None:
        """Report the progress of a slot's worker."""
        self.reporter.advance(progress.step, progress.total or None, progress.text, self.lane(slot))
