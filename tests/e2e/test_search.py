"""A search by successive halving through the command line: killed in its first rung and in its final training, and
side by side in two slots, killed with two trials open."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.door import MODELS, TINY, Door, budget_s, delivered, events, receipt, report, teardown_s
from fitwithin.files import decode
from fitwithin.planning.search import Trial

SEARCH_S = 60

#: So many processes are left: two that are killed and one that ends.
LEAVING = 3


def trials(run: Path) -> list[dict[str, Any]]:
    return [body["trial"] for kind, body in events(run) if kind == "trial"]


def ended(run: Path) -> set[str]:
    return {body["name"] for kind, body in events(run) if kind == "trial_ended"}


@pytest.mark.soak
def test_a_search_killed_twice_ends_within_its_time(
    door: Door, shapes: Path, plan: Path, start: Callable[..., Any], tmp_path: Path
) -> None:
    del plan  # from here on the profiles are in the cache
    run, time_s = tmp_path / "run", budget_s(SEARCH_S)
    words = (*TINY, "--sizes", "32", "--test-sizes", "32,40", *MODELS, "--time", f"{time_s}s")
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
    assert spent_s + last.wall_s <= time_s + LEAVING * teardown_s()
    found = trials(run)
    assert len({(trial["candidate"]["model"], trial["rung"]) for trial in found}) == len(found), (
        "nothing is tried twice"
    )
    assert [trial["rung"] for trial in found].count(-1) == 1
    winner = next(trial["candidate"]["model"] for trial in found if trial["rung"] == -1)
    assert report(run)["winner"].startswith(winner)
    row = delivered(run)
    assert row["test"]["correct"] / row["test"]["total"] >= 0.5


#: Of the search in two slots, on a quiet machine.
PAIR_S = 60


def books(run: Path) -> dict[int, dict[str, Any]]:
    """The entries of the ledger: how they were opened, and what they were charged if they are closed."""
    entries: dict[int, dict[str, Any]] = {}
    for kind, body in events(run):
        if kind == "ledger.open":
            entries[body["number"]] = body
        elif kind in ("ledger.settle", "ledger.abandon"):
            entries[body["number"]].update(charged_s=body["charged_s"], abandoned=kind == "ledger.abandon")
    return entries


def asked(run: Path) -> list[Trial]:
    """What the search was asked."""
    return [decode(Trial, trial) for trial in trials(run)]


def at_work(run: Path) -> set[str]:
    """The turns that go on in slots now."""
    return {entry["key"] for entry in books(run).values() if entry["concurrent"] and "charged_s" not in entry}


def test_a_search_in_two_slots_is_killed_and_interrupted_with_two_trials_open(
    door: Door, shapes: Path, plan: Path, start: Callable[..., Any], tmp_path: Path
) -> None:
    del plan  # from here on the profiles are in the cache
    run, time_s = tmp_path / "run", budget_s(PAIR_S)
    words = (*TINY, "--sizes", "32", "--test-sizes", "32,40", *MODELS, "--time", f"{time_s}s")
    with start("run", shapes, *words, "--gpus", "2", "--gpu-time", f"{2 * time_s}s", "--out", run) as alive:
        alive.when(lambda: len(trials(run)) >= 2 and len(at_work(run)) == 2, why="two trials were at work")
        spent_s = alive.kill()
        alive.nothing_left()
    first, still_open = trials(run), at_work(run)
    assert len(still_open) == 2
    with start("resume", run) as alive:
        alive.when(lambda: ended(run) and len(at_work(run) - still_open) == 2, why="two later trials were at work")
        spent_s += alive.interrupt()
        alive.nothing_left()
    assert at_work(run) == set(), "what they took until then is settled"
    between = {trial.name for trial in asked(run)} - ended(run)
    assert len(between) == 2, "and their trials are still open"
    last = door.fine("resume", run)
    assert last.err == ""
    paper = receipt(run)
    assert paper["starts"] == 3
    assert paper["balanced"]
    assert {limit["name"] for limit in paper["limits"]} == {"memory", "time", "device time"}
    assert all(limit["kept"] for limit in paper["limits"]), paper["limits"]
    assert spent_s + last.wall_s <= time_s + LEAVING * teardown_s()

    assert trials(run)[: len(first)] == first, "what was asked stays asked"
    assert {entry["key"] for entry in books(run).values() if entry.get("abandoned")} == {"", *still_open}
    names = [entry["key"] for entry in books(run).values() if entry["concurrent"] and entry["phase"] == "train"]
    assert all(names.count(name) == 2 for name in still_open | between), "they were taken up again"
    assert ended(run) == set(names), "and all came to an end"
    finals = [trial["candidate"]["model"] for trial in trials(run) if trial["rung"] == -1]
    assert len(finals) == 2, "the best two had a slot each"
    assert delivered(run)["test"]["correct"] / delivered(run)["test"]["total"] >= 0.5

    entries = books(run).values()
    spent = {limit["name"]: limit["spent"] for limit in paper["limits"]}
    assert sum(entry["charged_s"] for entry in entries if not entry["concurrent"]) == pytest.approx(spent["time"])
    assert sum(entry["charged_s"] * entry["gpus"] for entry in entries) == pytest.approx(spent["device time"])
    assert sum(phase["spent_s"] for phase in paper["phases"]) == pytest.approx(spent["time"])
    assert sum(phase["gpu_s"] for phase in paper["phases"]) == pytest.approx(spent["device time"])
    train = next(phase for phase in paper["phases"] if phase["phase"] == "train")
    assert train["gpu_s"] > 1.4 * train["spent_s"], "most of the time both were at work"

    shown = json.loads(door.fine("budget", run, "--json").out)
    settled = {account["name"]: account["settled_s"] for account in shown["accounts"]}
    assert settled == pytest.approx({"time": spent["time"], "device time": spent["device time"]})
    assert any(entry["concurrent"] for entry in shown["entries"])


def test_gpus_that_cannot_be_shared_out_are_named(door: Door, shapes: Path, tmp_path: Path) -> None:
    limits = ("--memory", "1GiB", "--time", "60s", "--device", "cpu", "--out", tmp_path / "run")
    ended = door("run", shapes, *limits, "--gpus", "3", "--data-parallel", "2")
    assert (ended.code, ended.out) == (2, "")
    assert "--gpus 3 cannot be divided among candidates that take 2 each" in ended.err
    ended = door("run", shapes, *limits, "--gpus", "0")
    assert ended.code == 2
    assert "--gpus 0 is out of range; choose a whole number from 1 to 64" in ended.err
    assert not (tmp_path / "run").exists()
