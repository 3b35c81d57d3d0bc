"""The challenge's entry point: from the challenge's own folder to a row for every test picture, within its time."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fitwithin
from e2e.door import budget_s
from fitwithin.data.sources.door import open_dataset

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "examples" / "rcv2023" / "main.py"

#: Classes that colour alone tells apart; numbers, as in the challenge's tables.
COLOURS = {"0": (200, 40, 40), "17": (40, 200, 40), "99": (40, 40, 200)}


@pytest.fixture(scope="module")
def entry() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rcv2023_main", MAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(path: Path, label: str, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(-30, 31, (40, 40, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(COLOURS[label]) + noise).astype(np.uint8)).save(path)


def challenge_folder(root: Path, *, train: int = 16, val: int = 6, test: int = 5) -> dict[str, str]:
    """The challenge's layout; the true class of each test picture by its image_id."""
    seed = 0
    for split, count in (("train", train), ("val", val)):
        rows = []
        for label in COLOURS:
            for _ in range(count):
                seed += 1
                picture(root / split / f"{split}_{seed:04d}.jpeg", label, seed)
                rows.append((f"{split}_{seed:04d}", label))
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image_id", "class"), *rows])
    truth = {}
    for label in COLOURS:
        for _ in range(test):
            seed += 1
            picture(root / "test" / f"{seed * 7919 % 10007:05d}.jpeg", label, seed)
            truth[f"{seed * 7919 % 10007:05d}"] = label
    return truth


def rows_of(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"image_id", "label"}
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row["label"] for row in rows}


@pytest.mark.slow
def test_an_unattended_run_writes_a_row_for_every_picture(tmp_path: Path) -> None:
    truth = challenge_folder(tmp_path / "data")
    time_s = budget_s(40)
    command = [
        sys.executable,
        str(MAIN),
        "--data_dir",
        "data",
        "--time",
        f"{time_s}s",
        "--memory",
        "1GiB",
        "--device",
        "cpu",
    ]
    command += ["--models", "test_resnet", "--precision", "fp32", "--sizes", "32", "--recipe", "upright"]
    environment = {"FITWITHIN_CACHE": str(tmp_path / "cache"), **os.environ, "PYTHONPATH": str(ROOT / "src")}
    begun_at = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    took_s = time.monotonic() - begun_at
    assert done.returncode == 0, done.stdout + done.stderr
    assert took_s <= time_s, done.stdout
    found = rows_of(tmp_path / "submission.csv")
    assert set(found) == set(truth)
    assert set(found.values()) <= set(COLOURS)
    assert sum(found[name] == label for name, label in truth.items()) > len(truth) / 2
    (receipt,) = tmp_path.glob("rcv2023-*/run/receipt.json")
    limits = {limit["name"]: limit for limit in json.loads(receipt.read_text())["limits"]}
    assert set(limits) == {"memory", "time"}
    assert all(limit["kept"] for limit in limits.values()), limits


def test_the_challenges_folder_becomes_class_folders(tmp_path: Path, entry: ModuleType) -> None:
    truth = challenge_folder(tmp_path / "data")
    dataset = open_dataset(entry.arranged(tmp_path / "data", tmp_path / "links"))
    assert dataset.classes == tuple(sorted(COLOURS))
    assert dataset.counts() == {"train": 48, "val": 18, "test": len(truth)}
    assert all(sample.label == -1 for sample in dataset.samples if sample.split == "test")


def test_class_folders_stay_as_they_are(tmp_path: Path, entry: ModuleType) -> None:
    picture(tmp_path / "train" / "0" / "a.png", "0", 1)
    assert entry.arranged(tmp_path, tmp_path / "links") == tmp_path
    assert not (tmp_path / "links").exists()


def test_a_table_that_names_a_missing_picture_is_refused(tmp_path: Path, entry: ModuleType) -> None:
    challenge_folder(tmp_path / "data")
    next((tmp_path / "data" / "train").iterdir()).unlink()
    with pytest.raises(fitwithin.DataError, match="is not in"):
        entry.arranged(tmp_path / "data", tmp_path / "links")


def test_without_test_pictures_nothing_begins(tmp_path: Path, entry: ModuleType) -> None:
    with pytest.raises(fitwithin.DataError, match="no pictures to predict"):
        entry.test_pictures(tmp_path)


def test_what_the_run_did_not_reach_is_predicted_afterwards(tmp_path: Path, entry: ModuleType) -> None:
    asked = []

    def over() -> list[fitwithin.Prediction]:
        raise fitwithin.UsageError("the run's time was over")

    def predict(paths: list[Path], *, device: str) -> list[fitwithin.Prediction]:
        asked.extend(paths)
        return [fitwithin.Prediction(path=str(path), top=(("17", 0.9),)) for path in paths]

    result = SimpleNamespace(test_predictions=over, predict=predict)
    found = entry.predicted(result, tmp_path, ["a.png", "b.png"], device="cpu", memory="1GiB")
    assert found == {"a.png": "17", "b.png": "17"}
    assert asked == [tmp_path / "test" / "a.png", tmp_path / "test" / "b.png"]


def test_an_unreadable_picture_has_a_row_too(tmp_path: Path, entry: ModuleType) -> None:
    for number in range(3):
        picture(tmp_path / "train" / "99" / f"{number}.png", "99", number)
    picture(tmp_path / "train" / "0" / "0.png", "0", 7)
    result = SimpleNamespace(test_predictions=lambda: [fitwithin.Prediction(path="test/a.png", top=(("0", 0.8),))])
    labels = entry.predicted(result, tmp_path, ["a.png", "broken.png"], device="cpu", memory="1GiB")
    entry.write(labels, tmp_path / "submission.csv", otherwise=entry.commonest_class(tmp_path))
    assert rows_of(tmp_path / "submission.csv") == {"a": "0", "broken": "99"}


def test_pictures_of_one_name_are_told_apart(tmp_path: Path, entry: ModuleType) -> None:
    entry.write({"0/a.png": "0", "17/a.png": "17", "b.png": "99"}, tmp_path / "submission.csv", otherwise="0")
    assert rows_of(tmp_path / "submission.csv") == {"0/a.png": "0", "17/a.png": "17", "b": "99"}
