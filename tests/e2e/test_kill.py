"""kill -9 at any moment: nothing lives on, and `resume` ends the run within its budget as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.door import (
    CLASSES,
    MODELS,
    SIZES,
    TINY,
    Alive,
    Door,
    budget_s,
    delivered,
    draw,
    events,
    phase_of,
    receipt,
    report,
    teardown_s,
    tree,
)
from fitwithin.engine.results import CHECKPOINT, WEIGHTS

#: Far more than the plans below need, so that a busy machine and a second start fit in.
BUDGET_S = 180

#: Of the run that is profiled anew and started three times, on a quiet machine.
PROFILED_S = 44

ONE = ("--models", "test_byobnet")


def excerpt(plan: Path, to: Path, steps: dict[str, int]) -> Path:
    """The plan cut down to these models and steps: seconds of training, whatever the budget."""
    value = json.loads(plan.read_text(encoding="utf-8"))
    value["trials"] = [turn for turn in value["trials"] if turn["candidate"]["model"] in steps]
    for turn in value["trials"]:
        turn["steps"] = steps[turn["candidate"]["model"]]
    to.write_text(json.dumps(value), encoding="utf-8")
    return to


@pytest.fixture(scope="module")
def short(ground: Path, plan: Path) -> Path:
    """A few seconds of training of one model."""
    return excerpt(plan, ground / "short.json", {"test_byobnet": 120})


@pytest.fixture(scope="module")
def pair(ground: Path, plan: Path) -> Path:
    """A few seconds of training of each of two models."""
    return excerpt(plan, ground / "pair.json", {"test_byobnet": 120, "test_efficientnet": 90})


def resumed(door: Door, run: Path, killed_s: float, *, kills: int = 1, time_s: float = BUDGET_S) -> None:
    """`resume` ends well: a model, balanced books, all processes' time counted; once more, and nothing changes."""
    began_at = time.time()
    ended = door.fine("resume", run)
    told_s = (run / "receipt.json").stat().st_mtime - began_at
    assert ended.err == ""
    paper = receipt(run)
    assert paper["starts"] == kills + 1
    assert paper["balanced"]
    assert paper["finished"]
    assert all(limit["kept"] for limit in paper["limits"]), paper["limits"]
    spent_s = next(limit["spent"] for limit in paper["limits"] if limit["name"] == "time")
    wall_s = killed_s + ended.wall_s
    assert wall_s <= time_s + teardown_s()
    # An abandoned entry is charged its last beat and two seconds, so rather too much than too little. What comes after
    # the receipt is no more than a guess in it.
    assert killed_s + told_s - 1.0 * kills <= spent_s <= wall_s + 3.0 * kills, (killed_s, ended.wall_s, paper["phases"])
    assert sum(phase["spent_s"] for phase in paper["phases"]) == pytest.approx(spent_s)
    row = delivered(run)
    assert row["validation"]["correct"] / row["validation"]["total"] >= 0.5
    assert not [path for path in run.rglob("*") if path.suffix == ".pt" or path.name.endswith(".new")]

    before = {path: seen for path, seen in tree(run).items() if not path.endswith("/lock")}
    again = door.fine("resume", run)
    assert row["candidate"] in again.out
    assert {path: seen for path, seen in tree(run).items() if not path.endswith("/lock")} == before


def predicts(door: Door, run: Path, shapes: Path, out: Path) -> None:
    """The model can be used."""
    door.fine("predict", run, shapes / CLASSES[0], "-o", out)
    with out.open(newline="", encoding="utf-8") as file:
        assert sum(row["class"] == CLASSES[0] for row in csv.DictReader(file)) >= 30


def model_bytes(run: Path) -> dict[str, bytes]:
    """Every candidate's weights."""
    return {path.parent.name: path.read_bytes() for path in sorted(run.glob(f"candidates/*/{WEIGHTS}"))}


#: The end of a run is over too soon to be met from outside: tests/test_faults.py kills there under a simulated clock.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "start-up": lambda run: phase_of(run) == "start-up",
    "train, before its first checkpoint": lambda run: phase_of(run) == "train",
    "train, after its first checkpoint": lambda run: any(run.glob(f"candidates/*/{CHECKPOINT}")),
    "evaluate": lambda run: phase_of(run) == "evaluate",
}


#: In every test run one run is killed at all of them, in `make soak` also a run of its own at each.
SERIES = [list(MOMENTS), *(pytest.param([name], marks=pytest.mark.soak) for name in MOMENTS)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("series", SERIES, ids=["all of them", *MOMENTS])
def test_killed_and_resumed(
    door: Door, start: Callable[..., Alive], shapes: Path, short: Path, tmp_path: Path, series: list[str]
) -> None:
    """One process after the other is killed, each at a later moment; the last one comes to the end."""
    run, time_s = tmp_path / "run", BUDGET_S * (1 + len(series)) / 2
    words: tuple[object, ...] = ("run", shapes, "--plan", short, "--time", f"{time_s}s", "--out", run)
    killed_s = 0.0
    for name in series:
        with start(*words) as alive:
            alive.when(lambda moment=MOMENTS[name]: moment(run), why=name)
            killed_s += alive.kill()
            alive.nothing_left()
        assert not (run / "model" / "ensemble.json").exists()
        words = ("resume", run)
    resumed(door, run, killed_s, kills=len(series), time_s=time_s)
    predicts(door, run, shapes, tmp_path / "x.csv")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Few but large pictures, so that packing takes seconds."""
    for kind in CLASSES:
        folder = tmp_path / "large" / kind
        folder.mkdir(parents=True)
        draw(kind, random.Random(1), 1000).save(folder / "0.png", compress_level=1)
        for number in range(1, 20):
            os.link(folder / "0.png", folder / f"{number}.png")
    return tmp_path / "large"


def copied(source: str, target: str) -> None:
    """A file's copy; none of what another process is just writing under a name that is not for long."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


@pytest.mark.soak
def test_killed_while_packing_and_again_while_profiling(
    door: Door, start: Callable[..., Alive], plan: Path, large: Path, tmp_path: Path
) -> None:
    del plan  # since it was drawn up the cache has what every command needs
    shutil.copytree(
        door.cache, tmp_path / "cache", ignore=shutil.ignore_patterns("packs", "profiles"), copy_function=copied
    )
    door = Door(tmp_path / "cache", tmp_path)
    run, time_s = tmp_path / "run", budget_s(PROFILED_S)
    words = ("run", large, *TINY, *SIZES, *ONE, "--time", f"{time_s}s", "--out", run)
    packs = tmp_path / "cache" / "packs"
    with start(*words, through=door) as alive:
        alive.when(lambda: phase_of(run) == "data" and any(packs.glob("*@*/images.u8")), why="packing")
        killed_s = alive.kill()
        alive.nothing_left()
    assert list(packs.glob("*@*")), "an unfinished pack is left, under a name that nobody takes for a pack"
    assert len(list(packs.iterdir())) == 1

    with start("resume", run, through=door) as alive:
        alive.when(lambda: phase_of(run) == "profile", why="profiling")
        killed_s += alive.kill()
        alive.nothing_left()
    assert not list(packs.glob("*@*")), "the next process cleans up"

    ended = door.fine("resume", run)
    paper = receipt(run)
    assert paper["starts"] == 3
    assert paper["balanced"]
    assert all(limit["kept"] for limit in paper["limits"]), paper["limits"]
    spent_s = next(limit["spent"] for limit in paper["limits"] if limit["name"] == "time")
    assert killed_s + ended.wall_s - 1.0 <= spent_s <= time_s
    assert delivered(run)["validation"] is not None


@pytest.fixture(scope="module")
def contest(ground: Path, door: Door, shapes: Path, plan: Path) -> Path:
    """The plan of a search among three models, whose trials have a few seconds in all."""
    del plan  # from there on the profiles are in the cache
    path = ground / "contest.json"
    door.fine("plan", shapes, *TINY, *SIZES, *MODELS, "--time", "30s", "--out", path)
    assert [len(json.loads(path.read_text(encoding="utf-8"))["search"][name]) for name in ("entrants", "counts")] == [
        3,
        1,
    ]
    return path


def carried_out(door: Door, shapes: Path, plan: Path, run: Path) -> Path:
    """The plan, carried out without interruption."""
    door.fine("run", shapes, "--plan", plan, "--time", f"{BUDGET_S}s", "--out", run)
    assert all("complete" in row["reason"] for row in report(run)["candidates"])
    return run


def _validating(run: Path) -> bool:
    """The first turn has chosen a model by validation, after its checkpoint: it is in its last epochs."""
    return any(
        (folder / WEIGHTS).is_file()
        and (folder / CHECKPOINT).is_file()
        and (folder / WEIGHTS).stat().st_mtime_ns > (folder / CHECKPOINT).stat().st_mtime_ns
        for folder in run.glob("candidates/*")
    )


def _second_trial(run: Path) -> bool:
    """The first trial has ended, the second has its checkpoint."""
    ended = sum(kind == "trial_ended" for kind, _ in events(run))
    return ended == 1 and any(run.glob(f"candidates/*/{CHECKPOINT}"))


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "moment"), [("pair", _validating), ("contest", _second_trial)])
def test_a_frozen_plan_killed_and_resumed_gives_the_same_bytes(
    door: Door,
    start: Callable[..., Alive],
    shapes: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    kind: str,
    moment: Callable[[Path], bool],
) -> None:
    plan = request.getfixturevalue(kind)
    uninterrupted, run = carried_out(door, shapes, plan, tmp_path / "whole"), tmp_path / "run"
    with start("run", shapes, "--plan", plan, "--time", f"{BUDGET_S}s", "--out", run) as alive:
        alive.when(lambda: moment(run), why=moment.__name__)
        killed_s = alive.kill()
        alive.nothing_left()
    resumed(door, run, killed_s)
    theirs, ours = report(uninterrupted), report(run)
    assert ours["winner"] == theirs["winner"]
    for mine, other in zip(ours["candidates"], theirs["candidates"], strict=True):
        for fact in ("name", "steps", "epochs", "validation", "validations", "reason"):
            assert mine[fact] == other[fact], (mine["name"], fact)
    assert model_bytes(run) == model_bytes(uninterrupted)
    assert ours["methods"] == theirs["methods"]
