"""Linear probes on a simulated machine: within their time, the best goes on, and nothing is probed twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwithin import request as requests
from fitwithin.accountant import Accountant
from fitwithin.engine.jobs import EvaluateJob, LinearProbeJob, ProbeJob, TrainJob
from fitwithin.errors import UsageError
from fitwithin.events import (
    DataPacked,
    LinearProbed,
    MachineDescribed,
    PlanGiven,
    PoolChosen,
    StartChosen,
    WeightsFound,
)
from fitwithin.inference.ensemble import read_ensemble
from fitwithin.pipeline import choose, linear_probes
from fitwithin.pipeline import run as flow
from fitwithin.pipeline.context import RunContext, Silent
from fitwithin.planning import transfer
from fitwithin.report.schema import Report
from fitwithin.store import Store
from fitwithin.weights.find import Weights
from simulated.clock import SimulatedClock
from simulated.engine import Simulated
from simulated.law import SimulatedMachine
from simulated.run import CountedImages, without_pages
from simulated.weights import weights

NAMES = ("tf_efficientnet_lite0.in1k", "tf_efficientnet_lite2.in1k", "resnet18.a1_in1k")
IMAGES = CountedImages(counts=(3000, 300, 300), k=10)
LONG = replace(IMAGES, elongated=2.5)


ALL = tuple(weights(name) for name in NAMES)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)


class Process:
    """What outlives a process of the run: its store, clock and engine."""

    def __init__(self, folder: Path, law: SimulatedMachine | None = None, **limits: Any) -> None:
        self.folder, self.store = folder, Store()
        self.engine = Simulated(law or SimulatedMachine(), limits.pop("images", IMAGES), SimulatedClock(1000.0))
        self.request = requests.parse(folder, **{"memory": "4GiB", "time": "10m", "device": "cpu", **limits})
        self.began_at = self.engine.now()

    def opened(self, found: tuple[Weights, ...] = ALL, *, closing_s: float = 1.0) -> RunContext:
        accountant = Accountant(
            self.store, self.request.budget, self.engine.now, started_at=self.engine.now(), beating=False
        )
        if self.store.latest(DataPacked) is None:
            counts = dict(zip(("train", "val", "test"), self.engine.images.counts, strict=True))
            self.store.append(DataPacked(path="x", fingerprint="f" * 32, classes=(), counts=counts))
            self.store.append(MachineDescribed(facts=self.engine.describe()))
        if self.store.latest(WeightsFound) is None:
            self.store.append(WeightsFound(weights=found, refused=(), named=False))
        run = RunContext(
            request=self.request,
            folder=self.folder,
            engine=self.engine,
            store=self.store,
            accountant=accountant,
            reporter=Silent(),
            candidates=(),
            images=self.engine.images,
            workers=1,
            closing_s=closing_s,
        )
        return choose.choose(run, 200, 224, found)

    def jobs(self, kind: type[Any]) -> list[Any]:
        return [job for job in self.engine.jobs if isinstance(job, kind)]


def test_the_run_starts_from_the_best_weights(tmp_path: Path) -> None:
    process = Process(tmp_path)
    run = process.opened()
    chosen = process.store.latest(StartChosen)
    assert chosen is not None
    assert chosen.pretrained
    probes = {event.name: event.probe for event in process.store.read(LinearProbed) if event.probe}
    assert set(probes) == set(NAMES)
    best = transfer.best_first([*probes.values()])[0]
    assert run.candidates[0] == best.candidate
    assert run.request.recipe.name == "transfer"
    assert run.candidates[0].train_px in run.request.sizes
    assert process.store.latest(PoolChosen) is None


def test_a_run_ends_with_the_fine_tuned_model_or_the_linear_head(tmp_path: Path) -> None:
    process = Process(tmp_path)
    report = flow.execute(process.opened())
    assert report.receipt.weights is not None
    assert all(limit.kept for limit in report.receipt.limits)
    tuned = process.jobs(TrainJob)
    assert tuned
    assert all(job.init_from.endswith("-linear") for job in tuned), "each starts from its linear head"
    row = report.row(report.winner or "")
    linear = [event.probe.correct for event in process.store.read(LinearProbed) if event.probe]
    assert row.validation is not None
    assert row.validation.correct >= max(linear), "never worse than what was there before"


def seen_by_others(report: Report) -> list[str]:
    """The views of other models that were compared."""
    return [view.name for view in report.views if " of " in view.name]


def test_the_other_linear_heads_may_look_too_without_another_evaluation(tmp_path: Path) -> None:
    process = Process(tmp_path, time="3m")
    report = flow.execute(replace(process.opened(), candidates=()))
    evaluated = {Path(job.folder).name for job in process.jobs(EvaluateJob)}
    assert evaluated == {Path(read_ensemble(process.folder).trial).name}
    assert len(seen_by_others(report)) == 2
    assert all(view.ms_per_image > 0 and view.validation.total == IMAGES.counts[1] for view in report.views)


@pytest.mark.parametrize(
    ("limits", "law"),
    [
        ({"inference_memory": "200MB"}, SimulatedMachine()),
        ({"images": replace(IMAGES, counts=(3000, 90, 300))}, SimulatedMachine()),
        ({"images": LONG}, SimulatedMachine(fit_gains=(("squash", 0.2),))),
    ],
)
def test_others_do_not_look_where_memory_is_bounded_validation_is_small_or_they_saw_pictures_otherwise(
    tmp_path: Path, limits: dict[str, Any], law: SimulatedMachine
) -> None:
    report = flow.execute(replace(Process(tmp_path, law, time="5m", **limits).opened(), candidates=()))
    assert report.winner is not None
    assert seen_by_others(report) == []


@settings(max_examples=25, deadline=None)
@given(st.floats(20, 4000), st.floats(1e-4, 0.05), st.integers(0, 5))
def test_a_run_keeps_its_time_whatever_the_machine(
    tmp_path_factory: Any, time_s: float, image_s: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    law = SimulatedMachine(seed=seed, image_s=image_s, fit_gains=(("squash", 0.05),))
    process = Process(folder, law, time=time_s, images=LONG if seed % 2 else IMAGES)
    try:
        report = flow.execute(process.opened())
    except UsageError:
        assert not any(event.probe for event in process.store.read(LinearProbed)), "there is a model to deliver"
        return  # too short for anything
    finally:
        assert process.engine.now() - process.began_at <= time_s
    assert report.winner is not None


def test_where_only_a_part_of_the_time_is_left_the_linear_head_is_delivered(tmp_path: Path) -> None:
    process = Process(tmp_path, SimulatedMachine(image_s=0.012), time="100s")
    run = process.opened()
    assert not run.candidates
    report = flow.execute(run)
    assert not process.jobs(TrainJob)
    assert report.winner is not None
    assert report.row(report.winner).steps == 0


def test_where_no_candidate_can_be_profiled_in_time_the_linear_head_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose training steps take far longer than its features let expect."""
    monkeypatch.setattr(transfer, "quick_to_profile", lambda epochs_s, *_: [True] * len(epochs_s))
    law = SimulatedMachine(image_s=2.0, eval_share=0.0005)
    process = Process(tmp_path, law, time="5m", images=replace(IMAGES, counts=(100, 300, 300)))
    report = flow.execute(process.opened())
    assert process.jobs(ProbeJob)
    assert not process.jobs(TrainJob)
    assert report.winner is not None
    assert report.row(report.winner).steps == 0


def test_what_takes_too_long_to_profile_is_not_fine_tuned(tmp_path: Path) -> None:
    """A hundred images: some epochs would be cheap, but the profile's steps alone are eight or so."""
    process = Process(tmp_path, SimulatedMachine(image_s=0.3), images=replace(IMAGES, counts=(100, 30, 30)), time="5m")
    run = process.opened()
    assert not run.candidates
    assert not process.jobs(ProbeJob)
    assert flow.execute(run).winner is not None


@pytest.mark.parametrize(
    ("gains", "expected"), [((("squash", 0.06), ("pad", 0.03)), "squash"), ((("pad", 0.06),), "pad"), ((), "crop")]
)
def test_elongated_pictures_are_shown_as_validation_images_say(
    gains: tuple[tuple[str, float], ...], expected: str, tmp_path: Path
) -> None:
    process = Process(tmp_path, SimulatedMachine(fit_gains=gains), images=LONG)
    run = process.opened()
    chosen = process.store.latest(StartChosen)
    assert chosen is not None
    assert (chosen.fit, run.request.recipe.fit) == (expected, expected)
    assert f"--fit {expected} is taken (crop " in chosen.why
    best = [event for event in process.store.read(LinearProbed) if event.name == run.candidates[0].init]
    assert {event.fit for event in best} == {"crop", "squash", "pad"}
    assert best[-1].fit == expected, "the model that is there is the one that goes on"
    count = len(process.jobs(LinearProbeJob))
    again = process.opened()
    assert len(process.jobs(LinearProbeJob)) == count, "a resumed run compares nothing again"
    assert again.request == run.request
    flow.execute(again)
    assert {job.setting.recipe.fit for job in process.jobs(TrainJob)} == {expected}


def test_ordinary_pictures_are_cropped_without_a_comparison(tmp_path: Path) -> None:
    process = Process(tmp_path, SimulatedMachine(fit_gains=(("squash", 0.06),)), images=replace(IMAGES, elongated=1.5))
    process.opened()
    assert {job.setting.recipe.fit for job in process.jobs(LinearProbeJob)} == {"crop"}


def test_what_the_user_asked_for_is_not_compared(tmp_path: Path) -> None:
    process = Process(tmp_path, images=LONG, fit="pad")
    run = process.opened()
    assert {job.setting.recipe.fit for job in process.jobs(LinearProbeJob)} == {"pad"}
    assert run.request.recipe.fit == "pad"


def test_a_resumed_run_probes_nothing_again(tmp_path: Path) -> None:
    process = Process(tmp_path)
    first = process.opened()
    count = len(process.jobs(LinearProbeJob))
    again = process.opened()
    assert len(process.jobs(LinearProbeJob)) == count
    assert again.candidates == first.candidates
    assert again.request == first.request


def test_a_run_that_was_interrupted_between_two_probes_goes_on_with_the_next(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.opened()
    first = process.store.read(LinearProbed)[0]
    later = Process(tmp_path)
    later.store.append(WeightsFound(weights=ALL, refused=(), named=False))
    later.store.append(first)
    later.opened()
    assert len(later.jobs(LinearProbeJob)) == len(process.jobs(LinearProbeJob)) - 1


def test_a_run_without_time_hands_over_the_linear_head_that_is_there(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.opened()
    later = Process(tmp_path)
    later.store.append(WeightsFound(weights=ALL, refused=(), named=False))
    later.store.append(process.store.read(LinearProbed)[0])
    run = later.opened(linear_probes.known_weights(later.store), closing_s=600.0)
    assert not later.jobs(LinearProbeJob)
    assert run.weights
    assert not run.candidates
    assert linear_probes.known_weights(Store()) == ()


def test_a_plan_repeats_its_probes(tmp_path: Path) -> None:
    process = Process(tmp_path / "plan")
    plan = flow.make_plan(process.opened())
    assert {candidate.init for candidate in plan.probed} == set(NAMES)
    other = Process(tmp_path / "run")
    other.store.append(PlanGiven(plan=plan))
    run = other.opened()
    assert {candidate.init for candidate in linear_probes.probed(run)} == set(NAMES)
    assert tuple(run.candidates) == tuple(trial.candidate for trial in plan.trials)


def test_a_plan_whose_weights_are_not_here_is_refused(tmp_path: Path) -> None:
    plan = flow.make_plan(Process(tmp_path / "plan").opened())
    other = Process(tmp_path / "run")
    other.store.append(PlanGiven(plan=plan))
    with pytest.raises(UsageError, match="which is not among the pretrained weights here"):
        other.opened(ALL[:1])


class Foreign(Simulated):
    """A machine on which features tell nothing of the images."""

    def _probe_linearly(self, job: Any, until_at: float) -> Any:
        return replace(super()._probe_linearly(job, until_at), neighbours_correct=30, pixels_correct=20, correct=40)


@pytest.mark.parametrize(
    ("train", "asked", "pretrained"),
    [
        (30_000, {}, False),
        (3000, {}, True),
        (30_000, {"init": "weights"}, True),
        (30_000, {"weights": "a folder, which is only a source"}, False),
    ],
)
def test_foreign_images_get_drawn_weights_if_they_are_many(
    tmp_path: Path, train: int, asked: dict[str, str], pretrained: bool
) -> None:
    images = CountedImages(counts=(train, 300, 300), k=10)
    process = Process(tmp_path, images=images, time="2h", **asked)
    process.engine = Foreign(SimulatedMachine(), images, SimulatedClock(1000.0))
    process.opened()
    chosen = process.store.latest(StartChosen)
    assert chosen is not None
    assert chosen.pretrained is pretrained
    assert ("foreign" in chosen.why) is not pretrained
