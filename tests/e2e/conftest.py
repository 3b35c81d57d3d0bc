"""What the end-to-end tests share: one cache of packs and profiles, tiny pictures, a plan and a finished run."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.door import MODELS, SIZES, TINY, Door, Ended, budget_s, write_shapes

#: Of the run that most tests look at, on a quiet machine.
BUDGET_S = 34


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run: its folder, its data, its time budget, and how the command ended."""

    folder: Path
    data: Path
    time_s: float
    ended: Ended


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this process of the test runner."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def common(ground: Path, worker_id: str) -> Path:
    """The folder of all processes of the test runner: the cache, the pictures, the plan and the finished run."""
    folder = ground / "common" if worker_id == "master" else ground.parents[1] / "e2e-common"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def once(path: Path) -> Iterator[bool]:
    """Whether ``path`` must be made: one process makes it inside the block, the others wait for that."""
    done = path.with_name(f"{path.name}.done")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def door(ground: Path, common: Path) -> Door:
    """The command line, with the common cache and a working directory of its own."""
    (ground / "cwd").mkdir()
    return Door(common / "cache", ground / "cwd")


@pytest.fixture(scope="session")
def shapes(common: Path) -> Path:
    """Four classes of sixty pictures."""
    folder = common / "shapes"
    with once(folder) as missing:
        if missing:
            write_shapes(folder, 60)
    return folder


@pytest.fixture(scope="session")
def plan(common: Path, door: Door, shapes: Path) -> Path:
    """A plan of a turn for each of the three tiny models and plenty of time; from here on their profiles are in the
    cache."""
    path = common / "plan.json"
    with once(path) as missing:
        if missing:
            # Time for all three profiles even beside busy neighbours: a run may spend 40 % of its budget on profiling.
            limits = ("--search", "exhaustive", "--time", "150s")
            door.fine("plan", shapes, *TINY, *SIZES, *MODELS, *limits, "--out", path)
    return path


@pytest.fixture(scope="session")
def finished(common: Path, door: Door, shapes: Path, plan: Path) -> Finished:
    """A complete run over the three tiny models."""
    del plan  # its profiles are in the cache
    folder = common / "finished"
    how = common / "finished.json"
    with once(folder) as missing:
        if missing:
            time_s = budget_s(BUDGET_S)
            ended = door.fine("run", shapes, *TINY, *SIZES, *MODELS, "--time", f"{time_s}s", "--out", folder)
            how.write_text(json.dumps([time_s, asdict(ended)]), encoding="utf-8")
    time_s, facts = json.loads(how.read_text(encoding="utf-8"))
    return Finished(folder=folder, data=shapes, time_s=time_s, ended=Ended(**facts))


@pytest.fixture
def start(door: Door, tmp_path: Path) -> Callable[..., Any]:
    """Starts a command that will be killed."""
    from e2e.door import Alive

    def begin(*words: object, through: Door = door) -> Alive:
        return Alive(through, tmp_path / "alive.log", *words)

    return begin
