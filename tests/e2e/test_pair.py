"""A run whose candidate is trained by two processes at once, as a user does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.door import SIZES, TINY, Door, budget_s, delivered, receipt, report, write_shapes


def test_two_processes_share_a_budget_of_gpu_seconds(door: Door, shapes: Path, tmp_path: Path) -> None:
    limit_s, run = budget_s(56), tmp_path / "run"
    asked = ("--models", "test_byobnet", "--gpu-time", f"{limit_s}s", "--data-parallel", "2")
    ended = door.fine("run", shapes, *TINY, *SIZES, *asked, "--out", run)
    assert ended.err == ""
    paper = receipt(run)
    assert {limit["name"] for limit in paper["limits"]} == {"memory", "device time"}
    assert all(limit["kept"] for limit in paper["limits"]), paper["limits"]
    assert paper["balanced"]
    phases = {phase["phase"]: phase for phase in paper["phases"]}
    held = {"profile": 2, "train": 2, "evaluate": 1, "report": 0}
    for phase, gpus in held.items():
        assert phases[phase]["gpu_s"] == pytest.approx(gpus * phases[phase]["spent_s"]), phase
    spent_s = next(limit["spent"] for limit in paper["limits"] if limit["name"] == "device time")
    assert spent_s == pytest.approx(sum(phase["gpu_s"] for phase in paper["phases"]))
    assert spent_s > limit_s / 2, "most of the time is used"
    (row,) = report(run)["candidates"]
    assert row["batch"] % 2 == 0
    assert row["batch_why"].startswith(f"2 processes take {row['batch'] // 2} each; ")
    assert delivered(run)["test"]["correct"] >= 0.8 * 24
    pictures = write_shapes(tmp_path / "new", 2, seed=3)
    assert "8 of 8 images classified" in door.fine("predict", run, pictures, "-o", tmp_path / "x.csv").out


def test_devices_that_are_not_there_are_named(door: Door, shapes: Path, tmp_path: Path) -> None:
    limits = ("--memory", "1GiB", "--time", "60s", "--data-parallel", "2", "--out", tmp_path / "run")
    ended = door("run", shapes, "--device", "cuda", *limits)
    assert ended.code == 2
    assert "no CUDA device" in ended.err
    ended = door("run", shapes, "--device", "cpu", *limits[:-4], "--data-parallel", "0")
    assert ended.code == 2
    assert "--data-parallel 0 is out of range; choose a whole number from 1 to 16" in ended.err
