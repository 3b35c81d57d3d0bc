"""The demo keeps what the README says of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.door import Alive, Door, budget_s, delivered, events, receipt, teardown_s

LIMIT_S = 75

#: The demo with two of its five backbones and half its time, on a quiet machine.
SHORT = """
from fitwithin.cli import demo, main
demo.MODELS, demo.TIME = ("test_resnet", "test_byobnet"), "{time_s}s"
main.main()
"""
SHORT_S = 36


@pytest.mark.slow
def test_a_shorter_demo_reads_digits_in_its_time(door: Door, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo's digits ship with scikit-learn", exc_type=ImportError)
    out = tmp_path / "demo"
    time_s, begun_at = budget_s(SHORT_S), time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", SHORT.format(time_s=time_s), "demo", "--out", out],
        cwd=door.cwd,
        env=door.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.monotonic() - begun_at
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert wall_s <= time_s + teardown_s()
    read_well(out, ended.stdout, 0.95)


def read_well(out: Path, printed: str, share: float) -> None:
    """The limits were kept, and so many of the digits were told apart."""
    run = out / "run"
    assert printed.splitlines()[-1] == f"Report: {(run / 'report.html').resolve()}"
    assert all(limit["kept"] for limit in receipt(run)["limits"])
    test = delivered(run)["test"]
    assert test["correct"] / test["total"] >= share, test


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_the_demo_reads_digits_in_its_time_and_can_be_repeated(door: Door, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo's digits ship with scikit-learn", exc_type=ImportError)
    out = tmp_path / "demo"
    ended = door.fine("demo", "--out", out)
    assert ended.wall_s <= LIMIT_S + teardown_s()
    read_well(out, ended.out, 0.97)


def test_an_earlier_demo_is_replaced(door: Door, start: Callable[..., Alive], tmp_path: Path) -> None:
    """Seeing that it has begun again is enough."""
    pytest.importorskip("sklearn", reason="the demo's digits ship with scikit-learn", exc_type=ImportError)
    out = tmp_path / "demo"
    (out / "digits").mkdir(parents=True)
    (out / "left-over").write_text("of the first", encoding="utf-8")
    with start("demo", "--out", out) as alive:
        alive.when(lambda: not (out / "left-over").exists() and events(out / "run"), why="it began again")
        alive.kill()
        alive.nothing_left()


def test_the_demo_replaces_nothing_but_a_demo(door: Door, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    ended = door("demo", "--out", tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("fitwithin: ")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
