"""A start from pretrained weights, as a user does it: a folder of weights, a plan, an interrupt, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from e2e.conftest import once
from e2e.door import CLASSES, SIZES, TINY, Alive, Door, budget_s, delivered, draw, events, receipt, report

NAME = "test_efficientnet.r160_in1k"


@pytest.fixture(scope="module")
def weights(common: Path) -> Path:
    """A folder with weights of a tiny model: drawn ones, whose features are good enough to tell shapes by colour."""
    folder = common / "weights"
    with once(folder) as missing:
        if missing:
            folder.mkdir()
            torch.manual_seed(0)
            save_file(timm.create_model("test_efficientnet").state_dict(), folder / f"{NAME}.safetensors")
            (folder / "LICENSE").write_text("mit")
    return folder


@pytest.fixture(scope="module")
def words(weights: Path) -> tuple[object, ...]:
    return (*TINY, *SIZES, "--models", "test_efficientnet", "--weights", weights, "--init", "weights")


def test_a_run_starts_from_the_weights_in_a_folder(
    door: Door, shapes: Path, words: tuple[object, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = door.fine("run", shapes, *words, "--time", f"{budget_s(25)}s", "--out", run)
    assert f"starts from {NAME} (mit" in ended.out
    paper, made = receipt(run), report(run)
    assert all(limit["kept"] for limit in paper["limits"])
    assert (paper["weights"]["name"], paper["weights"]["licence"]) == (NAME, "mit")
    assert len(paper["weights"]["sha256"]) == 64
    assert paper["weights"]["linear"]["correct"] > paper["weights"]["linear"]["total"] / len(CLASSES)
    assert "linear probe" in {phase["phase"] for phase in paper["phases"]}
    assert made["pretrained"][0]["tuned"]
    row = delivered(run)
    assert row["validation"]["correct"] >= paper["weights"]["linear"]["correct"], "never worse than the linear head"
    card = json.loads(next(run.glob("candidates/*/config.json")).read_text(encoding="utf-8"))
    assert card["pretrained_cfg"]["mean"] == pytest.approx(timm.models.get_pretrained_cfg(NAME).mean)
    assert f'base_model: "timm/{NAME}"' in (run / "model" / "README.md").read_text(encoding="utf-8")
    picture = tmp_path / "picture.png"
    draw("red-square", random.Random(5), 40).save(picture)
    door.fine("predict", run, picture, "-o", tmp_path / "predictions.csv")
    assert any(name in (tmp_path / "predictions.csv").read_text(encoding="utf-8") for name in CLASSES)


def test_a_plan_is_carried_out_from_the_same_weights(
    door: Door, shapes: Path, words: tuple[object, ...], tmp_path: Path
) -> None:
    plan, run = tmp_path / "plan.json", tmp_path / "run"
    said = door.fine("plan", shapes, *words, "--time", f"{budget_s(40)}s", "--out", plan)
    assert NAME in said.out
    assert [one["init"] for one in json.loads(plan.read_text(encoding="utf-8"))["probed"]] == [NAME]
    assert not list(door.cwd.glob("candidates")), "a plan leaves no models behind"
    door.fine("run", shapes, "--plan", plan, "--out", run)
    assert receipt(run)["weights"]["name"] == NAME


@pytest.fixture
def killed(door: Door, shapes: Path, words: tuple[object, ...], tmp_path: Path) -> Path:
    """A run that was killed right after its linear probe."""
    run = tmp_path / "run"
    with Alive(door, tmp_path / "log", "run", shapes, *words, "--time", f"{budget_s(40)}s", "--out", run) as alive:
        alive.when(lambda: run.is_dir() and any(kind == "start_from" for kind, _ in events(run)))
        alive.kill()
    return run


def test_a_run_that_was_killed_goes_on_from_its_linear_head(door: Door, killed: Path) -> None:
    door.fine("resume", killed)
    assert sum(kind == "linear_probe" for kind, _ in events(killed)) == 1
    assert receipt(killed)["weights"]["name"] == NAME


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--init", "weights", "--recipe", "paper"), "recipe 'paper' always starts from random weights"),
        (("--init", "random", "--weights", "."), "--init random is for drawn ones"),
        (("--init", "both"), "'both' is not a start"),
        (("--init", "weights", "--scope", "candidate"), "--scope total"),
        (("--licences", ","), "no licence was given"),
    ],
)
def test_what_does_not_go_together_is_refused(door: Door, shapes: Path, words: tuple[str, ...], said: str) -> None:
    ended = door.forked("run", shapes, "--device", "cpu", "--memory", "1GiB", "--time", "30s", *words)
    assert ended.code == 2
    assert said in ended.err


def test_weights_whose_licence_is_not_permitted_are_named_with_the_way_out(
    door: Door, shapes: Path, weights: Path, tmp_path: Path
) -> None:
    other = tmp_path / "weights"
    other.mkdir()
    (other / f"{NAME}.safetensors").write_bytes((weights / f"{NAME}.safetensors").read_bytes())
    (other / "LICENSE").write_text("cc-by-nc-4.0")
    words = (*TINY, *SIZES, "--models", "test_efficientnet", "--weights", other, "--time", "60s")
    ended = door("run", shapes, *words, "--out", tmp_path / "run")
    assert ended.code == 2
    assert "--licences permissive,cc-by-nc-4.0" in ended.out + ended.err
    assert "there are no pretrained weights that may be used" in ended.err
    assert not (tmp_path / "run").exists()


def test_weights_that_are_cut_short_are_left_out_with_the_reason(
    door: Door, shapes: Path, weights: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "weights"
    broken.mkdir()
    (broken / f"{NAME}.safetensors").write_bytes((weights / f"{NAME}.safetensors").read_bytes()[:-1000])
    words = (*TINY, *SIZES, "--models", "test_efficientnet", "--weights", broken, "--time", "60s")
    ended = door("run", shapes, *words, "--out", tmp_path / "run")
    assert ended.code == 2
    assert "cut short" in ended.err
