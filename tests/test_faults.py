"""Runs whose driver and workers are killed at random moments, again and again, until they come to their end.

Drivers are processes that get a SIGKILL: in the middle of a job, or right before or after a write to the run's store.
Workers die by the law of a simulated machine; time is simulated, so that a run of minutes takes a moment. (Real workers
are killed in tests/e2e, tests/test_ray.py and benchmarks/faults.py.)
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fitwithin import ledger
from fitwithin.accountant import Accountant, OpenEntry
from fitwithin.budget import Budget
from fitwithin.engine.results import CHECKPOINT, WEIGHTS
from fitwithin.inference.ensemble import read_ensemble
from fitwithin.ledger import EntryAbandoned, EntryOpened, EntrySettled
from fitwithin.pipeline import run
from fitwithin.report import schema as reports
from fitwithin.store import Event, Store
from simulated.clock import SimulatedClock
from simulated.engine import Simulated
from simulated.law import Fault, SimulatedMachine
from simulated.run import CountedImages, Stage, request, without_pages

#: So many runs, in groups that share a process of the test runner. The first group is part of every test run.
RUNS, GROUPS = 200, 8
EVERY_GROUP = [0, *(pytest.param(group, marks=pytest.mark.soak) for group in range(1, GROUPS))]

#: The clock of the first driver begins here.
BEGINS_AT = 1000.0

#: Exit statuses of a driver that came to its end, and of one that failed.
DONE, FAILED = 0, 3


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A driver is killed at an instant of simulated time, or at its ``write``-th write, before or after it."""

    at_s: float = float("inf")
    write: int = 0
    after: bool = False


class SharedClock(SimulatedClock):
    """Its present lies where the next process finds it, and is told to whoever listens."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.listeners: list[Callable[[float], None]] = []
        (now,) = struct.unpack_from("d", memory)
        super().__init__(now)

    @property
    def _now(self) -> float:
        (now,) = struct.unpack_from("d", self.memory)
        return float(now)

    @_now.setter
    def _now(self, now: float) -> None:
        for listener in self.listeners:
            listener(now)
        struct.pack_into("d", self.memory, 0, now)


class Driver:
    """One process of a run, in which it may be killed. Beats are written as time passes, as a thread does elsewhere."""

    def __init__(self, stage: Stage, memory: mmap.mmap, kill: Kill) -> None:
        self.kill, self.writes = kill, 0
        self.clock = SharedClock(memory)
        self.store = Store(stage.folder)
        self.store._db.execute("PRAGMA synchronous = OFF")  # the machine stays up: what was written is read
        self.append = self.store.append
        self.store.append = self.written  # type: ignore[method-assign]
        engine = Simulated(stage.law, stage.images, self.clock)
        engine.started_at = BEGINS_AT
        self.stage = replace(stage, store=self.store, engine=engine)
        self.open: dict[OpenEntry, float] = {}
        self.clock.listeners.append(self.passed)

    def written(self, event: Event) -> int:
        self.writes += 1
        due = self.writes == self.kill.write
        if due and not self.kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        number = self.append(event)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def passed(self, now: float) -> None:
        """Time passes: entries beat, and at its instant the process is gone."""
        until = min(now, BEGINS_AT + self.kill.at_s)
        for opened, beaten_at in self.open.items():
            if until - beaten_at >= ledger.HEARTBEAT_S:
                self.open[opened] = until
                elapsed_s = until - opened.began_at
                self.store.beat(opened.number, ledger.Heartbeat(number=opened.number, elapsed_s=elapsed_s))
        if until < now:
            struct.pack_into("d", self.clock.memory, 0, until)
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(self) -> None:
        """Know which entries are open."""
        entry, settle = Accountant.entry, Accountant.settle

        def opened(accountant: Accountant, *words: Any, **more: Any) -> OpenEntry:
            found = entry(accountant, *words, **more)
            self.open[found] = self.clock.now()
            return found

        def settled(accountant: Accountant, closed: OpenEntry) -> None:
            self.open.pop(closed, None)
            settle(accountant, closed)

        Accountant.entry, Accountant.settle = opened, settled  # type: ignore[method-assign]

    def drive(self) -> None:
        self.listen()
        run.execute(self.stage.run())


def forked(work: Callable[[], None]) -> int:
    """How a process of its own ended that did that work: its exit status, or minus the signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads in the test runner, which the child has not
        child = os.fork()
    if not child:
        status = FAILED
        try:
            work()
            status = DONE
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def scenario(seed: int, folder: Path) -> tuple[Stage, list[Kill]]:
    """A run, and when its drivers are killed one after the other; the last one is not."""
    rng = Random(seed)
    limit_s = rng.uniform(200, 900)
    slots = rng.choice([1, 1, 2, 3])
    limits: dict[str, float] = {"time_s": limit_s}
    if rng.random() < 0.3:
        limits = {"gpu_time_s": limit_s}
    elif rng.random() < 0.3:
        limits["gpu_time_s"] = slots * limit_s * rng.uniform(0.6, 1.0)
    wall_s = limit_s if "time_s" in limits else limit_s / slots
    instants = [wall_s * rng.uniform(0, 1.05) for _ in range(rng.randint(0, 3))]
    kills = [Kill(at_s=wall_s * rng.uniform(0, 0.8))]  # by then no run has ended
    for _ in range(rng.randint(0, 3)):
        if rng.random() < 0.5:
            kills.append(Kill(write=rng.randint(1, 120), after=rng.random() < 0.5))
            continue
        at_s = wall_s * rng.uniform(0, 1.0)
        kills.append(Kill(at_s=at_s))
        if rng.random() < 0.5:
            instants.append(at_s - 1e-3)  # worker and driver
    troubles = tuple(Fault(at_s=at_s, kind="died") for at_s in sorted(instants))
    law = SimulatedMachine(seed=seed, half_epochs=rng.uniform(2, 20), pace_noise=0.02, troubles=troubles)
    asked = request(
        models=tuple(f"model{n}" for n in range(rng.randint(2, 5))),
        recipe="fast",
        memory_bytes=2**32,
        slots=slots,
        **limits,
    )
    asked = replace(asked, search=rng.choice(["halving", "halving", "exhaustive"]))
    return Stage(law, asked, folder, CountedImages()), kills


def never_beyond(events: Sequence[EntryOpened | EntrySettled | EntryAbandoned], budget: Budget) -> None:
    """What is settled and what is promised stay within the limits, after every single event."""
    limits = [(limit_s, gpu) for limit_s, gpu in ((budget.time_s, False), (budget.gpu_time_s, True)) if limit_s]
    taken: dict[int, tuple[float, float]] = {}  # by number: seconds by the clock, and times the GPUs
    held: dict[int, tuple[int, int]] = {}
    for count, event in enumerate(events, 1):
        if isinstance(event, EntryOpened):
            held[event.number] = (0 if event.concurrent else 1), event.gpus
        seconds = event.reserved_s if isinstance(event, EntryOpened) else event.charged_s
        clock, gpus = held[event.number]
        taken[event.number] = clock * seconds, gpus * seconds
        for limit_s, gpu in limits:
            assert sum(each[gpu] for each in taken.values()) <= limit_s + 1e-6, (count, event)


@pytest.mark.parametrize("group", EVERY_GROUP)
def test_whatever_is_killed_the_books_balance_and_a_model_is_handed_over(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pages(monkeypatch)
    struck: Counter[str] = Counter()
    for seed in range(group, RUNS, GROUPS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.setenv("FITWITHIN_CACHE", str(folder / "cache"))
        stage, kills = scenario(seed, folder)
        memory = mmap.mmap(-1, 8)
        struct.pack_into("d", memory, 0, BEGINS_AT)
        for kill in (*kills, Kill()):
            status = forked(lambda stage=stage, memory=memory, kill=kill: Driver(stage, memory, kill).drive())
            assert status in (DONE, -signal.SIGKILL), f"run {seed}: a driver failed"
            struck["driver"] += status != DONE
            if status == DONE:
                break
        else:
            pytest.fail(f"run {seed} came to no end")
        ended_at = SharedClock(memory).now()
        check(seed, stage, ended_at)
        struck["trouble"] += sum(trouble.at_s < ended_at - BEGINS_AT for trouble in stage.law.troubles)
    assert struck["driver"] > 1.2 * RUNS / GROUPS, "every run once, and many again"
    assert struck["trouble"] > RUNS / GROUPS / 4, "instants at which whatever worker is at work dies"


def check(seed: int, stage: Stage, ended_at: float) -> None:
    """A run that was killed and taken up again is as good as any other."""
    with Store(stage.folder, write=False) as store:
        entries = store.read(EntryOpened, EntrySettled, EntryAbandoned)
        books = ledger.read(store)
    assert books.balanced, f"run {seed}"
    never_beyond(entries, stage.request.budget)
    assert books.spent_s() >= ended_at - BEGINS_AT - 1e-6, f"run {seed}: time went by that nobody was charged for"
    report = reports.from_json((stage.folder / "report.json").read_text(encoding="utf-8"))
    assert report.receipt.balanced
    assert all(limit.kept for limit in report.receipt.limits), f"run {seed}"
    folder = stage.folder / read_ensemble(stage.folder).trial
    assert (folder / WEIGHTS).is_file()
    assert not (folder / CHECKPOINT).exists(), "only an unfinished trial needs it"
    assert report.winner in {row.name for row in report.candidates if row.status == "trained"}
