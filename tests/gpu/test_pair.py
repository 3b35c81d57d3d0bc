"""Two GPUs that train one candidate together. Each test works in fresh processes, as a run does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from test_cuda import GIB, do
from test_cuda import setting as alone

from fitwithin.candidate import Candidate, View
from fitwithin.data.pack import Pack
from fitwithin.engine.jobs import EvaluateJob, JobSettings, ProbeJob, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import EvalResult, Failure, Probe, Progress, TrainResult
from fitwithin.machine import DeviceName, cuda_count

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_count() < 2, reason="fewer than two CUDA devices on this machine"),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Local]:
    with Local(DeviceName(kind="cuda"), gpus=2) as local:
        local.prepare()
        yield local


def setting(images: Pack, *, memory: int = 3 * GIB) -> JobSettings:
    return replace(alone(images, memory=memory), data_parallel=2)


def candidate(precision: str = "amp", model: str = "resnet18") -> Candidate:
    return Candidate(model=model, train_px=64, precision=precision)


def train_job(images: Pack, folder: Path, **changed: object) -> TrainJob:
    job = TrainJob(
        setting=setting(images, memory=3 * GIB),
        candidate=candidate(),
        batch=48,
        steps=60,
        folder=str(folder),
        until_at=time.monotonic() + 90,
        step_s=0.05,
        validation_s=0.5,
        save_s=0.3,
        checkpoint_every_s=30,
    )
    return replace(job, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["amp", "fp32"])
def test_a_pairs_step_is_recorded_with_its_all_reduce_and_timed(engine: Local, images: Pack, precision: str) -> None:
    """The certificate's probe runs both, with NCCL's memory under the cap of each."""
    job = ProbeJob(setting=setting(images), candidate=candidate(precision), batch=8, timed=True)
    probe = do(engine, job)
    assert isinstance(probe, Probe), probe
    assert probe.passed, probe.reason
    assert probe.peak_bytes is not None
    assert 200 * 2**20 < probe.peak_bytes <= 3 * GIB
    assert probe.timing is not None
    assert probe.timing.capture_s > 0, "recorded, not launched kernel by kernel"
    by_itself = do(engine, replace(job, setting=alone(images)))
    assert isinstance(by_itself, Probe), by_itself
    assert probe.non_allocator_bytes > by_itself.non_allocator_bytes, "what NCCL takes is counted"


def test_a_batch_too_large_for_the_cap_fails_with_a_reason(engine: Local, images: Pack) -> None:
    begun_at = time.monotonic()
    probe = do(engine, ProbeJob(setting=setting(images, memory=3 * GIB // 2), candidate=candidate("fp32"), batch=2048))
    assert isinstance(probe, Probe), probe
    assert not probe.passed
    assert "memory" in probe.reason
    assert time.monotonic() - begun_at < 60, "nobody waits for the one that failed"


def test_a_turn_keeps_the_cap_and_leaves_a_model_that_evaluates(engine: Local, images: Pack, tmp_path: Path) -> None:
    trained = do(engine, train_job(images, tmp_path))
    assert isinstance(trained, TrainResult), trained
    assert (trained.ended, trained.steps) == ("complete", 60)
    assert trained.peak_bytes <= 3 * GIB
    assert trained.best is not None
    views = (View(px=64, flip=False),)
    evaluated = do(
        engine,
        EvaluateJob(
            setting=setting(images),
            candidate=candidate(),
            batch=24,
            folder=str(tmp_path),
            views=views,
            splits=("val",),
            until_at=time.monotonic() + 60,
        ),
    )
    assert isinstance(evaluated, EvalResult), evaluated
    assert evaluated.done == (("val", views[0].name),)


def test_what_is_recorded_learns_as_what_is_launched_kernel_by_kernel(
    engine: Local, images: Pack, tmp_path: Path
) -> None:
    found = {}
    for cuda_graph in (True, False):
        # Few steps: rounding, which grows from step to step, must not hide a wrong sum.
        folder = tmp_path / str(cuda_graph)
        job = train_job(images, folder, cuda_graph=cuda_graph, frozen=True, steps=12, candidate=candidate("fp32"))
        trained = do(engine, job)
        assert isinstance(trained, TrainResult), trained
        found[cuda_graph] = mean_loss(trained)
    assert found[True] == pytest.approx(found[False], rel=0.02)


def mean_loss(trained: TrainResult) -> float:
    """Of all steps, however the readings of the curve, whose times differ, divide them."""
    marks = [0, *(point["step"] for point in trained.curve)]
    assert marks[-1] == trained.steps
    return (
        sum(point["loss"] * (to - since) for point, (since, to) in zip(trained.curve, pairwise(marks), strict=True))
        / (marks[-1])
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_ends_both_and_the_turn_goes_on(
    engine: Local, images: Pack, tmp_path: Path, rank: int
) -> None:
    """The other one waits for NCCL on its device, and cannot end by itself."""
    server = engine.server.process.pid

    def workers() -> list[int]:
        return sorted(int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split())

    struck: list[int] = []

    def strike(progress: Progress) -> None:
        if not struck:
            struck.append(workers()[rank])
            os.kill(struck[0], signal.SIGKILL)

    job = train_job(images, tmp_path, steps=10**5, checkpoint_every_s=1.0)
    ended = engine.run(job, until_at=time.monotonic() + 60, on_progress=strike)
    assert isinstance(ended, Failure), ended
    assert ended.kind == "died"
    assert workers() == []
    asked = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    still = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    assert str(struck[0]) not in still
    again = do(engine, replace(job, until_at=time.monotonic() + 15))
    assert isinstance(again, TrainResult), again
    assert again.ended == "shortened"
