"""``fitwithin inspect`` as a user has it: faults in a folder are named, and a run with its list leaves them out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from e2e.door import TINY, Door, budget_s, receipt
from simulated.pictures import CHANGES, jpeg, picture, write

NAME = "test_efficientnet.r160_in1k"

TINTS = {"blue": (0.5, 0.7, 1.3), "red": (1.3, 0.7, 0.5)}


def tinted(name: str, split: str, number: int) -> Image.Image:
    """A picture of a colour, no two alike."""
    seed = 1000 * [*TINTS].index(name) + 100 * ["train", "val", "test"].index(split) + number
    pixels = np.asarray(picture(seed, 80, 64), float) * TINTS[name]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue pictures with a fault of each kind."""
    counts = {"train": 30, "val": 12, "test": 12}
    files = {}
    for split, count in counts.items():
        for name in TINTS:
            for number in range(count):
                files[f"{split}/{name}/{number}.jpg"] = jpeg(tinted(name, split, number))
    files["train/red/copy.jpg"] = files["train/red/1.jpg"]
    files["train/red/mirrored.jpg"] = jpeg(CHANGES["mirrored"](tinted("red", "train", 3)), 70)
    files["test/red/leak.jpg"] = jpeg(CHANGES["crop"](tinted("red", "train", 4)))
    files["train/blue/again.jpg"] = files["train/red/8.jpg"]
    files["train/blue/flipped.jpg"] = jpeg(tinted("red", "train", 90))
    files["train/blue/cut.jpg"] = files["train/blue/2.jpg"][:900]
    files["train/blue/plain.jpg"] = jpeg(Image.new("RGB", (80, 64), (40, 60, 200)))
    return write(tmp_path_factory.mktemp("photos"), files)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn weights, whose features tell colours."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / f"{NAME}.safetensors")
    (folder / "LICENSE").write_text("mit")
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def test_faults_are_named_and_a_run_leaves_them_out(door: Door, photos: Path, weights: Path, tmp_path: Path) -> None:
    before = sorted(path.relative_to(photos) for path in photos.rglob("*"))
    out = tmp_path / "found"
    ended = door.fine("inspect", photos, "--weights", weights, "--licences", "mit", "--device", "cpu", "--out", out)
    assert max(map(len, ended.out.splitlines()[3:])) <= max(80, len(str(out)) + len(str(photos)) + 60)
    listed = {(row["what"], row["path"]): row for row in rows(out / "suspects.csv")}
    assert listed["broken", "train/blue/cut.jpg"]["exclude"] == "yes"
    assert listed["copy", "train/red/copy.jpg"]["other"] == "train/red/1.jpg"
    assert listed["near twin", "train/red/mirrored.jpg"]["exclude"] == "no"
    leak = listed["leak", "train/red/4.jpg"]
    assert (leak["other"], leak["exclude"]) == ("test/red/leak.jpg", "yes")
    assert {path for what, path in listed if what == "two labels"} == {"train/blue/again.jpg", "train/red/8.jpg"}
    assert {path for what, path in listed if what == "label"} in (
        {"train/blue/again.jpg"},
        {"train/blue/again.jpg", "train/blue/flipped.jpg"},
    )
    assert ("odd", "train/blue/plain.jpg") in listed
    told = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert told["labels"]["parts"][0]["leaked"] == 1
    assert told["labels"]["weights"] == [NAME]
    page = (out / "inspect.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= 10
    assert "<script" not in page
    assert sorted(path.relative_to(photos) for path in photos.rglob("*")) == before, "nothing is deleted"
    again = door("inspect", photos, "--out", out)
    assert (again.code, "holds something else" in again.err) == (2, True), "an edited list is kept"

    run = tmp_path / "run"
    options = ("--models", "test_resnet", "--sizes", "32", "--test-sizes", "32", "--init", "random")
    door.fine(
        *("run", photos, *TINY, *options, "--time", f"{budget_s(25)}s", "--out", run),
        *("--exclude", out / "suspects.csv"),
    )
    excluded = sum(row["exclude"] == "yes" for row in listed.values())
    assert receipt(run)["data_excluded"] == f"{excluded} of 115 images are left out by suspects.csv ({excluded} train)"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["data"]["counts"]["train"] == 66 - excluded
    assert report["data"]["fingerprint"] == receipt(run)["data_fingerprint"]


def test_without_weights_it_says_how_to_get_some(door: Door, photos: Path, tmp_path: Path) -> None:
    quick = json.loads(door.fine("inspect", photos, "--quick", "--json", "--out", tmp_path / "a").out)
    assert quick["labels"] is None
    assert quick["labels_why"] == "Labels were not checked, as asked."
    assert quick["facts"]["unreadable"] == 1
    assert {each["what"] for each in quick["suspects"]} == {"broken", "copy", "near twin", "leak", "two labels", "odd"}
    none = door.fine("inspect", photos, "--licences", "no-such-licence", "--out", tmp_path / "b").out
    assert "fitwithin weights pull" in none
