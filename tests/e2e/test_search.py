"""A search by successive halving through the command line, killed in its first rung and in its final training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e.door import MODELS, TINY, Door, delivered, events, receipt, report

SEARCH_S = 50


def trials(run: Path) -> list[dict[str, Any]]:
    return [body["trial"] for kind, body in events(run) if kind == "trial"]


def ended(run: Path) -> set[str]:
    return {body["name"] for kind, body in events(run) if kind == "turn"}


def test_a_search_killed_twice_ends_within_its_time(
    door: Door, shapes: Path, plan: Path, start: Callable[..., Any], tmp_path: Path
) -> None:
    del plan  # from here on the profiles are in the cache
    run = tmp_path / "run"
    words = (*TINY, "--sizes", "32", "--test-sizes", "32,40", *MODELS, "--search", "halving", "--time", f"{SEARCH_S}s")
    with start("run", shapes, *words, "--out", run) as alive:
        alive.when(lambda: len(ended(run)) == 1 and len(trials(run)) == 2, why="the second trial began")
        spent_s = alive.kill()
        alive.nothing_left()
    first = trials(run)
    with start("resume", run) as alive:
        alive.when(lambda: any(trial["rung"] == -1 for trial in trials(run)), why="the final training began")
        spent_s += alive.kill()
        alive.nothing_left()
    assert trials(run)[:2] == first, "what was asked stays asked"
    last = door.fine("resume", run)
    assert last.err == ""
    paper = receipt(run)
    assert paper["starts"] == 3
    assert paper["balanced"]
    assert all(limit["kept"] for limit in paper["limits"]), paper["limits"]
    assert spent_s + last.wall_s <= SEARCH_S + 1
    found = trials(run)
    assert len({(trial["candidate"]["model"], trial["rung"]) for trial in found}) == len(found), (
        "nothing is tried twice"
    )
    assert [trial["rung"] for trial in found].count(-1) == 1
    winner = next(trial["candidate"]["model"] for trial in found if trial["rung"] == -1)
    assert report(run)["winner"].startswith(winner)
    row = delivered(run)
    assert row["test"]["correct"] / row["test"]["total"] >= 0.5
