"""Who may start and who may measure: between processes, and whatever becomes of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import closing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from fitwithin.profiling.gpu_lock import GpuLock

SPAWN = multiprocessing.get_context("spawn")


def _hold(folder: str, got: Event, go: Event) -> None:
    """Take both, say so, and wait for leave to be warm, then for leave to be done."""
    baton = GpuLock(Path(folder), "cuda:0")
    baton.start()
    baton.measure()
    got.set()
    go.wait(30)
    baton.warm()
    time.sleep(1.0)
    baton.close()
    time.sleep(30)


@pytest.fixture
def holder(tmp_path: Path) -> object:
    got, go = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(str(tmp_path), got, go))
    process.start()
    assert got.wait(60)
    yield process, go
    process.kill()
    process.join()


def test_the_next_starts_when_the_one_before_is_warm_and_measures_when_it_has_measured(
    holder: tuple[SPAWN.Process, Event], tmp_path: Path
) -> None:
    _, go = holder
    with closing(GpuLock(tmp_path, "cuda:0")) as baton:
        begun_at = time.monotonic()
        go.set()
        started_s = baton.start()
        measuring_s = baton.measure()
        assert started_s + measuring_s == pytest.approx(time.monotonic() - begun_at, abs=0.1)
        assert measuring_s > 0.5, "it measured beside another"


def test_devices_do_not_wait_for_each_other(holder: object, tmp_path: Path) -> None:
    del holder
    with closing(GpuLock(tmp_path, "cuda:1")) as baton:
        assert baton.start() + baton.measure() < 1.0


def test_whoever_is_killed_holds_nobody_up(holder: tuple[SPAWN.Process, Event], tmp_path: Path) -> None:
    process, _ = holder
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with closing(GpuLock(tmp_path, "cuda:0")) as baton:
        assert baton.start() + baton.measure() < 5.0
