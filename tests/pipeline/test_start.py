"""A run opens with all it needs; one that is resumed at the end of its time opens with less."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitwithin import api, ledger
from fitwithin import request as requests
from fitwithin.data import image_folder, pack_builder
from fitwithin.engine import launch
from fitwithin.engine.simulated.clock import SimulatedClock
from fitwithin.engine.simulated.engine import Simulated
from fitwithin.engine.simulated.law import SimulatedMachine
from fitwithin.events import RunRequested, RunStarted
from fitwithin.ledger import EntryOpened, EntrySettled, Heartbeat
from fitwithin.pipeline import finish, start
from fitwithin.pipeline import run as flow
from fitwithin.pipeline.context import RunContext
from fitwithin.pipeline.progress import Silent
from fitwithin.report.schema import from_json
from fitwithin.store import MemoryStore, SqliteStore, Store
from simulation import CountedImages, Stage, request


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    for name in ("disc", "ring"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full((32, 32, 3), 10 * number, np.uint8)).save(tmp_path / f"images/{name}/{number}.png")
    return tmp_path / "images"


def opened(folder: Path, store: MemoryStore, **limits: Any) -> RunContext:
    """A process opens the run; its clock stands still."""
    engine = Simulated(SimulatedMachine(), CountedImages(), SimulatedClock(1000.0))
    asked = {"memory": "1GiB", "time": "60s", "models": "test_resnet", "sizes": "32", "device": "cpu", **limits}
    request = requests.parse(folder, **asked)
    return start.open_run(request, folder, engine, store, Silent(), engine.now(), image_folder.scan(folder))


def spent(store: Store, seconds: float) -> None:
    """An earlier process trained for so long."""
    store.append(EntryOpened(number=99, phase="train", key="a", gpus=1, reserved_s=seconds))
    store.append(EntrySettled(number=99, charged_s=seconds))


def test_what_closing_will_take_is_rehearsed_and_kept(folder: Path) -> None:
    store = MemoryStore()
    run = opened(folder, store)
    assert 0 < run.closing_s < 60
    assert not run.hurried
    assert store.read(RunStarted) == [RunStarted(startup_s=0.0, closing_s=run.closing_s)]
    assert (len(run.candidates), run.data.classes, run.data.train) == (2, 2, 32)


def test_each_has_a_budget_of_its_own_and_closing_has_none(folder: Path) -> None:
    assert opened(folder, MemoryStore(), scope="candidate").closing_s == 0.0


@pytest.mark.parametrize(
    ("left_s", "begins"),
    [(30.0, ["charts", "workers"]), (15.0, ["rehearsal", "workers"]), (7.0, []), (-1.0, [])],
)
def test_who_is_resumed_at_the_end_of_its_time_does_without_charts_and_then_without_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left_s: float, begins: list[str]
) -> None:
    store = MemoryStore()
    first = opened(folder, store)
    store.append(RunStarted(startup_s=6.0, closing_s=2.0))
    spent(store, 60.0 - left_s)
    begun: list[str] = []

    def rehearse(candidates: Any, request: Any, *, charts: bool) -> tuple[float, float | None]:
        begun.append("charts" if charts else "rehearsal")
        return 1.0, 0.5 if charts else None

    monkeypatch.setattr(start, "rehearse", rehearse)
    monkeypatch.setattr(Simulated, "prepare", lambda engine, until_at: bool(begun.append("workers")) or True)
    run = opened(folder, store)
    assert run.hurried == (not begins)
    assert begun == begins
    assert run.drawing_s == (0.5 if "charts" in begins else None)
    assert run.workers == first.workers


@pytest.mark.parametrize("settled", [False, True])
def test_who_died_over_its_charts_has_its_books_closed_and_its_receipt_by_them(tmp_path: Path, settled: bool) -> None:
    stage = Stage(SimulatedMachine(), request(time_s=300.0), tmp_path)
    stage.store.append(RunRequested(request=stage.request))
    before = flow.tell(stage.run()).receipt
    start.set_right(tmp_path, stage.store, 2000.0)
    assert from_json((tmp_path / "report.json").read_text()).receipt == before

    number = 1 + max(entry.number for entry in stage.run().accountant.ledger().entries)
    stage.store.append(EntryOpened(number=number, phase="report", key="", gpus=0, reserved_s=0.75))
    if settled:
        stage.store.append(EntrySettled(number=number, charged_s=0.75))
    # and then a SIGKILL
    start.set_right(tmp_path, stage.store, 2000.0)
    books = ledger.read(stage.store)
    assert books.balanced
    after = from_json((tmp_path / "report.json").read_text()).receipt
    assert after.balanced
    assert after.finished
    assert sum(phase.spent_s for phase in after.phases) == pytest.approx(books.spent_s())
    assert after.limits[1].spent == pytest.approx(before.limits[1].spent + 0.75)
    assert json.loads((tmp_path / "receipt.json").read_text())["limits"][1]["spent"] == after.limits[1].spent


@pytest.mark.parametrize("over", [False, True])
def test_for_who_has_no_time_left_no_workers_are_launched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    """What there is is handed over. (Launching them took as long as that.)"""
    run_folder = folder.parent / "run"
    run_folder.mkdir()
    request = requests.parse(folder, memory="1GiB", time="60s", models="test_resnet", sizes="32", device="cpu")
    dataset = image_folder.scan(folder)
    images = pack_builder.build(dataset, request.pack_side)
    with SqliteStore(run_folder) as store:
        store.append(RunRequested(request=request))
        engine = Simulated(SimulatedMachine(warmup_s=0.1, startup_s=0.1), images, SimulatedClock(1000.0))
        run = start.open_run(request, run_folder, engine, store, Silent(), engine.now(), dataset)
        plan = flow.draw_up(run)
        if over:
            flow.train(run, plan)
            spent(store, 59.5 - run.accountant.ledger().spent_s())
        assert start.hurried(store, request.budget, time.monotonic()) == over
        assert not start.hurried(store, replace(request.budget, scope="candidate"), time.monotonic())

    class Launched(Exception):
        pass

    def launched() -> None:
        raise Launched

    monkeypatch.setattr(launch, "launched", launched)
    if not over:
        with pytest.raises(Launched):
            api.resume(run_folder)
        return
    report = api.resume(run_folder).report
    assert report.winner in {candidate.name for candidate in run.candidates}
    assert (report.receipt.finished, report.receipt.starts) == (True, 2)
    assert finish.CHARTS_LEFT_OUT in report.notes


@pytest.mark.parametrize(("boot", "charged_s"), [("this", 4.0), ("another", 6.0)])
def test_what_a_killed_process_left_open_ends_where_the_next_one_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, boot: str, charged_s: float
) -> None:
    """On one boot all processes have one clock."""
    store = MemoryStore()
    monkeypatch.setattr(start, "boot_id", lambda: "this")
    now = opened(folder, store).engine.now()
    store.append(EntryOpened(number=99, phase="data", key="", gpus=0, reserved_s=0.0, at_s=now - 4))
    store.beat(99, Heartbeat(number=99, elapsed_s=4.0, at_s=now))
    monkeypatch.setattr(start, "boot_id", lambda: boot)
    (left,) = (entry for entry in opened(folder, store).accountant.ledger().entries if entry.number == 99)
    assert (left.abandoned, left.charged_s) == (True, charged_s)
