"""A run without hardware: images that are only counted, a budget, and a law in place of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from fitwithin import recipe as recipes
from fitwithin.accountant import Accountant
from fitwithin.budget import Budget
from fitwithin.candidate import Candidate, grid
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.results import Progress, Timing
from fitwithin.events import EVENTS, DataPacked, MachineDescribed, ProcessStarted, TrialAsked
from fitwithin.ledger import EntryAbandoned, EntryOpened, EntrySettled, Ledger, LedgerEvent
from fitwithin.machine import CPU
from fitwithin.pipeline.context import RunContext, Silent
from fitwithin.planning.search import Trial
from fitwithin.profiling.candidate_profiler import CandidateProfiler
from fitwithin.profiling.profile import Profile, Rejection, prior
from fitwithin.recipe import Recipe
from fitwithin.report import render
from fitwithin.request import Request
from fitwithin.store import Event, Store
from simulated.clock import SimulatedClock
from simulated.engine import Simulated
from simulated.law import SimulatedMachine

GIB = 2**30


def without_pages(patch: pytest.MonkeyPatch) -> None:
    """No page is written: report/test_render.py does that."""
    patch.setattr(render, "html", lambda report, folder, pictures: "")
    patch.setattr(render, "markdown", lambda report, folder: "")


def tries(examples: int) -> settings:
    """So many examples, or ``FITWITHIN_TRIES`` times as many: ``FITWITHIN_TRIES=20 pytest tests/test_laws.py``."""
    return settings(max_examples=examples * int(os.environ.get("FITWITHIN_TRIES", "1")))


@dataclass(frozen=True)
class CountedImages:
    """A data set of ``counts`` = (train, val, test) images in ``k`` classes; there are no pixels."""

    counts: tuple[int, int, int] = (800, 100, 100)
    k: int = 4
    folder: Path = Path("/nowhere/pack")
    fingerprint: str = "f" * 32
    #: How many times as wide as high the images are.
    elongated: float = 1.0

    @property
    def heights(self) -> np.ndarray:
        return np.full(sum(self.counts), 100, np.int32)

    @property
    def widths(self) -> np.ndarray:
        return np.full(sum(self.counts), round(100 * self.elongated), np.int32)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"class {i}" for i in range(self.k))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        return tuple(f"{i}.png" for i in range(sum(self.counts)))

    @cached_property
    def labels(self) -> np.ndarray:
        return np.arange(sum(self.counts)) % self.k

    def indices(self, split: str) -> np.ndarray:
        which = ("train", "val", "test").index(split)
        start = sum(self.counts[:which])
        return np.arange(start, start + self.counts[which])

    def image(self, i: int) -> np.ndarray:
        return np.full((4, 4, 3), i % 256, dtype=np.uint8)


def measure(
    candidates: Sequence[Candidate],
    setting: JobSettings,
    engine: Engine,
    *,
    n_train: int,
    until_at: float = math.inf,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Profile | Rejection]:
    """What profiling finds out about candidates one after the other; each places the probes of the next."""
    found: list[Profile | Rejection] = []
    for candidate in candidates:
        profiler = CandidateProfiler(candidate, setting, engine, n_train=n_train, on_progress=on_progress)
        place = prior([each for each in found if isinstance(each, Profile)], candidate)
        found.append(profiler.profile(until_at, place))
    return found


class Timed(Store):
    """A store that knows when its entries were opened."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self.now, self.opened_at = now, dict[int, float]()

    def append(self, event: Event) -> int:
        if isinstance(event, EntryOpened):
            self.opened_at[event.number] = self.now()
        return super().append(event)


@dataclass
class Stage:
    """Everything of a simulated run that outlives a process: store, clock, engine and folder."""

    law: SimulatedMachine
    request: Request
    folder: Path
    images: CountedImages = CountedImages()
    store: Store = field(default_factory=Store)
    engine: Any = None

    def __post_init__(self) -> None:
        if self.engine is None:
            self.engine = Simulated(self.law, self.images, SimulatedClock(1000.0))

    def run(self) -> RunContext:
        """A process comes to life: it opens the books, as api.py does."""
        self.store.append(ProcessStarted(pid=1))
        accountant = Accountant(
            self.store, self.request.budget, self.engine.now, started_at=self.engine.now(), beating=False
        )
        with accountant.entry("start-up"):
            self.engine.prepare()
        with accountant.entry("data"):
            counts = dict(zip(("train", "val", "test"), self.images.counts, strict=True))
            fingerprint = self.images.fingerprint
            self.store.append(DataPacked(path="x", fingerprint=fingerprint, classes=(), counts=counts))
            self.store.append(MachineDescribed(facts=self.engine.describe()))
        return RunContext(
            request=self.request,
            folder=self.folder,
            engine=self.engine,
            store=self.store,
            accountant=accountant,
            reporter=Silent(),
            candidates=grid(self.request.models, self.request.precisions, self.request.sizes),
            images=self.images,
            workers=2,
            closing_s=6.0,
        )


def request(
    *,
    memory_bytes: int = GIB,
    models: tuple[str, ...] = ("resnet18",),
    precisions: tuple[str, ...] = ("amp",),
    sizes: tuple[int, ...] = (160,),
    test_sizes: tuple[int, ...] = (160,),
    recipe: str = "paper",
    data_parallel: int = 1,
    slots: int = 1,
    jobs: int = 1,
    **limits: Any,
) -> Request:
    """A request in plain numbers; ``limits`` are the budget's."""
    return Request(
        data="photos",
        budget=Budget(memory_bytes=memory_bytes, **(limits or {"time_s": 600.0})),
        recipe=recipes.load(recipe),
        models=models,
        precisions=precisions,
        sizes=sizes,
        test_sizes=test_sizes,
        search="exhaustive",
        data_parallel=data_parallel,
        gpus=slots * data_parallel,
        jobs=jobs,
    )


def on_cpu(recipe: str | Recipe, **changes: Any) -> JobSettings:
    """What a job on the CPU is told: one loader, images of 32 px, and no pack unless it is said."""
    values: dict[str, Any] = {
        "device": CPU,
        "memory_bytes": GIB,
        "accounting": "process",
        "pack": "",
        "classes": 2,
        "recipe": recipes.load(recipe) if isinstance(recipe, str) else recipe,
        "view_sizes": (32,),
        "seed": 1,
        "workers": 1,
    }
    return JobSettings(**{**values, **changes})


def timing(**changes: Any) -> Timing:
    """A plausible timing."""
    values: dict[str, Any] = {
        "startup_s": 2.0,
        "warmup_s": 1.0,
        "dummy_step_s": 0.05,
        "step_s": 0.06,
        "step_low_s": 0.058,
        "step_high_s": 0.063,
        "eval_image_s": {160: 0.0005, 224: 0.001},
        "eval_first_s": {160: 0.2, 224: 0.2},
        "save_s": 0.1,
    }
    return Timing(**{**values, **changes})


def profile(model: str = "resnet18", *, precision: str = "amp", px: int = 160, batch: int = 32, **of: Any) -> Profile:
    """A plausible profile; ``of`` are its timing's figures."""
    (candidate,) = grid([model], [precision], [px])
    return Profile(
        candidate=candidate,
        parameters=11_000_000,
        batch=batch,
        batch_why=f"{batch} ran, {batch + 1} did not",
        peak_bytes=GIB - 1,
        timing=timing(**of),
        probes=(),
    )


FACTS = DataFacts(train=800, val=100, test=100, classes=4)


def fold(events: Iterable[LedgerEvent]) -> Ledger:
    """The ledger that these events make."""
    ledger = Ledger()
    for event in events:
        ledger.add(event)
    return ledger


def ledger_after_each(store: Store) -> list[Ledger]:
    """The ledger as it stood after each of its events, heartbeats left out."""
    ledger, found = Ledger(), []
    for event in store.read(EntryOpened, EntrySettled, EntryAbandoned):
        assert isinstance(event, EntryOpened | EntrySettled | EntryAbandoned)
        ledger.add(event)
        found.append(ledger.copy())
    return found


def cut_off(store: Store, count: int) -> Store:
    """A store with the first events of another, as it was when its process was killed."""
    left = Store()
    for record in store.all()[:count]:
        left.append(record.event(*EVENTS))
    return left


def asked_trials(store: Store) -> list[Trial]:
    """The trials that a search asked for, in order."""
    return [event.trial for event in store.read(TrialAsked)]
