"""evaluate: what it does when time is short, and what another process finds of it."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitwithin.candidate import Candidate, views_of
from fitwithin.data import pack_builder
from fitwithin.data.framing import Frame
from fitwithin.data.pack import Pack
from fitwithin.data.prefetch import PrefetchLoader, Stream
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import EvaluateJob
from fitwithin.engine.results import EVALUATED, EvalResult
from fitwithin.files import read_json
from fitwithin.training import evaluation
from fitwithin.training import model as models
from fitwithin.training.evaluation import feeder_rings
from fitwithin.training.learner import Learner
from fitwithin.training.progress import first_and_pace
from simulated.clock import SimulatedClock
from simulated.run import on_cpu

CANDIDATE = Candidate(model="test_efficientnet", train_px=32, precision="fp32")
BATCH, N = 4, 12

#: What a batch takes by the clock of a test: both views of it.
SLOW_S = 40.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    root = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(4)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(N // 2):
                Image.fromarray(rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(root / "cache"))
        return pack_builder.build(open_dataset(root / "data"), 34)


def job(images: Pack, folder: Path, within_s: float, sizes: tuple[int, ...] = (32,)) -> EvaluateJob:
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
    models.save(learner.net, card, folder)
    views = tuple(views_of(sizes, flips=True))
    return EvaluateJob(
        setting=setting,
        candidate=CANDIDATE,
        batch=BATCH,
        folder=str(folder),
        views=views,
        splits=("val", "test"),
        until_at=time.monotonic() + within_s,
    )


def carried_out(wanted: EvaluateJob, images: Pack, emit: Any = None) -> EvalResult:
    rings = feeder_rings(wanted.candidate, wanted.setting, wanted.batch)
    with PrefetchLoader(images, 1, rings, pin=False) as feeder:
        return evaluation.Evaluator(Cpu(), feeder).evaluate(wanted, emit or (lambda progress: None))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Every pass of a model takes SLOW_S / 2 by the ``clock``; the images of each are counted in ``passes``."""
    true_logits, clock, passes = Learner.logits, SimulatedClock(time.monotonic()), list[int]()

    def logits(self: Learner, x_bhwc: Any, **more: Any) -> Any:
        passes.append(len(x_bhwc))
        clock.sleep(SLOW_S / 2)
        return true_logits(self, x_bhwc, **more)

    monkeypatch.setattr(Learner, "logits", logits)
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(monotonic=clock.now))
    return SimpleNamespace(clock=clock, passes=passes)


def test_a_batch_that_would_end_too_late_is_not_begun(images: Pack, tmp_path: Path, slow: SimpleNamespace) -> None:
    # Three batches of a split and one of each view to time it, then two batches of the next split: not the third.
    wanted = job(images, tmp_path, 4 * SLOW_S + 2.5 * SLOW_S)
    found = carried_out(wanted, images)
    assert slow.clock.now() < wanted.until_at
    assert [split for split, _ in found.done] == ["val", "val"]


@pytest.mark.usefixtures("slow")
def test_where_time_is_short_fewer_views_are_known_but_on_every_split(images: Pack, tmp_path: Path) -> None:
    # All of two sizes would be 14 times SLOW_S.
    found = carried_out(job(images, tmp_path, 11.5 * SLOW_S, (24, 32)), images)
    plain, flipped = (view.name for view in views_of((32,), flips=True))
    assert found.done[:4] == (("val", plain), ("val", flipped), ("test", plain), ("test", flipped))
    assert [split for split, _ in found.done[4:]] == ["val", "val"]


@pytest.mark.parametrize(("most_s", "looked_at"), [(math.inf, 3), (0.0, 1)])
def test_what_is_tried_out_tells_what_the_evaluation_takes(
    images: Pack, tmp_path: Path, slow: SimpleNamespace, most_s: float, looked_at: int
) -> None:
    """And costs no more than it may."""
    wanted = job(images, tmp_path, 100 * SLOW_S)
    rings = feeder_rings(wanted.candidate, wanted.setting, wanted.batch)
    with PrefetchLoader(images, 1, rings, pin=False) as feeder:
        learner = Learner(wanted.setting, wanted.candidate, Cpu())
        evaluator = evaluation.Evaluator(Cpu(), feeder)
        foreseen = evaluator.estimate_time(learner, wanted, most_s)
        expected = 1 + 4 + 2 * looked_at
        assert len(slow.passes) == expected, "one for its memory, each view once for its time, and the batches"
        begun_at = slow.clock.now()
        found = evaluator.evaluate(wanted, lambda progress: None)
    assert evaluator.learner is learner
    assert len(found.done) == 4
    assert set(found.ms_per_image) == {view.name for view in wanted.views}
    assert foreseen.whole_s == pytest.approx(slow.clock.now() - begun_at) == pytest.approx(6 * SLOW_S)
    assert foreseen.first_s == foreseen.whole_s, "there is one size"
    assert foreseen.validation_s == pytest.approx(3 * SLOW_S), "of both views: no less than a validation"


def test_views_of_short_passes_are_timed_once_more_at_the_end_as_foreseen(
    images: Pack, tmp_path: Path, slow: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "VIEW_S", 5 * SLOW_S / 2)
    wanted = job(images, tmp_path, 100 * SLOW_S)
    rings = feeder_rings(wanted.candidate, wanted.setting, wanted.batch)
    with PrefetchLoader(images, 1, rings, pin=False) as feeder:
        evaluator = evaluation.Evaluator(Cpu(), feeder)
        foreseen = evaluator.estimate_time(Learner(wanted.setting, wanted.candidate, Cpu()), wanted, math.inf)
        begun_at, before = slow.clock.now(), len(slow.passes)
        evaluator.evaluate(wanted, lambda progress: None)
    assert len(slow.passes) == before + 12 + 2 * evaluation.VIEW_PASSES
    assert slow.clock.now() - begun_at == pytest.approx((6 + 5) * SLOW_S)
    assert foreseen.whole_s == pytest.approx((6 + 6) * SLOW_S), "and a first pass of each, which a GPU needs"


def test_what_the_first_size_takes_is_told_apart(images: Pack, tmp_path: Path, slow: SimpleNamespace) -> None:
    wanted = job(images, tmp_path, 100 * SLOW_S, sizes=(24, 32))
    rings = feeder_rings(wanted.candidate, wanted.setting, wanted.batch)
    with PrefetchLoader(images, 1, rings, pin=False) as feeder:
        learner = Learner(wanted.setting, wanted.candidate, Cpu())
        foreseen = evaluation.Evaluator(Cpu(), feeder).estimate_time(learner, wanted, math.inf)
    assert foreseen.whole_s == pytest.approx(2 * 6 * SLOW_S)
    assert foreseen.first_s == pytest.approx(6 * SLOW_S)
    assert foreseen.validation_s == pytest.approx(3 * SLOW_S)


@pytest.mark.parametrize(
    ("batches_s", "steady_s"),
    [
        ([9.0, 2.0], 2.0),
        ([9.0, 2.0, 4.0], 3.0),
        ([9.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0], 3.0),
        ([9.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0], 5.0),
    ],
)
def test_batches_that_were_made_while_the_first_was_computed_tell_nothing_of_the_loaders(
    batches_s: list[float], steady_s: float
) -> None:
    """Three are. With fewer than four others they are all there is."""
    marks = [100.0, *(100.0 + done_s for done_s in itertools.accumulate(batches_s))]
    first_s, batch_s = first_and_pace(marks, Stream.prefetch)
    assert batch_s == pytest.approx(steady_s)
    assert first_s == pytest.approx(max(0.0, sum(batches_s) - len(batches_s) * batch_s)), "all of them are foreseen"


def test_what_was_done_outlives_the_process(images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EMIT_S", 0.0)

    def die(progress: Any) -> None:
        if progress.step > 4:  # in the second batch of test
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried_out(job(images, tmp_path, 60), images, die)
    left = read_json(EvalResult, tmp_path / EVALUATED)
    assert left is not None
    assert [split for split, _ in left.done] == ["val", "val"]
    steps: list[int] = []
    monkeypatch.setattr(evaluation, "_again_s", lambda taken_ms, batch: 0.0)
    found = carried_out(job(images, tmp_path, 60), images, lambda progress: steps.append(progress.step))
    assert [split for split, _ in found.done] == ["val", "val", "test", "test"]
    assert steps == [4, 5, 6], "only test"
    assert found.ms_per_image == left.ms_per_image, "a view's cost is measured anew at the end alone"
