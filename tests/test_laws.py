"""Laws of the whole: whatever the machine does, a run ends within its limits or says why not.

The machine is a Law (simulated.engine) drawn by hypothesis; everything above it is the real thing.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from fitwithin import events
from fitwithin import ledger as ledgers
from fitwithin import recipe as recipes
from fitwithin.budget import Remaining
from fitwithin.engine.jobs import Job, TrainJob
from fitwithin.engine.margins import ENDING_S
from fitwithin.engine.results import CARD, WEIGHTS, Failure, Outcome, Probe, Progress
from fitwithin.errors import BudgetError, TrainingError
from fitwithin.inference.ensemble import read_ensemble
from fitwithin.ledger import Heartbeat, Ledger
from fitwithin.pipeline import run as flow
from fitwithin.pipeline.context import RunContext
from fitwithin.planning import cost as costs
from fitwithin.planning import plan as planning
from fitwithin.profiling.batch_search import largest_batch
from fitwithin.profiling.profile import Profile
from fitwithin.report.schema import Report
from fitwithin.store import Store
from fitwithin.units import duration
from simulated.engine import Simulated
from simulated.law import Fault, SimulatedMachine
from simulated.run import (
    FACTS,
    GIB,
    CountedImages,
    Stage,
    Timed,
    cut_off,
    ledger_after_each,
    measure,
    profile,
    request,
    tries,
    without_pages,
)

MIB = 2**20


@pytest.fixture(autouse=True, scope="module")
def _no_pages() -> Iterator[None]:
    """test_page.py writes pages; here hundreds of runs are told."""
    with pytest.MonkeyPatch.context() as patch:
        without_pages(patch)
        yield


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A run's folder, beside a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="fitwithin-law-") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(Path(name) / "cache"))
        folder = Path(name) / "run"
        folder.mkdir()
        yield folder


instants = st.floats(1, 1000)

laws = st.builds(
    SimulatedMachine,
    seed=st.integers(0, 10**6),
    fixed_bytes=st.floats(1e6, 300e6),
    image_bytes=st.floats(1e6, 5e7),
    memory_stairs=st.sampled_from([1, 1, 8, 32]),
    memory_wave=st.sampled_from([0.0, 0.0, 0.02, 0.2]),
    memory_noise=st.sampled_from([0.0, 0.0, 0.005, 0.05]),
    step_fixed_s=st.sampled_from([1e-3, 0.02, 0.2]),
    image_s=st.sampled_from([1e-4, 3e-4, 1e-3, 5e-3]),
    loader_image_s=st.sampled_from([1e-5, 1e-4, 1e-3]),
    pace_noise=st.sampled_from([0.0, 0.05, 0.3]),
    startup_s=st.floats(0.1, 5),
    warmup_s=st.floats(0, 8),
    save_s=st.floats(0.01, 1),
    drifts=st.lists(st.tuples(instants, st.floats(0.5, 3)), max_size=2).map(tuple),
    stalls=st.lists(st.tuples(instants, st.floats(0.1, 60)), max_size=2).map(tuple),
    troubles=st.lists(
        st.builds(Fault, at_s=instants, kind=st.sampled_from(["died", "hang", "memory"])), max_size=4
    ).map(tuple),
)

limits = st.sampled_from([30.0, 120.0, 300.0, 900.0, 1800.0]).flatmap(
    lambda limit_s: st.sampled_from(
        [
            {"time_s": limit_s},
            {"gpu_time_s": limit_s},
            {"time_s": limit_s, "gpu_time_s": limit_s / 2},
            {"time_s": limit_s, "scope": "candidate"},
            {"time_s": limit_s, "inference_ms": 1.0},
        ]
    )
)

requests = st.builds(
    request,
    memory_bytes=st.sampled_from([GIB, 256 * MIB]),
    models=st.sampled_from([("resnet18",), ("resnet18", "resnet50"), ("resnet18", "resnet50", "vgg11")]),
    precisions=st.sampled_from([("amp",), ("fp32",), ("amp", "fp32")]),
    test_sizes=st.sampled_from([(160,), (160, 224)]),
    recipe=st.sampled_from(["paper", "upright"]),
    data_parallel=st.sampled_from([1, 1, 2, 3]),
    slots=st.sampled_from([1, 1, 2, 3, 4]),
)

resizing = st.sampled_from([(), (), ((0.0, 0.5), (0.4, 1.0)), ((0.0, 0.6), (0.3, 0.8), (0.6, 1.0))])


@st.composite
def stages(draw: st.DrawFn) -> Callable[[Path], Stage]:
    """A machine and a request; the folder comes later."""
    asked, law = draw(requests), draw(laws)
    given_limits: dict[str, Any] = {"time_s": None, **draw(limits)}
    asked = replace(asked, budget=replace(asked.budget, **given_limits))
    progress = draw(resizing)
    asked = replace(asked, recipe=replace(asked.recipe, progressive_resizing=progress))
    if asked.budget.scope == "total":
        asked = replace(asked, search=draw(st.sampled_from(["exhaustive", "halving"])))
    images = CountedImages(counts=draw(st.sampled_from([(800, 100, 100), (90, 12, 0), (2000, 300, 200)])))
    return lambda folder: Stage(law, asked, folder, images)


def tell(stage: Stage) -> Report | None:
    """The run's report; None where it was refused for a reason that is a whole sentence."""
    try:
        return flow.execute(stage.run())
    except (BudgetError, TrainingError) as error:
        event(type(error).__name__)
        told = str(error)
    assert len(told) > 40
    budget, spent_s = stage.request.budget, stage.engine.now() - 1000.0
    if budget.scope == "total" and budget.time_s is not None:
        assert spent_s <= budget.time_s + 5, "a refusal took longer than the run would have had"
    return None


def check_books(stage: Stage, report: Report) -> None:
    """Settled and reserved stay within the budget at every event, and in the end nothing is open."""
    budget = stage.request.budget
    every = ledger_after_each(stage.store)
    assert every[-1].balanced
    assert report.receipt.balanced
    for books in every:
        for spent_s, reserved_s, limit_s in _accounts(books, stage):
            assert spent_s + reserved_s <= limit_s * (1 + 1e-9), "settled + reserved went beyond the budget"
    last = every[-1]
    if budget.scope == "total":
        clock_s = stage.engine.now() - 1000.0 + ENDING_S
        assert last.spent_s() == pytest.approx(clock_s), "the books do not add up to the wall clock"
        assert budget.time_s is None or clock_s <= budget.time_s
    assert all(limit.kept for limit in report.receipt.limits if limit.name != "inference"), report.receipt.limits


def _accounts(books: Ledger, stage: Stage) -> Iterator[tuple[float, float, float]]:
    """(settled, reserved, limit) of everything that a budget bounds."""
    budget = stage.request.budget
    if budget.scope == "candidate":
        for name in {entry.key for entry in books.entries if entry.key}:
            mine = [entry for entry in books.entries if entry.key == name and entry.phase != "profile"]
            reserved = [entry.reserved_s for entry in mine if entry.charged_s is None]
            yield sum(entry.charged_s or 0.0 for entry in mine), sum(reserved), stage.request.limit_s
        return
    if budget.time_s is not None:
        yield books.spent_s(), books.reserved_s(), budget.time_s
    if budget.gpu_time_s is not None:
        held = books.reserved_s(gpu=True)
        yield books.spent_s(gpu=True), held, budget.gpu_time_s


def check_trials(stage: Stage, report: Report) -> None:
    """No peak above the cap; whoever was not cut ended at learning rate 0."""
    cap = stage.request.budget.memory_bytes
    for found in events.profiled(stage.store).values():
        assert found.peak_bytes <= cap
        assert all(probe.peak_bytes is not None and probe.peak_bytes <= cap for probe in found.probes if probe.passed)
    trained, _ = events.outcomes(stage.store)
    assert trained
    for trial in trained.values():
        event(f"a trial ended {trial.ended}")
        assert trial.steps > 0
        assert trial.peak_bytes <= cap
        if trial.ended in ("complete", "shortened"):
            assert trial.curve[-1]["lr"] == 0.0
            assert trial.curve[-1]["step"] == trial.steps
    assert report.winner in trained


def check_handover(stage: Stage, report: Report) -> None:
    """There is a model and an ensemble of it, and what validation said holds for the logits that were written."""
    ensemble = read_ensemble(stage.folder)
    folder = stage.folder / ensemble.trial
    assert ensemble.candidate == report.winner
    assert (folder / WEIGHTS).is_file()
    assert (folder / CARD).is_file()
    assert {path.name for path in stage.folder.glob("report.*")} >= {"report.json"}


@tries(80)
@given(stages())
def test_a_run_keeps_its_word_on_any_machine(build: Callable[[Path], Stage]) -> None:
    with empty_folder() as folder:
        stage = build(folder)
        report = tell(stage)
        if report is None:
            return
        event("a report")
        event(f"{stage.request.slots} slots")
        check_books(stage, report)
        check_trials(stage, report)
        check_handover(stage, report)


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class Mortal:
    """An engine whose own process is killed during the ``last``-th job, as by ``kill -9``: what it wrote stays."""

    def __init__(self, inner: Simulated, store: Timed, last: int) -> None:
        self.inner, self.store, self.last = inner, store, last
        self.left: Store | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        outcome = self.inner.run(job, until_at=until_at, on_progress=on_progress)
        self.last -= 1
        if self.last != 0:
            return outcome
        if isinstance(job, TrainJob) and not isinstance(outcome, Failure):
            (Path(job.folder) / "outcome.json").unlink()  # it had not come so far
        self.left = cut_off(self.store, len(self.store.all()))
        for entry in ledgers.read(self.store).open_entries:
            elapsed_s = self.inner.now() - self.store.opened_at[entry.number]
            self.left.beat(entry.number, Heartbeat(number=entry.number, elapsed_s=elapsed_s))
        raise Killed


@tries(40)
@given(stages(), st.integers(1, 14))
def test_a_run_that_is_killed_anywhere_is_carried_on_within_its_budget(
    build: Callable[[Path], Stage], last: int
) -> None:
    with empty_folder() as folder:
        stage = build(folder)
        stage.store = Timed(stage.engine.now)
        stage.engine = mortal = Mortal(stage.engine, stage.store, last)
        try:
            tell(stage)
        except Killed:
            pass
        else:
            return  # it ended first
        at_work = sum(entry.concurrent for entry in ledgers.read(mortal.left).open_entries)
        event(f"killed with {at_work} beside the chain")
        stage.store = mortal.left
        report = tell(stage)
        if report is None:
            return
        event("carried on to a report")
        assert report.receipt.starts == 2
        assert report.receipt.balanced
        check_trials(stage, report)
        for books in ledger_after_each(stage.store):
            for spent_s, reserved_s, limit_s in _accounts(books, stage):
                assert spent_s + reserved_s <= limit_s * (1 + 1e-9)


@tries(25)
@given(stages())
def test_telling_a_finished_story_again_changes_nothing(build: Callable[[Path], Stage]) -> None:
    with empty_folder() as folder:
        stage = build(folder)
        report = tell(stage)
        if report is None:
            return
        jobs, trained = len(stage.engine.jobs), events.outcomes(stage.store)
        again = flow.execute(stage.run())
        assert len(stage.engine.jobs) == jobs, "something was done twice"
        assert events.outcomes(stage.store) == trained
        assert (again.winner, again.methods, again.views) == (report.winner, report.methods, report.views)


@tries(20)
@given(st.integers(0, 10**6), st.sampled_from([300.0, 900.0]), st.integers(1, 4), st.integers(1, 3))
def test_on_a_steady_machine_plans_come_true(seed: int, time_s: float, several: int, slots: int) -> None:
    """No drift, no stall, no trouble: every trial completes, within its predicted interval and its allotment."""
    models = ("resnet18", "resnet50", "resnet34", "vgg11")[:several]
    with empty_folder() as folder:
        stage = Stage(
            SimulatedMachine(seed=seed, pace_noise=0.05), request(models=models, time_s=time_s, slots=slots), folder
        )
        report = tell(stage)
        assert report is not None
        planned = {trial.candidate.name for trial in flow.make_plan(stage.run()).trials}
        assert planned
        for row in report.candidates:
            if row.name not in planned:
                assert row.status == "rejected"
                continue
            assert row.status == "trained"
            assert row.reason is not None
            assert row.reason.startswith("complete")
            assert row.predicted_low_s <= row.actual_s <= row.predicted_high_s
        (handed,) = (method for method in report.methods if method.delivered)
        assert handed.validation.correct >= 0.5 * handed.validation.total


def test_a_frozen_plan_keeps_its_steps_on_another_machine() -> None:
    with empty_folder() as folder:
        first = Stage(SimulatedMachine(), request(time_s=300.0), folder)
        run = first.run()
        plan = flow.make_plan(run)
    with empty_folder() as folder:
        slower = Stage(SimulatedMachine(image_s=1.1e-3), request(time_s=600.0), folder)
        flow.execute(slower.run(), replace(plan, frozen=True))
        trained, _ = events.outcomes(slower.store)
        assert [trial.steps for trial in trained.values()] == [trial.steps for trial in plan.trials]


@tries(40)
@given(laws, st.floats(8, 60))
def test_the_least_that_a_refusal_names_would_really_do(law: SimulatedMachine, time_s: float) -> None:
    calm = replace(law, drifts=(), stalls=(), troubles=(), pace_noise=0.0, memory_noise=0.0)
    with empty_folder() as folder:
        try:
            flow.execute(Stage(calm, request(time_s=time_s), folder).run())
            return
        except BudgetError as error:
            told = str(error)
    assume("the least that would do" in told)
    event("refused")
    least_s = duration(told.rpartition(" is ")[2])
    assert least_s > time_s
    with empty_folder() as folder:
        assert flow.execute(Stage(calm, request(time_s=least_s), folder).run()).winner is not None


# --- more never gives less -------------------------------------------------------------------------------------------

recipe_names = st.sampled_from(["paper", "upright"])


@tries(60)
@given(laws, st.integers(100 * MIB, GIB), st.floats(1, 3))
def test_more_memory_never_gives_a_smaller_batch(law: SimulatedMachine, memory_bytes: int, factor: float) -> None:
    steady = replace(law, memory_wave=0.0, memory_noise=0.0, drifts=(), stalls=(), troubles=())

    def certified(n_bytes: int) -> int:
        run = Stage(steady, request(memory_bytes=n_bytes), Path()).run()
        found = _measure(run)
        return found.batch if isinstance(found, Profile) else 0

    assert certified(int(memory_bytes * factor)) >= certified(memory_bytes)


def _measure(run: RunContext) -> Any:
    (candidate,) = run.candidates
    (found,) = measure([candidate], run.setting, run.engine, n_train=run.data.train)
    return found


profiles = st.builds(
    profile,
    model=st.sampled_from(["a", "b", "c", "d"]),
    precision=st.sampled_from(["amp", "fp32"]),
    batch=st.integers(2, 256),
    step_s=st.floats(0.01, 1),
    dummy_step_s=st.just(0.01),
    step_high_s=st.just(1.05),
    startup_s=st.floats(0.5, 10),
    warmup_s=st.floats(0, 10),
    save_s=st.floats(0, 5),
    eval_first_s=st.floats(0, 3).map(lambda first_s: {160: first_s, 224: first_s}),
).map(
    lambda p: replace(
        p, timing=replace(p.timing, step_low_s=p.timing.step_s * 0.95, step_high_s=p.timing.step_s * 1.05)
    )
)


def draw_up(
    known: list[Profile], available_s: float, scope: str = "total", recipe: str = "paper", **room: Any
) -> planning.Plan:
    workload = costs.Workload(data=FACTS, recipe=recipes.load(recipe), view_sizes=(160, 224), scope=scope)
    left = Remaining(time_s=available_s, gpu_time_s=room.pop("slot_s", math.inf), **room)
    return planning.make_plan(known, [], workload, left=left, request=request(), fingerprint="f")


def rank(*args: Any, **room: Any) -> tuple[int, float]:
    """How many candidates get their schedule, then the shortest of these; a refusal is below every plan."""
    try:
        trials = draw_up(*args, **room).trials
    except BudgetError:
        return (0, 0.0)
    return len(trials), min((trial.epochs for trial in trials), default=0.0)


@tries(300)
@given(profiles, st.floats(0, 4000), st.floats(0, 60), st.sampled_from(["total", "candidate"]))
def test_affordable_steps_are_the_most_that_fit(one: Profile, allotted_s: float, more_s: float, scope: str) -> None:
    paper = recipes.load("paper")
    cost = costs.costs(one, costs.Workload(data=FACTS, recipe=paper, view_sizes=(160, 224), scope=scope))
    steps = cost.affordable_steps(allotted_s)
    assert cost.affordable_steps(allotted_s + more_s) >= steps
    assert steps == 0 or cost.needed_s(steps) <= allotted_s
    assert cost.needed_s(max(2, steps + 1)) > allotted_s


known_profiles = st.lists(profiles, min_size=1, max_size=5, unique_by=lambda p: p.candidate)


@tries(400)
@given(
    known_profiles,
    st.floats(1, 4000),
    st.floats(0, 400),
    st.sampled_from(["total", "candidate"]),
    recipe_names,
    st.integers(1, 4),
)
def test_more_time_never_gives_a_lesser_plan(
    known: list[Profile], available_s: float, more_s: float, scope: str, recipe: str, slots: int
) -> None:
    before, after = (
        rank(known, seconds, scope, recipe, slots=slots) for seconds in (available_s, available_s + more_s)
    )
    assert after >= before
    assert rank(known, available_s, scope, recipe, slots=slots + 1) >= before


@tries(200)
@given(profiles, st.floats(1, 4000), st.floats(1, 4), st.sampled_from(["total", "candidate"]))
def test_more_memory_never_gives_a_lesser_plan(small: Profile, available_s: float, factor: float, scope: str) -> None:
    """A larger batch at the same images/s costs at most what whole steps round away (or the only epoch)."""
    large_batch = min(FACTS.train, math.ceil(small.batch * factor))
    grown = large_batch / small.batch
    large = replace(
        small,
        batch=large_batch,
        timing=replace(
            small.timing,
            step_s=small.timing.step_s * grown,
            step_low_s=small.timing.step_low_s * grown,
            step_high_s=small.timing.step_high_s * grown,
        ),
    )
    before, after = rank([small], available_s, scope), rank([large], available_s, scope)
    assert after[1] >= before[1] - 1 - large_batch / FACTS.train


@tries(200)
@given(
    known_profiles,
    st.floats(1, 4000),
    st.sampled_from(["total", "candidate"]),
    recipe_names,
    st.integers(1, 4),
    st.floats(1, 4),
)
def test_what_a_plan_promises_fits_into_its_allotments(
    known: list[Profile], available_s: float, scope: str, recipe: str, slots: int, paid: float
) -> None:
    """All of them fit into the clock, in as many rounds as the slots need, and into the device time."""
    slot_s = paid * available_s
    try:
        plan = draw_up(known, available_s, scope, recipe, slots=slots, slot_s=slot_s)
    except BudgetError:
        return
    shares = [trial.allotted_s for trial in plan.trials]
    assert max(shares) <= available_s
    if scope == "total":
        rounds, after_s = -(-len(shares) // slots), max(trial.evaluation_s for trial in plan.trials)
        event(f"{rounds} rounds of {slots}")
        assert rounds * max(shares) + after_s <= available_s * (1 + 1e-9)
        assert math.fsum(shares) + after_s <= slot_s * (1 + 1e-9)
    for trial in plan.trials:
        inside_s = trial.evaluation_s if scope == "candidate" else 0.0
        assert trial.predicted_low_s <= trial.predicted_s <= trial.predicted_high_s
        assert trial.predicted_high_s + inside_s <= trial.allotted_s
    names = {trial.candidate for trial in plan.trials} | {rejection.candidate for rejection in plan.rejections}
    assert names == {p.candidate for p in known}


# --- the search for the batch ----------------------------------------------------------------------------------------


def searched(peaks: Sequence[int], cap: int, *, scouting: bool = False) -> tuple[int, str, list[Probe]]:
    """The search on a machine that takes ``peaks[batch]`` bytes; a scout sees a point at half the way besides."""
    asked: list[int] = []

    def run(batch: int) -> Probe:
        asked.append(batch)
        passed = peaks[batch] <= cap
        half = next(b for b in range(batch, len(peaks)) if peaks[b] > cap / 2 or b == len(peaks) - 1)
        points = ((half, peaks[half]),) if scouting and len(asked) == 1 and half > batch else ()
        return Probe(batch=batch, passed=passed, peak_bytes=peaks[batch], scouted=points)

    return largest_batch(run, cap_bytes=cap, limit=len(peaks) - 1)


@tries(500)
@given(
    st.integers(2, 600),
    st.data(),
    st.sampled_from(["line", "lies", "flat", "falling"]),
    st.integers(2, 64),
)
def test_the_batch_passed_and_the_next_did_not_for_any_oracle(
    limit: int, data: st.DataObject, shape: str, first: int
) -> None:
    verdicts: dict[int, bool] = {}
    kind = data.draw(st.sampled_from(["any", "threshold"]))
    edge = data.draw(st.integers(0, 700))
    rng = data.draw(st.randoms(use_true_random=False))

    def passes(batch: int) -> bool:
        if batch not in verdicts:
            verdicts[batch] = rng.random() < 0.6 if kind == "any" else batch <= edge
        return verdicts[batch]

    peaks = {
        "line": lambda batch: 100 + 10 * batch,
        "lies": lambda batch: rng.randrange(1, 10**6),
        "flat": lambda batch: 100,
        "falling": lambda batch: 10**6 - 10 * batch,
    }
    batch, why, probes = largest_batch(
        lambda b: Probe(batch=b, passed=passes(b), peak_bytes=peaks[shape](b) if passes(b) else None),
        cap_bytes=100 + 10 * 300,
        limit=limit,
        first=first,
    )
    ran = {probe.batch: probe.passed for probe in probes}
    assert why
    assert all(2 <= size <= limit for size in ran)
    assert len(ran) == len(probes), "a size ran twice"
    if batch == 0:
        assert not ran[2]
    else:
        assert ran[batch] is True
        assert batch == limit or ran[batch + 1] is False
    if kind == "threshold" and edge >= 2:
        assert batch == min(edge, limit)
        assert len(probes) <= 2 * math.log2(limit) + 12


@pytest.mark.parametrize(
    ("scouting", "noise", "most"),
    [
        (False, 0.0, 5.0),
        (False, 0.001, 5.5),
        (False, 0.005, 6.0),
        (True, 0.0, 3.5),
        (True, 0.001, 4.5),
        (True, 0.005, 5.0),
    ],
)
def test_a_line_with_little_noise_takes_few_probes(scouting: bool, noise: float, most: float) -> None:
    """At 6 GiB and 10 to 80 MB an image (batches of 70 to 600, as the paper's), noise drawn anew for every batch."""
    cap, counts = 6 * GIB, []
    for seed in range(400):
        rng = random.Random(seed)
        base, slope = rng.uniform(2e8, 9e8), 1e7 * 8 ** rng.random()
        factors = [1 + noise * rng.uniform(-1, 1) for _ in range(1001)]
        peaks = [int((base + batch * slope) * factor) for batch, factor in enumerate(factors)]
        batch, _, probes = searched(peaks, cap, scouting=scouting)
        assert batch > 0
        counts.append(len(probes))
    assert statistics.fmean(counts) <= most, statistics.fmean(counts)


def test_ample_memory_takes_three_probes() -> None:
    assert [probe.batch for probe in searched(range(10**6, 10**6 + 5001), 10**9)[2]] == [8, 24, 5000]


@tries(15)
@given(st.integers(0, 10**6))
def test_validation_and_evaluation_of_the_simulation_agree(seed: int) -> None:
    """The double itself: the plain view at the training size is right as often as the best validation was."""
    with empty_folder() as folder:
        stage = Stage(SimulatedMachine(seed=seed), request(time_s=200.0, test_sizes=(160, 224)), folder)
        report = flow.execute(stage.run())
        (row,) = report.candidates
        (symmetric,) = (m for m in report.methods if m.method.startswith("Symmetric"))
        assert symmetric.validation == row.validation
        assert json.loads((folder / "receipt.json").read_text())["balanced"]


@pytest.mark.parametrize("limit", ["time_s", "gpu_time_s"])
def test_a_gpu_budget_is_spent_on_all_gpus_at_once(limit: str) -> None:
    """With two GPUs at a time, 600 GPU seconds are 300 by the clock, but for what one of them does alone."""
    with empty_folder() as folder:
        stage = Stage(SimulatedMachine(), request(data_parallel=2, **{limit: 600.0}), folder)
        report = flow.execute(stage.run())
        books = ledger_after_each(stage.store)[-1]
    held = {entry.phase: entry.gpus for entry in books.entries}
    assert (held["profile"], held["train"], held["evaluate"], held["report"]) == (2, 2, 1, 0)
    charged_s = {phase: sum(e.charged_s or 0.0 for e in entries) for phase, entries in books.by_phase().items()}
    gpu_s = 2 * (charged_s["profile"] + charged_s["train"]) + charged_s["evaluate"]
    assert books.spent_s(gpu=True) == pytest.approx(gpu_s)
    assert sum(phase.gpu_s for phase in report.receipt.phases) == pytest.approx(gpu_s)
    if limit == "gpu_time_s":
        (promise,) = (found for found in report.receipt.limits if found.name == "device time")
        assert promise.spent == pytest.approx(gpu_s)
        assert promise.kept
        assert "2 by what is profiled and trained" in promise.note
        assert books.spent_s() < 320
    else:
        assert 400 < books.spent_s() <= 600
