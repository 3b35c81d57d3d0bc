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

from fitwithin import api, data, flow, launch, ledger, opening, pack
from fitwithin import request as requests
from fitwithin.engine.simulated import Law, Simulated, SimulatedClock
from fitwithin.progress import Silent
from fitwithin.report import from_json
from fitwithin.session import Run
from fitwithin.store import MemoryStore, SqliteStore, Store, bodies
from simulation import CountedImages, Stage, request


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    for name in ("disc", "ring"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full((32, 32, 3), 10 * number, np.uint8)).save(tmp_path / f"images/{name}/{number}.png")
    return tmp_path / "images"


def opened(folder: Path, store: MemoryStore, **limits: Any) -> Run:
    """A process opens the run; its clock stands still."""
    engine = Simulated(Law(), CountedImages(), SimulatedClock(1000.0))
    asked = {"memory": "1GiB", "time": "60s", "models": "test_resnet", "sizes": "32", "device": "cpu", **limits}
    request = requests.parse(folder, **asked)
    return opening.open_run(request, folder, engine, store, Silent(), engine.now(), data.scan(folder))


def spent(store: Store, seconds: float) -> None:
    """An earlier process trained for so long."""
    body = {"number": 99, "phase": "train", "key": "a", "gpu": 1, "reserved_s": seconds}
    store.append(ledger.OPEN, body)
    store.append(ledger.SETTLE, {"number": 99, "charged_s": seconds, "peak_bytes": None})


def test_what_closing_will_take_is_rehearsed_and_kept(folder: Path) -> None:
    store = MemoryStore()
    run = opened(folder, store)
    assert 0 < run.closing_s < 60
    assert not run.hurried
    assert list(bodies(store.events("opened"), "opened")) == [{"startup_s": 0.0, "closing_s": run.closing_s}]
    assert (len(run.candidates), run.data.classes, run.data.train) == (2, 2, 32)


def test_each_has_a_budget_of_its_own_and_closing_has_none(folder: Path) -> None:
    assert opened(folder, MemoryStore(), scope="candidate").closing_s == 0.0


@pytest.mark.parametrize(
    ("left_s", "begins"),
    [(30.0, ["rehearsal", "workers"]), (7.0, []), (-1.0, [])],
)
def test_who_is_resumed_at_the_end_of_its_time_does_without_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left_s: float, begins: list[str]
) -> None:
    store = MemoryStore()
    first = opened(folder, store)
    store.append("opened", {"startup_s": 6.0, "closing_s": 2.0})
    spent(store, 60.0 - left_s)
    begun: list[str] = []

    def rehearse(candidates: Any, request: Any) -> float:
        begun.append("rehearsal")
        return 1.0

    monkeypatch.setattr(opening, "rehearse", rehearse)
    monkeypatch.setattr(Simulated, "prepare", lambda engine, until_at: bool(begun.append("workers")) or True)
    run = opened(folder, store)
    assert run.hurried == (not begins)
    assert begun == begins
    assert run.workers == first.workers


@pytest.mark.parametrize("settled", [False, True])
def test_who_died_over_its_charts_has_its_books_closed_and_its_receipt_by_them(tmp_path: Path, settled: bool) -> None:
    stage = Stage(Law(), request(time_s=300.0), tmp_path)
    stage.store.append("request", stage.request.to_dict())
    before = flow.tell(stage.run()).receipt
    opening.set_right(tmp_path, stage.store, 2000.0)
    assert from_json((tmp_path / "report.json").read_text()).receipt == before

    number = 1 + max(entry.number for entry in stage.run().accountant.books().entries)
    body = {"number": number, "phase": "report", "key": "", "gpu": 0, "reserved_s": 0.75}
    stage.store.append(ledger.OPEN, body)
    if settled:
        stage.store.append(ledger.SETTLE, {"number": number, "charged_s": 0.75, "peak_bytes": None})
    # and then a SIGKILL
    opening.set_right(tmp_path, stage.store, 2000.0)
    books = ledger.fold((event.kind, event.body) for event in stage.store.events(*ledger.KINDS))
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
    dataset = data.scan(folder)
    images = pack.build(dataset, request.pack_side)
    with SqliteStore(run_folder) as store:
        store.append("request", request.to_dict())
        engine = Simulated(Law(warmup_s=0.1, startup_s=0.1), images, SimulatedClock(1000.0))
        run = opening.open_run(request, run_folder, engine, store, Silent(), engine.now(), dataset)
        plan = flow.draw_up(run)
        if over:
            flow.train(run, plan)
            spent(store, 59.7 - run.accountant.books().spent_s())
        assert opening.hurried(store, request.budget, time.monotonic()) == over
        assert not opening.hurried(store, replace(request.budget, scope="candidate"), time.monotonic())

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


@pytest.mark.parametrize(("boot", "charged_s"), [("this", 4.0), ("another", 6.0)])
def test_what_a_killed_process_left_open_ends_where_the_next_one_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, boot: str, charged_s: float
) -> None:
    """On one boot all processes have one clock."""
    store = MemoryStore()
    monkeypatch.setattr(opening, "boot_id", lambda: "this")
    now = opened(folder, store).engine.now()
    store.append(ledger.OPEN, {"number": 99, "phase": "data", "key": "", "gpu": 0, "reserved_s": 0.0, "at_s": now - 4})
    store.append(ledger.BEAT, {"number": 99, "elapsed_s": 4.0, "at_s": now, "peak_bytes": None})
    monkeypatch.setattr(opening, "boot_id", lambda: boot)
    (left,) = (entry for entry in opened(folder, store).accountant.books().entries if entry.number == 99)
    assert (left.abandoned, left.charged_s) == (True, charged_s)
