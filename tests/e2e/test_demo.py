"""The demo keeps what the README says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.door import TEARDOWN_S, Door, delivered, receipt

LIMIT_S = 75


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_reads_digits_in_its_time_and_can_be_repeated(door: Door, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo's digits ship with scikit-learn", exc_type=ImportError)
    out = tmp_path / "demo"
    ended = door.fine("demo", "--out", out)
    assert ended.wall_s <= LIMIT_S + TEARDOWN_S
    run = out / "run"
    assert ended.out.splitlines()[-1] == f"Report: {(run / 'report.html').resolve()}"
    assert all(limit["kept"] for limit in receipt(run)["limits"])
    test = delivered(run)["test"]
    assert test["correct"] / test["total"] >= 0.97, test

    # An earlier demo is replaced; seeing that it has begun again is enough.
    from e2e.door import Alive, events

    (out / "left-over").write_text("of the first", encoding="utf-8")
    with Alive(door, tmp_path / "alive.log", "demo", "--out", out) as alive:
        alive.when(lambda: not (out / "left-over").exists() and events(run), why="it began again")
        alive.kill()
        alive.nothing_left()


def test_the_demo_replaces_nothing_but_a_demo(door: Door, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    ended = door("demo", "--out", tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("fitwithin: ")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
