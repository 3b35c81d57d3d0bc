"""What a run tries where nobody named backbones or sizes: measured once, chosen, kept for a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitwithin import request as requests
from fitwithin.candidate import Candidate
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.results import StepTiming
from fitwithin.errors import BudgetError
from fitwithin.events import PoolChosen
from fitwithin.pipeline import choose, profile_phase, start
from fitwithin.pipeline import run as flow
from fitwithin.pipeline.context import RunContext, Silent
from fitwithin.planning import prior
from fitwithin.planning.pool import profile_share
from fitwithin.profiling.profile import Profile
from fitwithin.store import Store
from simulated.clock import SimulatedClock
from simulated.engine import Simulated
from simulated.law import SimulatedMachine
from simulated.run import CountedImages

IMAGES = 200


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    for name in ("disc", "ring"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(IMAGES):
            image = Image.fromarray(np.full((100, 120, 3), number, np.uint8))
            image.save(tmp_path / f"images/{name}/{number}.png")
    return tmp_path / "images"


def opened(folder: Path, store: Store, law: SimulatedMachine | None = None, **limits: Any) -> RunContext:
    """A process opens the run."""
    engine = Simulated(law or SimulatedMachine(), CountedImages(), SimulatedClock(1000.0))
    request = requests.parse(folder, **{"memory": "4GiB", "time": "10m", "device": "cpu", "init": "random", **limits})
    accountant = start.open_accountant(store, request.budget, engine.now, engine.now())
    return start.open_run(request, folder, engine, store, Silent(), accountant, open_dataset(folder))


def test_backbones_and_sizes_are_chosen_within_the_images_own_size(folder: Path) -> None:
    store = Store()
    run = opened(folder, store)
    assert run.request.models
    assert max(run.request.sizes) <= 100
    assert run.request.test_sizes == tuple(run.request.recipe.test_sizes(run.request.sizes))
    assert {candidate.model for candidate in run.candidates} == set(run.request.models)
    assert run.pool is not None
    assert run.pool.data_px == 100
    left = {rejection.candidate.model for rejection in choose.left_out(run)}
    assert left | set(run.request.models) == set(prior.load().tried)
    assert not left & set(run.request.models)


def test_images_are_stored_large_enough_for_whatever_is_chosen(folder: Path) -> None:
    for time in ("1m", "10m", "3h"):
        run = opened(folder, Store(), SimulatedMachine(image_s=1e-5), time=time)
        stored = min(100, run.request.pack_side)
        assert min(run.images.image(0).shape[:2]) >= stored


def test_a_resumed_run_keeps_what_was_chosen_and_measures_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    first = opened(folder, store)

    def measured(run: RunContext) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(choose, "measure_machine", measured)
    again = opened(folder, store, SimulatedMachine(image_s=1.0))
    assert (again.candidates, again.request, again.pool) == (first.candidates, first.request, first.pool)
    assert again.images.folder == first.images.folder, "images are not decoded again"
    assert len(store.read(PoolChosen)) == 1


def test_named_backbones_get_a_size_and_named_sizes_get_backbones(folder: Path) -> None:
    named = opened(folder, Store(), models="resnet18,resnet26d")
    assert {candidate.model for candidate in named.candidates} == {"resnet18", "resnet26d"}
    assert len(named.request.sizes) == 1
    sized = opened(folder, Store(), sizes="48")
    assert {candidate.train_px for candidate in sized.candidates} == {48}
    both = opened(folder, Store(), models="resnet18", sizes="48")
    assert both.pool is None


def test_the_papers_recipe_chooses_nothing(folder: Path) -> None:
    run = opened(folder, Store(), recipe="paper")
    assert run.pool is None
    assert len({candidate.model for candidate in run.candidates}) == 10
    assert run.request.sizes == (160, 224)


def test_a_slower_machine_tries_less(folder: Path) -> None:
    """The pace is measured, and charged as profiling."""
    store = Store()
    fast = opened(folder, store, time="2m")
    slow = opened(folder, Store(), SimulatedMachine(image_s=0.05), time="2m", recipe="upright")
    assert fast.pool is not None
    assert slow.pool is not None
    assert slow.pool.machine.dense > fast.pool.machine.dense
    assert slow.pool.prospects[0].share < fast.pool.prospects[0].share
    (entry,) = fast.accountant.ledger().by_phase()["profile"]
    assert entry.charged_s


def test_the_whole_run_is_planned_with_what_was_left_out(folder: Path) -> None:
    run = opened(folder, Store())
    plan = flow.make_plan(run)
    assert {trial.candidate.model for trial in plan.trials} <= set(run.request.models)
    reasons = {rejection.candidate.model: rejection.reason for rejection in plan.rejections}
    assert any("less is expected of it" in reason for reason in reasons.values())
    assert "would not fit within the memory cap" in reasons["vgg11_bn"]


def test_too_little_time_is_refused_at_once_and_the_named_time_suffices(folder: Path) -> None:
    slow = SimulatedMachine(image_s=0.005)
    with pytest.raises(BudgetError, match=r"too short for this machine: .* give (.*) or more") as refused:
        opened(folder, Store(), slow, time="8s")
    from fitwithin import units

    named = str(refused.value).rpartition("give ")[2].removesuffix(" or more")
    run = opened(folder, Store(), slow, time=str(units.duration(named)))
    assert flow.make_plan(run).trials


def test_the_faster_precision_comes_first_unless_they_are_alike() -> None:
    references = [
        Candidate(model="resnet18", train_px=128, precision="amp-bf16", layout="channels_last"),
        Candidate(model="resnet18", train_px=128, precision="amp", layout="channels_last"),
        Candidate(model="mobilenetv3_small_050", train_px=128, precision="amp-bf16"),
        Candidate(model="mobilenetv3_small_050", train_px=128, precision="amp"),
    ]

    def order(*step_s: float) -> tuple[str, ...]:
        paces = {
            candidate.name: StepTiming(batch=64, step_s=seconds, error_s=0.0)
            for candidate, seconds in zip(references, step_s, strict=False)
        }
        return choose.machine_of("cuda", references, paces).precisions

    assert order(0.01, 0.0099) == ("amp-bf16", "amp")
    assert order(0.01, 0.005) == ("amp", "amp-bf16")
    assert order() == ()
    paces = {
        candidate.name: StepTiming(batch=64, step_s=seconds, error_s=0.0)
        for candidate, seconds in zip(references, (0.01, 0.02, 0.03, 0.01), strict=True)
    }
    machine = choose.machine_of("cuda", references, paces)
    assert machine.precisions == ("amp-bf16", "amp")
    assert machine.depthwise_precisions == ("amp", "amp-bf16")
    assert choose.machine_of("cuda", references, {}).dense == 1.0


def test_the_pace_of_a_machine_is_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[object] = []
    run = Simulated.run

    def counted(engine: Simulated, job: Any, **more: Any) -> Any:
        jobs.append(job)
        return run(engine, job, **more)

    monkeypatch.setattr(Simulated, "run", counted)
    first = opened(folder, Store())
    assert len(jobs) == 1
    again = opened(folder, Store())
    assert len(jobs) == 1
    assert first.pool is not None
    assert again.pool is not None
    assert first.pool.machine == again.pool.machine


def test_a_machine_that_cannot_be_measured_is_taken_to_be_slow(folder: Path) -> None:
    run = opened(folder, Store(), SimulatedMachine(image_s=1.0), time="10m")
    assert run.pool is not None
    assert run.pool.machine.dense > 1
    assert run.accountant.ledger().spent_s() <= 0.2 * 600


def test_a_named_backbone_is_tried_first_in_the_layout_that_is_likely_the_faster(folder: Path) -> None:
    """Where there is no time to compare them, the first is taken."""
    names = "resnet18d,mobilenetv3_small_050"
    run = opened(folder, Store(), models=names, sizes="64", device="cuda:0")
    first = {each.model: each.layout for each in reversed(run.candidates)}
    assert first == {"resnet18d": "channels_last", "mobilenetv3_small_050": "nchw"}
    paper = opened(folder, Store(), models=names, sizes="64", device="cuda:0", recipe="paper")
    assert {each.layout for each in paper.candidates} == {"nchw"}


@pytest.mark.parametrize("time", ["5m", "10m", "20m", "1h"])
def test_all_that_is_chosen_is_profiled_within_its_share(folder: Path, time: str) -> None:
    """A comparison of layouts had taken 25 of 600 s, and three of four backbones were never tried."""
    run = opened(folder, Store(), SimulatedMachine(startup_s=3.0), time=time, device="cuda:0")
    assert run.pool is not None
    found = profile_phase.profile(run)
    assert {each.candidate.model for each in found if isinstance(each, Profile)} == set(run.request.models)
    spent_s = sum(entry.charged_s or 0.0 for entry in run.accountant.ledger().by_phase()["profile"])
    assert spent_s <= profile_share(run.request.limit_s) * run.request.limit_s
