"""A start from pretrained weights on a real GPU: linear probe, fine-tuning and evaluation within the cap."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate
from fitwithin.data.pack import Pack
from fitwithin.engine.jobs import Job, JobSettings, LinearProbeJob, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import LINEAR, LinearProbe, TrainResult
from fitwithin.machine import DeviceName, cuda_count
from simulated.weights import drawn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_count() == 0, reason="no CUDA device on this machine"),
]

GIB = 2**30
NAME = "test_efficientnet.r160_in1k"


@pytest.fixture(scope="module")
def setting(images: Pack, tmp_path_factory: pytest.TempPathFactory) -> JobSettings:
    """The images, and drawn weights in a file."""
    return JobSettings(
        device=DeviceName(kind="cuda"),
        memory_bytes=2 * GIB,
        accounting="process",
        pack=str(images.folder),
        classes=3,
        recipe=recipes.load("transfer"),
        view_sizes=(64,),
        seed=0,
        workers=4,
        canvas_px=72,
        weights=(drawn(NAME, tmp_path_factory.mktemp("weights")),),
    )


def do(engine: Local, job: Job) -> object:
    return engine.run(job, until_at=time.monotonic() + 120, on_progress=lambda progress: None)


@pytest.mark.parametrize("precision", ["amp-bf16", "amp", "fp32"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_linear_probe_and_fine_tuning_keep_the_cap(
    engine: Local, setting: JobSettings, tmp_path: Path, precision: str, cuda_graph: bool
) -> None:
    candidate = Candidate(model="test_efficientnet", train_px=64, precision=precision, init=NAME)
    found = do(
        engine,
        LinearProbeJob(
            setting=setting,
            candidates=(candidate,),
            batch=32,
            folder=str(tmp_path),
            features=str(tmp_path / "features"),
            most_images=1000,
            all_within_s=30.0,
            until_at=time.monotonic() + 60,
        ),
    )
    assert isinstance(found, LinearProbe), found
    assert found.peak_bytes <= 2 * GIB
    assert found.correct > 6, "drawn features tell the colours apart"
    trained = do(
        engine,
        TrainJob(
            setting=setting,
            candidate=candidate,
            batch=24,
            steps=40,
            folder=str(tmp_path / "tuned"),
            init_from=str(tmp_path / f"{candidate.name}-{LINEAR}"),
            until_at=time.monotonic() + 60,
            step_s=0.05,
            validation_s=0.5,
            save_s=0.3,
            checkpoint_every_s=30,
            cuda_graph=cuda_graph,
        ),
    )
    assert isinstance(trained, TrainResult), trained
    assert trained.peak_bytes <= 2 * GIB
    assert trained.best is not None
    assert trained.best >= found.correct - 2


def test_a_size_is_chosen_by_its_pace(engine: Local, setting: JobSettings, tmp_path: Path) -> None:
    some = [
        Candidate(model="test_efficientnet", train_px=px, precision=word, init=NAME)
        for px in (64, 96)
        for word in ("amp", "fp32")
    ]
    job = LinearProbeJob(
        setting=replace(setting, view_sizes=(96,)),
        candidates=tuple(some),
        batch=32,
        folder=str(tmp_path),
        features=str(tmp_path / "features"),
        most_images=1000,
        all_within_s=30.0,
        until_at=time.monotonic() + 60,
    )
    found = do(engine, job)
    assert isinstance(found, LinearProbe), found
    assert found.candidate.train_px == 96
