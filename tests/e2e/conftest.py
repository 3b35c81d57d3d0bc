"""What the end-to-end tests share: one cache of packs and profiles, tiny pictures, a plan and a finished run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.door import MODELS, SIZES, TINY, Door, Ended, write_shapes

#: Of the run that most tests look at.
BUDGET_S = 34


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run: its folder, its data, and how the command ended."""

    folder: Path
    data: Path
    ended: Ended


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that everything lies in."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def door(ground: Path) -> Door:
    """The command line, with the session's cache and a working directory of its own."""
    (ground / "cwd").mkdir()
    return Door(ground / "cache", ground / "cwd")


@pytest.fixture(scope="session")
def shapes(ground: Path) -> Path:
    """Four classes of sixty pictures."""
    return write_shapes(ground / "shapes", 60)


@pytest.fixture(scope="session")
def plan(ground: Path, door: Door, shapes: Path) -> Path:
    """A plan of a turn for each of the three tiny models and plenty of time; from here on their profiles are in the
    cache."""
    path = ground / "plan.json"
    # Time for all three profiles even beside busy neighbours: a run may spend 40 % of its budget on profiling.
    door.fine("plan", shapes, *TINY, *SIZES, *MODELS, "--search", "exhaustive", "--time", "150s", "--out", path)
    return path


@pytest.fixture(scope="session")
def finished(ground: Path, door: Door, shapes: Path, plan: Path) -> Finished:
    """A complete run over the three tiny models."""
    folder = ground / "finished"
    ended = door.fine("run", shapes, *TINY, *SIZES, *MODELS, "--time", f"{BUDGET_S}s", "--out", folder)
    return Finished(folder=folder, data=shapes, ended=ended)


@pytest.fixture
def start(door: Door, tmp_path: Path) -> Callable[..., Any]:
    """Starts a command that will be killed."""
    from e2e.door import Alive

    def begin(*words: object, through: Door = door) -> Alive:
        return Alive(through, tmp_path / "alive.log", *words)

    return begin
