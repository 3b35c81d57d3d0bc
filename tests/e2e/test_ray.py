"""Runs on a Ray cluster from outside: the local engine's winner, and kill -9 of the driver."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.door import SIZES, TINY, Alive, Door, budget_s, phase_of, processes_with, receipt, report, until
from e2e.test_kill import BUDGET_S, excerpt, model_bytes, resumed
from fitwithin.engine.results import CHECKPOINT

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'fitwithin[ray]'")

MARKER = f"FITWITHIN_RAY_TEST={os.urandom(8).hex()}"
STORE = 80 * 2**20
#: What Ray itself leaves for a minute: its agents tell a cluster that is no more of its end.
AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


@pytest.fixture(scope="module")
def short(ground: Path, plan: Path) -> Path:
    """A few seconds of training of one model."""
    return excerpt(plan, ground / "ray-short.json", {"test_byobnet": 90})


@pytest.fixture(scope="module")
def pair(ground: Path, plan: Path) -> Path:
    """A second or two of training of each of two models."""
    return excerpt(plan, ground / "ray-pair.json", {"test_byobnet": 60, "test_efficientnet": 45})


@pytest.fixture(scope="module")
def beside(door: Door) -> Door:
    """The command line, which finds ray where this process does."""
    other = Door(door.cache, door.cwd)
    other.environment["PYTHONPATH"] += os.pathsep + str(Path(ray.__file__).parents[1])
    other.environment["RAY_ADDRESS"] = ""
    return other


@pytest.fixture(scope="module")
def address(beside: Door) -> Iterator[str]:
    """A cluster of a head without cores and two nodes of one core each, to which this process is not connected."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**beside.environment, "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        patch.setenv(*MARKER.split("="))
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=STORE)
            yield cluster.address
        finally:
            cluster.shutdown()


def commands(marker: str) -> list[bytes]:
    """The command lines of the processes with that marker."""
    found = []
    for pid in processes_with(marker):
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def servers() -> list[bytes]:
    """Worker servers and their children on the cluster's nodes."""
    return [command for command in commands(MARKER) if b"fitwithin.worker" in command]


def test_the_local_engines_winner_to_the_byte(
    beside: Door, address: str, shapes: Path, pair: Path, tmp_path: Path
) -> None:
    words = ("run", shapes, "--plan", pair, "--time", f"{BUDGET_S}s")
    beside.fine(*words, "--out", tmp_path / "local")
    ended = beside.fine(*words, "--engine", "ray", "--ray-address", address, "--out", tmp_path / "ray")
    assert ended.err == ""
    assert "(raylet)" not in ended.out
    theirs, ours = report(tmp_path / "local"), report(tmp_path / "ray")
    assert ours["winner"] == theirs["winner"]
    for mine, other in zip(ours["candidates"], theirs["candidates"], strict=True):
        for fact in ("name", "steps", "epochs", "validation", "validations", "reason"):
            assert mine[fact] == other[fact], (mine["name"], fact)
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "local")
    assert ours["methods"] == theirs["methods"]
    paper = receipt(tmp_path / "ray")
    assert paper["balanced"]
    assert all(limit["kept"] for limit in paper["limits"])
    assert paper["device"]["engine"] == "ray"
    until(lambda: not servers(), 5.0, why="the driver has ended, and with it what it started")


@pytest.mark.soak
def test_a_killed_driver_takes_its_tasks_along_and_another_goes_on(
    beside: Door, address: str, start: Callable[..., Alive], shapes: Path, short: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("run", shapes, "--plan", short, "--time", f"{BUDGET_S}s", "--out", run)
    with start(*words, "--engine", "ray", "--ray-address", address, through=beside) as alive:
        alive.when(lambda: any(run.glob(f"candidates/*/{CHECKPOINT}")), why="it trains")
        assert servers()
        killed_s = alive.kill()
        killed_at = time.monotonic()
        until(lambda: not servers(), 10.0, why="the dead driver's tasks went on")
        print(f"the tasks of a killed driver ended within {time.monotonic() - killed_at:.2f} s")
    resumed(beside, run, killed_s)


def test_a_cluster_of_its_own_goes_with_the_driver_and_the_run_goes_on_without_ray(
    beside: Door, start: Callable[..., Alive], shapes: Path, short: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("run", shapes, "--plan", short, "--time", f"{BUDGET_S}s", "--out", run)
    with start(*words, "--engine", "ray", through=beside) as alive:
        alive.when(lambda: phase_of(run) == "train", why="it trains")
        killed_s = alive.kill()
        killed_at = time.monotonic()
        until(
            lambda: not [each for each in commands(alive.marker) if not each.startswith(AGENTS)],
            15.0,
            why="a cluster outlived its driver",
        )
        print(f"a killed driver's own cluster ended within {time.monotonic() - killed_at:.2f} s")
    ended = beside.fine("resume", run, "--engine", "local")
    paper = receipt(run)
    assert paper["starts"] == 2
    assert paper["balanced"]
    spent_s = next(limit["spent"] for limit in paper["limits"] if limit["name"] == "time")
    assert killed_s + ended.wall_s - 1.0 <= spent_s <= BUDGET_S


@pytest.mark.soak
def test_two_candidates_at_once_on_two_nodes(beside: Door, address: str, shapes: Path, tmp_path: Path) -> None:
    """Each is a task of its own; the books count both."""
    run, limit_s = tmp_path / "run", budget_s(38)
    cluster = ("--engine", "ray", "--ray-address", address)
    words = (*TINY, *SIZES, "--models", "test_byobnet,test_efficientnet", *cluster)
    ended = beside.fine("run", shapes, *words, "--gpus", "2", "--time", f"{limit_s}s", "--out", run)
    assert ended.err == ""
    paper = receipt(run)
    assert paper["balanced"]
    assert all(limit["kept"] for limit in paper["limits"]), paper["limits"]
    assert [row["status"] for row in report(run)["candidates"]] == ["trained", "trained"]
    train = next(phase for phase in paper["phases"] if phase["phase"] == "train")
    assert train["entries"] == 3, "the stretch, and two turns beside it"
    assert train["gpu_s"] > 1.5 * train["spent_s"]
    refused = beside("run", shapes, *words, "--gpus", "3", "--time", "30s", "--out", tmp_path / "other")
    assert refused.code == 2
    assert "--gpus 3 was given, but the Ray cluster has 2 CPUs; give --gpus 2, or add nodes" in refused.err
    assert not (tmp_path / "other").exists()
