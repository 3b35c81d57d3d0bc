"""`fitwithin profile` through the command line: the grid pruned, the knee, the cache, and a team that shares it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.door import Door, budget_s, write_shapes

RECIPE = """
[optimizer]
lr = 4e-3
lr_base_size = 64
weight_decay = 0.01
[augment]
crop_scale = [0.7, 1.0]
crop_ratio = [0.85, 1.18]
flip = 0.0
[evaluate]
crop_pct = 0.95
validate_last_epochs = 1
[plan]
min_epochs = 2
max_batch = 16
precisions = ["amp-bf16", "fp32"]
layouts = ["nchw", "channels_last"]
compare_variants = true
batch = {batch}
"""


@pytest.fixture(scope="module")
def words(ground: Path, shapes: Path) -> list[object]:
    """What all the commands below ask for."""
    recipe = ground / "grid.toml"
    recipe.write_text(RECIPE.replace("{batch}", '"knee"'), encoding="utf-8")
    limits = ("--device", "cpu", "--memory", "1GiB", "--models", "test_resnet", "--sizes", "32", "--recipe", recipe)
    return ["profile", shapes, *limits]


def profiled(door: Door, *words: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(door.fine(*words, "--json").out)
    return found


def test_a_team_profiles_once(ground: Path, door: Door, words: list[object]) -> None:
    mine, theirs = Door(ground / "mine", door.cwd), Door(ground / "theirs", door.cwd)
    found = profiled(mine, *words, "--export", ground / "team.json")
    # The layout is CUDA's: on the CPU there are two variants, and the slower one may be turned away.
    assert {each["candidate"]["precision"] for each in found} == {"amp-bf16", "fp32"}
    kept = [each for each in found if "timing" in each]
    assert kept
    for each in found:
        if "timing" not in each:
            assert "too slow to be profiled" in each["reason"]
            continue
        assert not each["cached"]
        assert each["batch"] <= each["largest"] == 16
        assert str(each["batch"]) in each["timing"]["rates"] or each["batch"] < 16
        assert any(probe["timing"] and probe["timing"]["rates"] for probe in each["probes"])

    again = profiled(mine, *words)
    assert all(each["cached"] for each in again if "timing" in each)
    told = theirs.fine(*words, "--import", ground / "team.json").out
    assert f"{len(kept)} profiles imported; {len(kept)} are of such a machine" in told
    assert "from the cache" in told


def test_other_data_of_the_same_shape_needs_no_profile(ground: Path, door: Door, words: list[object]) -> None:
    other = write_shapes(ground / "same-shape", 60, seed=9)
    first = profiled(door, *words)
    again = profiled(door, "profile", other, *words[2:])
    assert [each["batch"] for each in again if "timing" in each] == [
        each["batch"] for each in first if "timing" in each
    ]
    assert all(each["cached"] for each in again if "timing" in each)


@pytest.mark.soak
def test_a_held_batch_is_accumulated_and_trains(ground: Path, door: Door, shapes: Path) -> None:
    recipe = ground / "held.toml"
    text = (
        RECIPE.replace("{batch}", "24")
        .replace('["amp-bf16", "fp32"]', '["fp32"]')
        .replace("= true\nbatch", "= false\nbatch")
    )
    recipe.write_text(text, encoding="utf-8")
    run = ground / "held-run"
    limits = ("--device", "cpu", "--memory", "1GiB", "--models", "test_resnet", "--sizes", "32", "--recipe", recipe)
    door.fine("run", shapes, *limits, "--time", f"{budget_s(24)}s", "--out", run)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    (row,) = report["candidates"]
    assert row["status"] == "trained"
    assert row["batch"] == 24
    assert "24 images an update are held for all candidates, here in 2 parts of 12" in row["batch_why"]
    assert row["actual_training_s"] > 0
    assert row["predicted_training_s"] > 0
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "steps took" in text


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--import", "absent.json"], ("absent.json", "is no file that `fitwithin profile --export` wrote")),
        (["--export", "no/such/folder/x.json"], ("cannot be written",)),
        (["--emulate-device-memory", "6GiB"], ("--emulate-device-memory is for GPUs",)),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    door: Door, words: list[object], more: list[str], told: tuple[str, ...]
) -> None:
    ended = door(*words, *more)
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1
    for part in told:
        assert part in ended.err
