"""One suite for every engine: the simulated one by a law; on this machine's CPU (marked slow) the local and Ray's."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from e2e.door import until
from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate, View, by_size, views_of
from fitwithin.data import pack, pack_builder
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.base import Engine
from fitwithin.engine.connect import Site
from fitwithin.engine.jobs import EvaluateJob, JobSettings, LinearProbeJob, ProbeJob, TrainJob
from fitwithin.engine.launch import Server
from fitwithin.engine.local import Local
from fitwithin.engine.results import (
    CARD,
    EVALUATED,
    LINEAR,
    OUTCOME,
    WEIGHTS,
    EvalResult,
    Failure,
    LinearProbe,
    Probe,
    Progress,
    TrainResult,
    logits_path,
    read_logits,
)
from fitwithin.files import read_json
from fitwithin.machine import CPU, DeviceName
from fitwithin.request import parse
from fitwithin.weights.find import Weights
from simulated.engine import Simulated
from simulated.law import Fault, SimulatedMachine
from simulated.run import CountedImages
from simulated.weights import drawn

MIB = 2**20
CANDIDATE = Candidate(model="test_resnet", train_px=32, precision="fp32")
COUNTS = (60, 18, 18)  # train, val, test


@dataclass
class Bench:
    """An engine, the setting its jobs share, and caps: one that is ample for a batch of 4, one that is not."""

    engine: Any
    setting: JobSettings
    too_little_bytes: int

    def probe(
        self, batch: int = 4, *, timed: bool = False, quick: bool = False, until_s: float = 60.0, **changes: Any
    ) -> Any:
        setting = replace(self.setting, **changes)
        job = ProbeJob(setting=setting, candidate=CANDIDATE, batch=batch, timed=timed, quick=quick)
        return self.engine.run(job, until_at=self.engine.now() + until_s, on_progress=lambda progress: None)

    def train_job(self, folder: Path, steps: int) -> TrainJob:
        return TrainJob(
            setting=self.setting,
            candidate=CANDIDATE,
            batch=4,
            steps=steps,
            folder=str(folder),
            until_at=self.engine.now() + 60.0,
            step_s=0.02,
            validation_s=0.2,
            save_s=0.05,
            checkpoint_every_s=30.0,
        )

    def train(self, folder: Path, steps: int, *, until_s: float = 60.0, told: list[Progress] | None = None) -> Any:
        """What comes of a trial that believes it has a minute."""
        seen = told if told is not None else []
        until_at = self.engine.now() + until_s
        return self.engine.run(self.train_job(folder, steps), until_at=until_at, on_progress=seen.append)


def setting(device: DeviceName, folder: Path) -> JobSettings:
    return JobSettings(
        device=device,
        memory_bytes=900 * MIB,
        accounting="process",
        pack=str(folder),
        classes=3,
        recipe=recipes.load("paper"),
        view_sizes=(32, 48),
        seed=0,
        workers=1,
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ninety-six images of coloured noise, packed; the environment that engines are started in."""
    root = tmp_path_factory.mktemp("engine")
    rng = np.random.default_rng(0)
    for split, count in zip(("train", "val", "test"), COUNTS, strict=True):
        for i in range(count):
            pixels = rng.integers(0, 128, (40, 40, 3), dtype=np.uint8)
            pixels[..., i % 3] += 127
            folder = root / "data" / split / "rgb"[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(root / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")  # beside another busy process two threads are far slower than one
        yield pack_builder.build(open_dataset(root / "data"), 52).folder


@pytest.fixture(scope="module")
def local(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A server that has imported torch and timm."""
    with Local(CPU, tmp_path_factory.mktemp("local") / "worker.log") as engine:
        engine.prepare()
        yield Bench(engine, setting(CPU, packed), too_little_bytes=2 * MIB)


@pytest.fixture(scope="module")
def ray(packed: Path) -> Iterator[Bench]:
    """A Ray cluster of this machine alone, which begins and ends with the fixture."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fitwithin[ray]'")
    with Server() as server, Site("ray", "local", server) as site:
        request = parse("nowhere", memory=1, time=1, device=site.device("cpu"), engine="ray")
        with site.open(request, None) as engine:
            yield Bench(engine, setting(CPU, packed), too_little_bytes=2 * MIB)


@pytest.fixture(params=["simulated", *(pytest.param(name, marks=pytest.mark.slow) for name in ("local", "ray"))])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param != "simulated":
        return request.getfixturevalue(request.param)
    law = SimulatedMachine(startup_s=0.5, warmup_s=0.2, image_s=1e-2, fixed_bytes=100 * MIB)
    engine = Simulated(law, CountedImages(counts=COUNTS, k=3))
    return Bench(engine, setting(CPU, Path("/nowhere")), too_little_bytes=101 * MIB)


def test_it_describes_what_decides_speed_and_memory(bench: Bench) -> None:
    facts = bench.engine.describe()
    assert {"device", "name"} <= set(facts)
    assert facts == bench.engine.describe()


def test_its_clock_does_not_go_backwards(bench: Bench) -> None:
    assert bench.engine.now() <= bench.engine.now()


@pytest.mark.parametrize("quick", [False, True])
def test_a_small_batch_passes_and_is_timed(bench: Bench, quick: bool) -> None:
    begun_at = bench.engine.now()
    found = bench.probe(timed=True, quick=quick)
    took_s = bench.engine.now() - begun_at
    assert isinstance(found, Probe), found
    assert found.passed, found.reason
    assert found.parameters > 0
    assert 0 < found.peak_bytes <= bench.setting.memory_bytes
    assert 0 < found.wall_s <= took_s
    timing = found.timing
    assert timing is not None
    assert 0 < timing.step_low_s <= timing.step_s <= timing.step_high_s
    assert set(timing.eval_image_s) == {32, 48}
    assert 0 < timing.startup_s <= took_s
    assert all(
        value >= 0 for value in (timing.warmup_s, *timing.eval_first_s.values(), timing.save_s, timing.dummy_step_s)
    )


@pytest.mark.parametrize("timed", [False, True])
def test_a_step_that_resizes_what_lies_on_canvases_is_probed_as_it_trains(local: Bench, timed: bool) -> None:
    """As a GPU's step does, with the sizes of progressive resizing."""
    recipe = replace(local.setting.recipe, progressive_resizing=((0.0, 0.7), (0.5, 1.0)))
    setting = replace(local.setting, recipe=recipe, canvas_px=56)
    job = ProbeJob(setting=setting, candidate=replace(CANDIDATE, train_px=48), batch=4, timed=timed)
    found = local.engine.run(job, until_at=local.engine.now() + 60.0, on_progress=lambda progress: None)
    assert isinstance(found, Probe), found
    assert found.passed, found.reason
    assert (found.timing is not None) == timed
    if found.timing is not None:
        assert list(found.timing.stage_step_s) == [32]
        assert min(found.timing.loader_step_s, found.timing.dummy_step_s) > 0


def test_a_scout_sees_a_second_point(bench: Bench) -> None:
    job = ProbeJob(setting=bench.setting, candidate=CANDIDATE, batch=4, scout=True, limit=24)
    found = bench.engine.run(job, until_at=bench.engine.now() + 60, on_progress=lambda progress: None)
    assert isinstance(found, Probe), found
    assert found.passed, found.reason
    assert found.batch == 4
    ((batch, peak_bytes),) = found.scouted
    assert 8 <= batch <= 24
    assert found.peak_bytes is not None
    assert found.peak_bytes <= peak_bytes <= bench.setting.memory_bytes


def test_a_cap_that_is_too_small_fails_without_harm(bench: Bench) -> None:
    found = bench.probe(batch=64, memory_bytes=bench.too_little_bytes)
    if isinstance(found, Probe):
        assert not found.passed
        assert found.peak_bytes is None or found.peak_bytes <= bench.too_little_bytes
        assert not found.fatal
    else:
        assert found.kind in ("memory", "died")
    assert found.reason
    again = bench.probe()
    assert isinstance(again, Probe), again
    assert again.passed, again.reason


def test_training_leaves_a_model_and_tells_how_it_goes(bench: Bench, tmp_path: Path) -> None:
    told: list[Progress] = []
    steps = 60  # four epochs of 15 steps
    done = bench.train(tmp_path, steps, told=told)
    assert isinstance(done, TrainResult), done
    assert (done.ended, done.steps) == ("complete", steps)
    assert done.epochs == steps * 4 / COUNTS[0]
    assert [v["step"] for v in done.validations] == [30, 45, 60]
    assert done.best == max(v["accuracy"]["correct"] for v in done.validations)
    assert done.curve[-1]["lr"] == 0.0
    assert done.curve[-1]["step"] == steps
    assert 0 < done.peak_bytes <= bench.setting.memory_bytes
    assert told
    assert all(0 < progress.step <= progress.total == steps for progress in told)
    assert {WEIGHTS, CARD, OUTCOME} <= {path.name for path in tmp_path.iterdir()}
    length = struct.unpack("<Q", (tmp_path / WEIGHTS).read_bytes()[:8])[0]
    assert 0 < length < (tmp_path / WEIGHTS).stat().st_size  # a safetensors header

    begun_at = bench.engine.now()
    assert bench.train(tmp_path, steps) == done, "a finished trial is told again, not trained again"
    assert bench.engine.now() - begun_at < 10

    views = tuple(views_of((32, 48), flips=True))
    job = EvaluateJob(
        setting=bench.setting,
        candidate=CANDIDATE,
        batch=4,
        folder=str(tmp_path),
        views=views,
        splits=("val", "test"),
        until_at=bench.engine.now() + 60,
    )
    evaluated = bench.engine.run(job, until_at=job.until_at + 1, on_progress=told.append)
    assert isinstance(evaluated, EvalResult), evaluated
    sizes = by_size(views, CANDIDATE.train_px)
    assert evaluated.done == tuple(
        (split, view.name) for same in sizes for split in ("val", "test") for view in same
    ), "size by size, each view on both splits, and test once"
    assert set(evaluated.ms_per_image) == {view.name for view in views}
    assert all(0 < ms < 1e4 for ms in evaluated.ms_per_image.values())
    for split, count in (("val", COUNTS[1]), ("test", COUNTS[2])):
        for view in views:
            logits = read_logits(tmp_path, split, view)
            assert logits.shape == (count, 3)
            assert np.isfinite(logits).all()
    plain = read_logits(tmp_path, "val", views[0])
    right = int((plain.argmax(axis=1) == _labels(bench)).sum())
    assert right == done.best, "the plain view at the training size is what validation saw"

    kept = read_json(EvalResult, tmp_path / EVALUATED)
    assert kept is not None
    assert kept.done == evaluated.done
    half = json.dumps(asdict(replace(kept, done=kept.done[:4])))
    (tmp_path / EVALUATED).write_text(half, encoding="utf-8")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("logits-*.npy")}
    told.clear()
    again = bench.engine.run(
        replace(job, until_at=bench.engine.now() + 60), until_at=bench.engine.now() + 61, on_progress=told.append
    )
    assert isinstance(again, EvalResult), again
    assert again.done == evaluated.done
    anew = {path for path, at in written.items() if path.stat().st_mtime_ns != at}
    later = {logits_path(tmp_path, split, view) for split in ("val", "test") for view in sizes[1]}
    assert anew == later, "what a process before was done with is not done again"


def _labels(bench: Bench) -> Any:
    images = bench.engine.images if isinstance(bench.engine, Simulated) else pack.open_pack(Path(bench.setting.pack))
    return images.labels[images.indices("val")]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return drawn("test_resnet.r160_in1k", tmp_path_factory.mktemp("weights"))


def linear_probe(bench: Bench, weights: Weights, folder: Path, **changes: Any) -> Any:
    job = LinearProbeJob(
        setting=replace(bench.setting, weights=(weights,)),
        candidates=(replace(CANDIDATE, init=weights.name),),
        batch=4,
        folder=str(folder),
        features=str(folder / "features"),
        most_images=COUNTS[0],
        all_within_s=30.0,
        until_at=bench.engine.now() + 60.0,
    )
    job = replace(job, **changes)
    return bench.engine.run(job, until_at=job.until_at, on_progress=lambda progress: None)


def test_a_linear_probe_leaves_a_model_that_is_right_as_often_as_it_says(
    bench: Bench, pretrained: Weights, tmp_path: Path
) -> None:
    found = linear_probe(bench, pretrained, tmp_path, evaluates=True)
    assert isinstance(found, LinearProbe), found
    assert found.images == COUNTS[0]
    assert 0 < found.peak_bytes <= bench.setting.memory_bytes
    folder = tmp_path / f"{found.candidate.name}-{LINEAR}"
    assert (folder / CARD).is_file()
    assert (folder / WEIGHTS).is_file()
    there = read_json(EvalResult, folder / EVALUATED)
    assert there is not None
    assert there.done == (("val", "32 px"), ("test", "32 px"))
    assert there.ms_per_image["32 px"] > 0
    own = {split: read_logits(folder, split, View(px=32, flip=False)) for split in ("val", "test")}
    (folder / EVALUATED).unlink()
    evaluation = EvaluateJob(
        setting=replace(bench.setting, weights=(pretrained,)),
        candidate=found.candidate,
        batch=4,
        folder=str(folder),
        views=tuple(views_of((32,), flips=False)),
        splits=("val", "test"),
        until_at=bench.engine.now() + 60.0,
    )
    done = bench.engine.run(evaluation, until_at=evaluation.until_at, on_progress=lambda progress: None)
    assert isinstance(done, EvalResult), done
    for split, rows in own.items():
        np.testing.assert_allclose(rows, read_logits(folder, split, evaluation.views[0]), atol=0.02)
    if not isinstance(bench.engine, Simulated):
        images = pack.open_pack(Path(bench.setting.pack))
        logits = read_logits(folder, "val", evaluation.views[0])
        assert (logits.argmax(axis=1) == images.labels[images.indices("val")]).sum() == found.correct
        assert found.correct > COUNTS[1] / 2, "even drawn features tell red from green and blue"
        assert found.pixels_correct == COUNTS[1], "the colours differ most of all"


@pytest.mark.slow
def test_features_are_computed_once(local: Bench, pretrained: Weights, tmp_path: Path) -> None:
    first = linear_probe(local, pretrained, tmp_path, most_images=30)
    more = linear_probe(local, pretrained, tmp_path)
    again = linear_probe(local, pretrained, tmp_path)
    assert (first.cached, more.cached, again.cached) == (0, 30 + COUNTS[1], COUNTS[0] + COUNTS[1])
    assert again.correct == more.correct
    other = linear_probe(local, replace(pretrained, sha256="f" * 64), tmp_path)
    assert other.cached == 0, "another file of weights has features of its own"


def test_a_linear_probe_takes_a_size_that_it_has_time_for(bench: Bench, pretrained: Weights, tmp_path: Path) -> None:
    sizes = [replace(CANDIDATE, init=pretrained.name, train_px=px) for px in (32, 48)]
    ample = linear_probe(bench, pretrained, tmp_path, candidates=tuple(sizes))
    scarce = linear_probe(bench, pretrained, tmp_path, candidates=tuple(sizes), all_within_s=0.0)
    assert (ample.candidate.train_px, scarce.candidate.train_px) == (48, 32)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused_by_a_sentence(local: Bench, pretrained: Weights, tmp_path: Path) -> None:
    found = linear_probe(
        local, pretrained, tmp_path, candidates=(replace(CANDIDATE, model="test_vit", init=pretrained.name),)
    )
    assert isinstance(found, Failure)
    assert found.kind == "error"
    assert "holds weights of another model" in found.reason


def test_a_job_beyond_its_end_is_a_deadline_and_returns_in_time(bench: Bench, tmp_path: Path) -> None:
    """The worker believes it has a minute; the engine ends it after two seconds."""
    begun_at = bench.engine.now()
    ended = bench.train(tmp_path, 10**6, until_s=2.0)
    took_s = bench.engine.now() - begun_at
    assert isinstance(ended, Failure), ended
    assert ended.kind == "deadline"
    assert 2.0 <= took_s < 2.6


def test_a_trial_that_knows_its_end_leaves_in_time(bench: Bench, tmp_path: Path) -> None:
    now = bench.engine.now()
    job = replace(bench.train_job(tmp_path, 10**6), until_at=now + 7.0)
    done = bench.engine.run(job, until_at=now + 9.0, on_progress=lambda progress: None)
    assert isinstance(done, TrainResult), done
    assert bench.engine.now() <= now + 8.0
    assert done.ended == "shortened"
    assert done.curve[-1]["lr"] == 0.0
    assert (tmp_path / WEIGHTS).is_file()


def test_an_end_in_the_past_is_a_deadline(bench: Bench, tmp_path: Path) -> None:
    ended = bench.train(tmp_path, 10, until_s=-1.0)
    assert isinstance(ended, Failure)
    assert ended.kind == "deadline"


def both_at_work(bench: Bench, folder: Path) -> None:
    """Two jobs wait for each other's first word, so that each has a worker that has imported all it needs."""
    meeting = threading.Barrier(2, timeout=60)

    def train(name: str) -> None:
        meet = iter([meeting.wait])
        bench.engine.run(
            bench.train_job(folder / name, 200),
            until_at=bench.engine.now() + 60,
            on_progress=lambda progress: next(meet, int)(),
        )

    with bench.engine.crew(2) as crew:
        for name in ("first", "second"):
            crew.submit(lambda name=name: train(name))
        for _ in range(2):
            crew.wait().result()


def test_a_crew_has_several_jobs_at_work_at_once(bench: Bench, tmp_path: Path) -> None:
    """Both have begun before either has ended, and each leaves its own model."""
    begun: dict[str, float] = {}
    if not isinstance(bench.engine, Local | Simulated):
        both_at_work(bench, tmp_path)

    def train(name: str) -> tuple[float, Any]:
        def note(progress: Progress) -> None:
            begun.setdefault(name, bench.engine.now())

        job = replace(bench.train_job(tmp_path / name, 10**6), until_at=bench.engine.now() + 7)
        outcome = bench.engine.run(job, until_at=bench.engine.now() + 60, on_progress=note)
        return bench.engine.now(), outcome

    with bench.engine.crew(2) as crew:
        works = [crew.submit(lambda name=name: train(name)) for name in ("one", "other")]
        ended = [crew.wait(), crew.wait()]
    assert set(ended) == set(works)
    for name, work in zip(("one", "other"), works, strict=True):
        ended_at, outcome = work.result()
        assert isinstance(outcome, TrainResult), outcome
        assert outcome.ended == "shortened"
        assert (tmp_path / name / WEIGHTS).is_file()
        assert max(begun.values()) < ended_at


def staying(bench: Bench, folder: Path, within_s: float, **of: Any) -> TrainJob:
    """A trial whose process stays for the evaluation of its model; both have so many seconds."""
    until_at = bench.engine.now() + within_s
    job = replace(bench.train_job(folder, 10**6), until_at=until_at, evaluation_s=3.0, **of)
    evaluation = EvaluateJob(
        setting=bench.setting,
        candidate=CANDIDATE,
        batch=4,
        folder=str(folder),
        views=views_of((32, 48), flips=True),
        splits=("val", "test"),
        until_at=job.until_at,
    )
    return replace(job, evaluation=evaluation)


def carried_out(bench: Bench, job: Any) -> Any:
    return bench.engine.run(job, until_at=job.until_at + 0.15, on_progress=lambda progress: None)


@pytest.fixture
def stayers(bench: Bench) -> Bench:
    """Those whose trials' processes can stay."""
    if not bench.engine.evaluates_in_process:
        pytest.skip("its trials' processes do not stay")
    return bench


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a local engine starts a process."""
    begun, fork = list[int](), Local._fork

    def counted(self: Local) -> Any:
        child = fork(self)
        begun.append(child.pid)
        return child

    monkeypatch.setattr(Local, "_fork", counted)
    return begun


def test_a_process_that_stays_evaluates_in_time_what_it_trained(
    stayers: Bench, tmp_path: Path, forks: list[int]
) -> None:
    job = staying(stayers, tmp_path, 9.0)
    trained = carried_out(stayers, job)
    assert isinstance(trained, TrainResult), trained
    assert trained.ended == "shortened"
    ended_at = stayers.engine.now()
    assert job.evaluation is not None
    evaluated = carried_out(stayers, job.evaluation)
    took_s = stayers.engine.now() - ended_at
    assert isinstance(evaluated, EvalResult), evaluated
    # On a machine that became busier it does fewer views, but those of a size on both splits.
    assert {split for split, _ in evaluated.done[:4]} == {"val", "test"}
    assert set(evaluated.ms_per_image) >= {view for _, view in evaluated.done}
    assert stayers.engine.now() <= job.until_at + 0.15
    plain = read_logits(tmp_path, "val", job.evaluation.views[0])
    assert int((plain.argmax(axis=1) == _labels(stayers)).sum()) == trained.best, "it evaluates the best model"
    (tmp_path / EVALUATED).unlink()
    again = replace(job.evaluation, until_at=stayers.engine.now() + 60)
    begun_at, before = stayers.engine.now(), len(forks)
    whole = carried_out(stayers, again)
    assert len(whole.done) == 8, "asked again, another process does it"
    assert set(whole.done) >= set(evaluated.done)
    assert set(whole.ms_per_image) == {view.name for view in job.evaluation.views}
    if isinstance(stayers.engine, Local):
        assert (before, len(forks)) == (1, 2)
    else:
        assert stayers.engine.now() - begun_at > took_s


def test_a_process_that_stays_evaluates_another_model_of_its_candidate(
    stayers: Bench, tmp_path: Path, forks: list[int]
) -> None:
    """As of the trial before it, where that ended better."""
    before = stayers.train(tmp_path / "before", 12)
    assert isinstance(before, TrainResult), before
    job = staying(stayers, tmp_path / "final", 9.0)
    assert isinstance(carried_out(stayers, job), TrainResult)
    assert job.evaluation is not None
    before_it = len(forks)
    other = replace(job.evaluation, folder=str(tmp_path / "before"), until_at=stayers.engine.now() + 60)
    evaluated = carried_out(stayers, other)
    assert isinstance(evaluated, EvalResult), evaluated
    assert len(evaluated.done) == 8
    assert len(forks) == before_it, "no other process did it"
    plain = read_logits(tmp_path / "before", "val", job.evaluation.views[0])
    assert int((plain.argmax(axis=1) == _labels(stayers)).sum()) == before.best


def test_another_job_ends_the_process_that_stays(stayers: Bench, tmp_path: Path) -> None:
    job = staying(stayers, tmp_path, 7.0)
    assert isinstance(carried_out(stayers, job), TrainResult)
    assert stayers.probe().passed
    if isinstance(stayers.engine, Local):
        assert workers(stayers) == []
    assert job.evaluation is not None
    evaluated = carried_out(stayers, replace(job.evaluation, until_at=stayers.engine.now() + 60))
    assert len(evaluated.done) == 8


@pytest.mark.slow
def test_of_several_that_stay_the_one_that_trained_it_evaluates(
    stayers: Bench, tmp_path: Path, forks: list[int]
) -> None:
    """And the others are ended. (They trained side by side, on devices of their own.)"""
    one, other = staying(stayers, tmp_path / "one", 11.0), staying(stayers, tmp_path / "other", 11.0)
    other = replace(other, candidate=replace(CANDIDATE, train_px=48))
    with stayers.engine.crew(2) as crew:
        works = [crew.submit(lambda job=job: carried_out(stayers, job)) for job in (one, other)]
        for _ in works:
            crew.wait()
    assert all(isinstance(work.result(), TrainResult) for work in works), [work.result() for work in works]
    if isinstance(stayers.engine, Local):
        assert len(workers(stayers)) == 2
    assert other.evaluation is not None
    begun_at = stayers.engine.now()
    evaluation = replace(other.evaluation, candidate=other.candidate, until_at=begun_at + 60)
    evaluated = carried_out(stayers, evaluation)
    assert isinstance(evaluated, EvalResult), evaluated
    assert len(evaluated.done) == 8
    took_s = stayers.engine.now() - begun_at
    if isinstance(stayers.engine, Local):
        assert workers(stayers) == []
    (tmp_path / "other" / EVALUATED).unlink()
    begun_at, before = stayers.engine.now(), len(forks)
    again = replace(evaluation, until_at=begun_at + 60)
    assert carried_out(stayers, again).done == evaluated.done
    if isinstance(stayers.engine, Local):
        assert (before, len(forks)) == (2, 3), "another process starts first"
    else:
        assert stayers.engine.now() - begun_at > took_s


@pytest.mark.slow
def test_a_process_that_is_gone_while_it_stays_died(local: Bench, tmp_path: Path) -> None:
    job = staying(local, tmp_path, 7.0)
    assert isinstance(carried_out(local, job), TrainResult)
    strike(local, signal.SIGKILL)
    assert job.evaluation is not None
    evaluation = replace(job.evaluation, until_at=local.engine.now() + 60)
    ended = carried_out(local, evaluation)
    assert isinstance(ended, Failure)
    assert ended.kind == "died"
    assert len(carried_out(local, evaluation).done) == 8


@pytest.mark.slow
def test_closing_ends_every_process_also_one_that_stays(local: Bench, tmp_path: Path) -> None:
    with Local(CPU) as engine:
        server = engine.server.process
        engine.prepare()
        bench = replace(local, engine=engine)
        assert isinstance(carried_out(bench, staying(bench, tmp_path, 7.0)), TrainResult)
        (pid,) = workers(bench)
        begun_at = time.monotonic()
        engine.close()
        assert time.monotonic() - begun_at < 5
    assert server.returncode is not None, "and closing twice does no harm"
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)

    def over() -> bool:
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()  # nobody has collected it yet: a zombie
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(over, 2.0, why="a killed process takes a moment to go")


# --- each by itself --------------------------------------------------------------------------------------------------


def test_a_gpu_is_asked_once_for_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi takes up to a second."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho x >> {tmp_path}/asked\necho 'A card, 1.2, 1024'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with Local(DeviceName(kind="cuda")) as engine:
        facts = engine.describe()
        facts["name"] = "another"
        again = engine.describe()
    assert (again["name"], again["driver"], again["total_bytes"]) == ("A card", "1.2", 2**30)
    assert (tmp_path / "asked").read_text() == "x\n"


@pytest.mark.slow
def test_the_server_collects_garbage_again_once_it_has_imported() -> None:
    """Nobody asks it for anything: it imports, says so and ends."""
    program = """
import gc, socket
from fitwithin.worker import serve
ours, theirs = socket.socketpair()
ours.shutdown(socket.SHUT_WR)
serve(theirs)
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "True"]


@pytest.mark.slow
def test_an_error_beside_a_job_leaves_the_job_alone(local: Bench, tmp_path: Path) -> None:
    """Whoever asked for one job fails; the process of that job ends, and the other job's goes on."""

    def fail(progress: Progress) -> None:
        raise ValueError("nobody expects this")

    def broken() -> Any:
        job = local.train_job(tmp_path / "broken", 10**6)
        return local.engine.run(job, until_at=job.until_at, on_progress=fail)

    with local.engine.crew(2) as crew:
        fine = crew.submit(lambda: local.train(tmp_path / "fine", 200))
        ended = crew.submit(broken)
        assert crew.wait() is ended
        with pytest.raises(ValueError, match="nobody expects this"):
            ended.result()
        assert not fine.done()
        assert crew.wait() is fine
    assert isinstance(fine.result(), TrainResult), fine.result()
    assert workers(local) == []


@pytest.mark.slow
def test_an_interrupt_ends_what_a_crew_is_at(local: Bench, tmp_path: Path) -> None:
    at_work = threading.Barrier(3)
    told: list[Any] = []

    def interrupted(bench: Bench) -> None:
        def train(name: str) -> None:
            heard = iter([at_work.wait])
            job = bench.train_job(tmp_path / name, 10**6)
            told.append(bench.engine.run(job, until_at=job.until_at, on_progress=lambda p: next(heard, float)()))

        with bench.engine.crew(2) as crew:
            crew.submit(lambda: train("one"))
            crew.submit(lambda: train("other"))
            at_work.wait(60)
            raise KeyboardInterrupt

    with Local(CPU) as engine:
        engine.prepare()
        server = engine.server.process
        begun_at = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupted(replace(local, engine=engine))
        assert time.monotonic() - begun_at < 30
        assert server.returncode is not None
    assert all(isinstance(outcome, Failure) for outcome in told)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slot")]


def strike(local: Bench, number: int) -> None:
    """A signal for every worker."""
    server = local.engine.server.process.pid
    for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        os.kill(int(pid), number)


@pytest.mark.slow
def test_a_worker_that_is_killed_died(local: Bench, tmp_path: Path) -> None:
    """From its first word on it is killed; the server lives on."""

    job = local.train_job(tmp_path, 10**6)
    ended = local.engine.run(job, until_at=job.until_at, on_progress=lambda progress: strike(local, signal.SIGKILL))
    assert isinstance(ended, Failure)
    assert ended.kind == "died"
    assert "SIGKILL" in ended.reason


@pytest.mark.slow
def test_a_worker_that_falls_silent_hangs(local: Bench, tmp_path: Path) -> None:
    """From its first word on it stands still."""

    job = replace(local.train_job(tmp_path, 10**6), heartbeat_timeout_s=3.0)
    ended = local.engine.run(job, until_at=job.until_at, on_progress=lambda progress: strike(local, signal.SIGSTOP))
    assert isinstance(ended, Failure)
    assert ended.kind == "hung"
    assert ended.reason == "nothing was heard of the worker for 3 s"
    job = replace(job, until_at=local.engine.now() + 4.0)
    again = local.engine.run(job, until_at=job.until_at + 2.0, on_progress=lambda progress: None)
    assert isinstance(again, TrainResult), "the checkpoint and the server live on"


@pytest.fixture
def pair(local: Bench) -> Bench:
    """Jobs of two processes that train together."""
    return replace(local, setting=replace(local.setting, data_parallel=2))


def workers(bench: Bench) -> list[int]:
    """The processes at work, in the order in which they started."""
    server = bench.engine.server.process.pid
    return sorted(int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split())


@pytest.mark.slow
def test_a_pair_is_certified_by_the_share_of_each(pair: Bench) -> None:
    found = pair.probe(timed=True)
    assert isinstance(found, Probe), found
    assert (found.passed, found.batch) == (True, 4)
    assert 0 < found.peak_bytes <= pair.setting.memory_bytes
    assert found.timing is not None
    assert 0 < found.timing.step_low_s <= found.timing.step_s <= found.timing.step_high_s
    assert set(found.timing.eval_image_s) == {32, 48}
    failed = pair.probe(batch=64, memory_bytes=pair.too_little_bytes)
    assert isinstance(failed, Probe), failed
    assert not failed.passed
    assert "memory cap" in failed.reason
    assert workers(pair) == []


@pytest.mark.slow
def test_a_pair_trains_a_model_that_evaluates(pair: Bench, tmp_path: Path) -> None:
    told: list[Progress] = []
    job = replace(pair.train_job(tmp_path, 60), batch=8)
    done = pair.engine.run(job, until_at=job.until_at, on_progress=told.append)
    assert isinstance(done, TrainResult), done
    assert (done.ended, done.steps, done.epochs) == ("complete", 60, 60 * 8 / COUNTS[0])
    assert 0 < done.peak_bytes <= pair.setting.memory_bytes
    assert [progress.step for progress in told] == sorted({progress.step for progress in told}), "one of them tells"
    assert {WEIGHTS, CARD, OUTCOME} <= {path.name for path in tmp_path.iterdir()}
    views = tuple(views_of((32,), flips=False))
    splits, until_at = ("val",), pair.engine.now() + 60
    asked = EvaluateJob(
        setting=pair.setting,
        candidate=CANDIDATE,
        batch=4,
        folder=str(tmp_path),
        views=views,
        splits=splits,
        until_at=until_at,
    )
    evaluated = pair.engine.run(asked, until_at=until_at, on_progress=told.append)
    assert isinstance(evaluated, EvalResult), evaluated
    plain = read_logits(tmp_path, "val", views[0])
    assert int((plain.argmax(axis=1) == _labels(pair)).sum()) == done.best, "evaluated by one process"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_a_pair_that_is_killed_ends_both_and_both_are_replaced(pair: Bench, tmp_path: Path, rank: int) -> None:
    job = replace(pair.train_job(tmp_path, 40_000), batch=8)
    struck: list[int] = []

    def strike_one(progress: Progress) -> None:
        if not struck:
            struck.append(workers(pair)[rank])
            os.kill(struck[0], signal.SIGKILL)

    ended = pair.engine.run(job, until_at=job.until_at, on_progress=strike_one)
    assert isinstance(ended, Failure), ended
    assert (ended.kind, ended.reason) == ("died", "the worker process ended without an answer (SIGKILL)")
    assert workers(pair) == []
    job = replace(job, until_at=pair.engine.now() + 5.0)
    again = pair.engine.run(job, until_at=job.until_at + 2.0, on_progress=lambda progress: None)
    assert isinstance(again, TrainResult), "two others go on from the checkpoint"
    assert again.ended == "shortened"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_a_pair_that_stands_still_ends_both(pair: Bench, tmp_path: Path, rank: int) -> None:
    job = replace(pair.train_job(tmp_path, 10**6), batch=8, heartbeat_timeout_s=3.0)

    def stop_one(progress: Progress) -> None:
        os.kill(workers(pair)[rank], signal.SIGSTOP)

    ended = pair.engine.run(job, until_at=job.until_at, on_progress=stop_one)
    assert isinstance(ended, Failure), ended
    assert ended.kind == "hung"
    assert workers(pair) == []


@pytest.mark.slow
def test_a_pair_beyond_its_end_is_ended_in_time(pair: Bench, tmp_path: Path) -> None:
    begun_at = pair.engine.now()
    job = replace(pair.train_job(tmp_path, 10**6), batch=8)
    ended = pair.engine.run(job, until_at=begun_at + 2.0, on_progress=lambda progress: None)
    assert isinstance(ended, Failure), ended
    assert ended.kind == "deadline"
    assert 2.0 <= pair.engine.now() - begun_at < 2.6
    assert workers(pair) == []


def simulated(**law: Any) -> Bench:
    engine = Simulated(SimulatedMachine(**law), CountedImages(counts=COUNTS, k=3))
    return Bench(engine, setting(CPU, Path("/nowhere")), too_little_bytes=0)


@pytest.mark.parametrize(("kind", "told"), [("died", "died"), ("memory", "memory"), ("hang", "deadline")])
def test_troubles_come_when_the_law_says(tmp_path: Path, kind: str, told: str) -> None:
    bench = simulated(troubles=(Fault(at_s=3.0, kind=kind),))
    ended = bench.train(tmp_path, 10**4)
    assert isinstance(ended, Failure)
    assert ended.kind == told
    assert bench.engine.now() == (60.0 if kind == "hang" else 3.0)
    again = bench.train(tmp_path, 100)
    assert isinstance(again, TrainResult), "a trouble comes once"


def test_drifts_and_stalls_take_their_time(tmp_path: Path) -> None:
    def took_s(name: str, **law: Any) -> float:
        bench = simulated(**law)
        bench.train(tmp_path / name, 200, until_s=1000.0)
        return float(bench.engine.now())

    calm = took_s("calm")
    assert took_s("slow", drifts=((0.0, 2.0),)) == pytest.approx(2 * calm)
    assert took_s("late", drifts=((calm / 2, 2.0),)) == pytest.approx(1.5 * calm, rel=0.1)
    assert took_s("stall", stalls=((1.5, 7.0),)) == pytest.approx(calm + 7.0)


def test_the_same_seed_is_the_same_machine(tmp_path: Path) -> None:
    def story(name: str, seed: int) -> tuple[Any, float]:
        bench = simulated(seed=seed, pace_noise=0.2, memory_noise=0.01)
        outcome = bench.train(tmp_path / name, 300)
        return outcome, bench.engine.now()

    assert story("a", 1) == story("b", 1)
    assert story("c", 2)[1] != story("a2", 1)[1]
    assert math.isfinite(story("d", 3)[1])


def test_engines_are_engines() -> None:
    engine: Engine = Simulated(SimulatedMachine(), CountedImages())
    engine.prepare()
    engine.close()
