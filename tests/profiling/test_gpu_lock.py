"""Who may time on a device: between processes, and whatever becomes of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from fitwithin.profiling.gpu_lock import timing_lock

SPAWN = multiprocessing.get_context("spawn")


def _hold(folder: str, got: Event, go: Event) -> None:
    """Take the lock, say so, wait for leave to go on, and let go of it a second later."""
    with timing_lock(Path(folder), "cuda:0"):
        got.set()
        go.wait(30)
        time.sleep(1.0)
    time.sleep(30)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[SPAWN.Process, Event]]:
    got, go = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(str(tmp_path), got, go))
    process.start()
    assert got.wait(60)
    yield process, go
    process.kill()
    process.join()


def test_the_next_begins_when_the_one_before_is_done(holder: tuple[SPAWN.Process, Event], tmp_path: Path) -> None:
    begun_at = time.monotonic()
    holder[1].set()
    with timing_lock(tmp_path, "cuda:0") as waited_s:
        assert waited_s == pytest.approx(time.monotonic() - begun_at, abs=0.1)
        assert waited_s > 0.5, "it began beside another"


@pytest.mark.usefixtures("holder")
def test_devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with timing_lock(tmp_path, "cuda:1") as waited_s:
        assert waited_s < 1.0


def test_whoever_is_killed_holds_nobody_up(holder: tuple[SPAWN.Process, Event], tmp_path: Path) -> None:
    process, _ = holder
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with timing_lock(tmp_path, "cuda:0") as waited_s:
        assert waited_s < 5.0
