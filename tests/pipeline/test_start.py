"""A run opens with all it needs; one that is resumed at the end of its time opens with less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitwithin import api
from fitwithin import request as requests
from fitwithin.data import pack_builder
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine import launch
from fitwithin.engine.margins import CLOSING_S, HAND_OVER_S, PROBABILITY_S
from fitwithin.events import DataPacked, RunRequested
from fitwithin.ledger import EntryOpened, EntrySettled, Heartbeat
from fitwithin.pipeline import run as flow
from fitwithin.pipeline import start
from fitwithin.pipeline.context import RunContext, Silent
from fitwithin.store import Store
from simulated.clock import SimulatedClock
from simulated.engine import Simulated
from simulated.law import SimulatedMachine
from simulated.run import CountedImages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    for name in ("disc", "ring"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full((32, 32, 3), 10 * number, np.uint8)).save(tmp_path / f"images/{name}/{number}.png")
    return tmp_path / "images"


def opened(folder: Path, store: Store, **limits: Any) -> RunContext:
    """A process opens the run; its clock stands still."""
    engine = Simulated(SimulatedMachine(), CountedImages(), SimulatedClock(1000.0))
    asked = {"memory": "1GiB", "time": "60s", "models": "test_resnet", "sizes": "32", "device": "cpu", **limits}
    request = requests.parse(folder, **asked)
    accountant = start.open_accountant(store, request.budget, engine.now, engine.now())
    late = start.too_late_for_workers(accountant)
    return start.open_run(request, folder, engine, store, Silent(), accountant, open_dataset(folder), hands_over=late)


def spent(store: Store, seconds: float) -> None:
    """An earlier process trained for so long."""
    store.append(EntryOpened(number=99, phase="train", key="a", gpus=1, reserved_s=seconds))
    store.append(EntrySettled(number=99, charged_s=seconds))


def test_time_for_closing_is_kept_the_more_the_more_is_to_be_judged(folder: Path) -> None:
    run = opened(folder, Store())
    assert run.closing_s == pytest.approx(CLOSING_S + 2 * (run.data.val + run.data.test) * PROBABILITY_S, rel=1e-9)
    assert (len(run.candidates), run.data.classes, run.data.train) == (2, 2, 32)


def test_what_the_validation_images_can_tell_apart_is_said(folder: Path) -> None:
    store = Store()
    run = opened(folder, store)
    packed = store.latest(DataPacked)
    assert packed is not None
    assert len(run.images.indices("val")) == 4
    assert packed.notes[-1] == (
        "4 validation images tell apart models that differ by 41.6 points or more, near 90 %; they are few"
    )


@pytest.mark.parametrize(("balance", "said"), [("auto", "validation images decide"), ("sampling", "equally often")])
def test_what_rare_classes_get_is_said_before_the_training(folder: Path, balance: str, said: str) -> None:
    first = next(path for path in sorted(folder.iterdir()) if path.is_dir())
    for path in sorted(first.iterdir())[4:]:
        path.unlink()
    store = Store()
    opened(folder, store, balance=balance)
    packed = store.latest(DataPacked)
    assert packed is not None
    (note,) = [note for note in packed.notes if note.startswith("classes have ")]
    assert said in note


def test_long_pictures_are_remarked_on(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            longer = image.resize((90, 40))
        longer.save(path)
    store = Store()
    opened(folder, store)
    packed = store.latest(DataPacked)
    assert packed is not None
    assert "2.2 times as long as wide" in packed.notes[-1]
    assert "--fit squash" in packed.notes[-1]


def test_each_has_a_budget_of_its_own_and_closing_has_none(folder: Path) -> None:
    assert opened(folder, Store(), scope="candidate").closing_s == 0.0


@pytest.mark.parametrize("left_s", [30.0, HAND_OVER_S + 0.1, HAND_OVER_S - 0.1, 0.5, -1.0])
def test_a_run_resumed_at_the_end_of_its_time_waits_for_no_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left_s: float
) -> None:
    """All that is left is kept for closing it."""
    store = Store()
    first = opened(folder, store)
    spent(store, 60.0 - left_s)
    waited: list[float] = []
    monkeypatch.setattr(Simulated, "prepare", lambda engine, until_at: bool(waited.append(until_at)) or True)
    run = opened(folder, store)
    assert bool(waited) == (left_s > HAND_OVER_S)
    assert run.closing_s == pytest.approx(CLOSING_S if waited else max(CLOSING_S, left_s), rel=1e-4)
    assert run.workers == first.workers


@pytest.mark.parametrize("over", [False, True])
def test_what_there_is_is_handed_over_without_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    run_folder = folder.parent / "run"
    run_folder.mkdir()
    request = requests.parse(folder, memory="1GiB", time="60s", models="test_resnet", sizes="32", device="cpu")
    dataset = open_dataset(folder)
    images = pack_builder.build(dataset, request.pack_side)
    with Store(run_folder) as store:
        store.append(RunRequested(request=request))
        engine = Simulated(SimulatedMachine(warmup_s=0.1, startup_s=0.1), images, SimulatedClock(1000.0))
        accountant = start.open_accountant(store, request.budget, engine.now, engine.now())
        run = start.open_run(request, run_folder, engine, store, Silent(), accountant, dataset)
        plan = flow.make_plan(run)
        if over:
            flow.train(run, plan)
            spent(store, 60.0 - HAND_OVER_S / 2 - run.accountant.ledger().spent_s())

    class Waited(Exception):
        pass

    def await_ready(server: launch.Server, until_at: float = 0.0) -> bool:
        raise Waited

    monkeypatch.setattr(launch.Server, "await_ready", await_ready)
    if not over:
        with pytest.raises(Waited):
            api.resume(run_folder)
        return
    report = api.resume(run_folder).report
    assert report.winner in {candidate.name for candidate in run.candidates}
    assert (report.receipt.finished, report.receipt.starts) == (True, 2)
    assert all(limit.kept for limit in report.receipt.limits)


@pytest.mark.parametrize(("boot", "charged_s"), [("this", 4.0), ("another", 6.0)])
def test_what_a_killed_process_left_open_ends_where_the_next_one_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, boot: str, charged_s: float
) -> None:
    """On one boot all processes have one clock."""
    store = Store()
    monkeypatch.setattr(start, "boot_id", lambda: "this")
    now = opened(folder, store).engine.now()
    store.append(EntryOpened(number=99, phase="data", key="", gpus=0, reserved_s=0.0, at_s=now - 4))
    store.beat(99, Heartbeat(number=99, elapsed_s=4.0, at_s=now))
    monkeypatch.setattr(start, "boot_id", lambda: boot)
    (left,) = (entry for entry in opened(folder, store).accountant.ledger().entries if entry.number == 99)
    assert (left.abandoned, left.charged_s) == (True, charged_s)
