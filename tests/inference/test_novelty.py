"""Pictures that are unlike all training images: learnt in the evaluation, and told where the model is used."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fitwithin.candidate import Candidate, views_of
from fitwithin.cli.main import app
from fitwithin.data import pack_builder
from fitwithin.data.dataset import LEAST_FAMILIAR, MOST_FAMILIAR, num_familiar
from fitwithin.data.framing import Frame
from fitwithin.data.prefetch import PrefetchLoader
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import EvaluateJob
from fitwithin.engine.results import EVALUATED, NOVELTY, EvalResult
from fitwithin.files import read_json
from fitwithin.inference.ensemble import Ensemble
from fitwithin.inference.model import Model, hand_over
from fitwithin.training import evaluation
from fitwithin.training import model as models
from fitwithin.training.learner import Learner
from simulated.run import on_cpu

counts = st.integers(0, 5_000)


@given(counts, counts, counts)
def test_familiar_images_cost_at_most_a_quarter_of_an_evaluation(n_train: int, n_val: int, passes: int) -> None:
    train, val = num_familiar(n_train, n_val, passes)
    assert train <= min(n_train, MOST_FAMILIAR)
    assert val <= min(n_val, MOST_FAMILIAR)
    assert 4 * (train + val) <= passes
    assert (train, val) == (0, 0) or min(train, val) >= LEAST_FAMILIAR


@given(st.integers(0, 10_000))
def test_the_distance_is_that_of_the_nearest_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, known = rng.normal(size=(5, 7)), rng.normal(size=(9, 7))
    units = known / np.linalg.norm(known, axis=1, keepdims=True)
    found = models.nearest_distance(torch.tensor(rows).float(), torch.tensor(units).float()).tolist()
    for row, distance in zip(rows, found, strict=True):
        angles = [float(row @ one / np.linalg.norm(row) / np.linalg.norm(one)) for one in known]
        assert distance == pytest.approx(1 - max(angles), abs=1e-5)


def test_a_row_of_zeros_is_as_far_as_a_right_angle() -> None:
    assert models.nearest_distance(torch.zeros(1, 3), torch.eye(3)).tolist() == pytest.approx([1.0])


CANDIDATE = Candidate(model="test_efficientnet", train_px=32, precision="fp32")


def noise(seed: int, low: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(low, low + 60, (36, 36, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose model knows noise: dark and bright."""
    return evaluated(tmp_path_factory.mktemp("novelty"))


def evaluated(root: Path) -> Path:
    """Such a folder below ``root``."""
    seed = 0
    for split, count in (("train", 110), ("val", 210)):
        for name, low in (("dark", 60), ("bright", 120)):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count // 2):
                seed += 1
                noise(seed, low).save(folder / f"{number}.png")
    trial = root / "run" / "candidates" / "x"
    trial.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(root / "cache"))
        images = pack_builder.build(open_dataset(root / "data"), 34)
    setting = on_cpu("paper", pack=str(images.folder))
    learner = Learner(setting, CANDIDATE, Cpu())
    card = models.Card(
        model=CANDIDATE.model,
        classes=images.classes,
        train_px=32,
        precision="fp32",
        frame=Frame(0.95),
        arguments=learner.arguments,
    )
    models.save(learner.net, card, trial)
    job = EvaluateJob(
        setting=setting,
        candidate=CANDIDATE,
        batch=32,
        folder=str(trial),
        views=tuple(views_of([24, 32], flips=True)),
        splits=("val",),
        until_at=time.monotonic() + 600,
    )
    rings = evaluation.feeder_rings(CANDIDATE, setting, 32)
    with PrefetchLoader(images, 1, rings, pin=False) as feeder:
        evaluation.Evaluator(Cpu(), feeder).evaluate(job, lambda progress: None)
    return root / "run"


def delivered(run: Path, views: list[int]) -> Model:
    found = read_json(EvalResult, run / "candidates" / "x" / EVALUATED)
    assert found is not None
    ensemble = Ensemble(
        candidate="x",
        trial="candidates/x",
        views=tuple(views_of(views, flips=True)),
        batch=16,
        novelty=found.novelty,
    )
    hand_over(ensemble, run, {})
    return Model(run)


def test_the_evaluation_learns_what_is_familiar(run: Path) -> None:
    found = read_json(EvalResult, run / "candidates" / "x" / EVALUATED)
    assert found is not None
    assert found.novelty is not None
    known = load_file(run / "candidates" / "x" / NOVELTY)["features"].astype(np.float32)
    assert known.shape[0] == num_familiar(110, 210, 4 * 210)[0] == 105
    assert np.linalg.norm(known, axis=1) == pytest.approx(np.ones(105), abs=1e-3)


def test_pictures_of_another_kind_are_novel_and_the_usual_ones_are_not(run: Path) -> None:
    model = delivered(run, [24, 32])
    usual = model.predict([noise(1_000 + seed, low) for seed in range(50) for low in (60, 120)])
    assert np.mean([each.novelty is not None and each.novelty > 1 for each in usual]) <= 0.05
    others = model.predict([Image.new("RGB", (36, 36), colour) for colour in ("red", "lime", "blue")])
    assert all(each.novelty is not None and each.novelty > 1 for each in others)


def test_the_command_warns_of_novel_pictures_and_writes_how_novel_they_are(run: Path, tmp_path: Path) -> None:
    delivered(run, [32])
    noise(2_000, 60).save(tmp_path / "a.png")
    Image.new("RGB", (36, 36), "red").save(tmp_path / "b.png")
    words = ["predict", str(run), str(tmp_path / "a.png"), str(tmp_path / "b.png"), "-o", str(tmp_path / "x.csv")]
    done = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "1 of them is unlike all training images (novelty above 1): do not trust the answer" in done.stderr
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        usual, other = (float(row["novelty"]) for row in csv.DictReader(file))
    assert usual <= 1.2 < other


def test_features_that_are_all_alike_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "nearest_distance", lambda features_BD, known_MD: torch.zeros(len(features_BD)))
    found = read_json(EvalResult, evaluated(tmp_path) / "candidates" / "x" / EVALUATED)
    assert found is not None
    assert found.novelty is None


def test_without_the_training_size_among_the_views_it_is_not_known(run: Path) -> None:
    (found,) = delivered(run, [24]).predict(noise(1, 60))
    assert found.novelty is None


def test_a_copied_model_still_tells(run: Path, tmp_path: Path) -> None:
    delivered(run, [32])
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for file in (run / "model").iterdir():
        if file.is_file():
            (copied / file.name).write_bytes(file.read_bytes())
    (found,) = Model(copied).predict(Image.new("RGB", (36, 36), "red"))
    assert found.novelty is not None
    assert found.novelty > 1
