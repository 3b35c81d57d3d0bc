"""A run whose candidates share the time by successive halving, by a law in place of hardware."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin import events
from fitwithin import ledger as ledgers
from fitwithin.candidate import Candidate
from fitwithin.engine.jobs import TrainJob, evaluates_in_process
from fitwithin.engine.margins import ENDING_S
from fitwithin.engine.results import OUTCOME
from fitwithin.events import TrialEnded
from fitwithin.inference.ensemble import read_ensemble
from fitwithin.ledger import EntryOpened, Heartbeat
from fitwithin.pipeline import profile_phase
from fitwithin.pipeline import run as flow
from fitwithin.planning import plan as planning
from simulated.law import Fault, SimulatedMachine
from simulated.run import (
    GIB,
    CountedImages,
    Stage,
    Timed,
    asked_trials,
    cut_off,
    ledger_after_each,
    request,
    without_pages,
)

MODELS = ("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "vgg13")

Begin = Callable[..., Stage]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)

    def stage(
        *,
        time_s: float = 900.0,
        folder: str = "run",
        law: SimulatedMachine | None = None,
        slots: int = 1,
        min_gain: float | None = None,
        **recipe: Any,
    ) -> Stage:
        asked = request(models=MODELS, sizes=(160, 224), test_sizes=(160, 224), time_s=time_s, slots=slots)
        asked = replace(asked, search="halving", min_gain=min_gain, recipe=replace(asked.recipe, **recipe))
        return Stage(law or SimulatedMachine(half_epochs=20), asked, tmp_path / folder, CountedImages())

    return stage


def asked(stage: Stage) -> list[tuple[str, int, float]]:
    return [(t.candidate.name, t.rung, t.seconds) for t in asked_trials(stage.store)]


def test_the_weak_get_little_and_the_winner_what_is_left(begin: Begin) -> None:
    stage = begin()
    report = flow.execute(stage.run())
    plan = flow.make_plan(stage.run())
    assert plan.search is not None
    assert plan.search.counts == (16, 4)
    trials = asked_trials(stage.store)
    assert [sum(trial.rung == rung for trial in trials) for rung in (0, 1, -1)] == [16, 4, 1]
    final = trials[-1]
    assert final.final
    assert final.candidate.name == report.winner
    assert final.seconds >= plan.search.final_s
    assert read_ensemble(stage.folder).trial.endswith(f"{report.winner}-final")
    rows = {row.name: row for row in report.candidates}
    assert len(rows) == 16
    out = [row for row in rows.values() if row.name != report.winner]
    assert all("went on" in row.reason and "100 validation images" in row.reason for row in out)
    assert rows[report.winner].actual_s == pytest.approx(
        sum(t.seconds for t in trials if t.candidate.name == report.winner), rel=0.1
    )
    spent = next(limit for limit in report.receipt.limits if limit.name == "time")
    assert spent.kept
    assert spent.spent > 0.9 * 900


@pytest.mark.parametrize("kind", [None, "died"])
def test_who_has_the_final_training_is_evaluated_without_another_start(begin: Begin, kind: str | None) -> None:
    """And has the time that was kept for it. (One that died before long is taken up again.)"""
    stage = begin(law=SimulatedMachine(half_epochs=20, startup_s=4.0), time_s=590.0)
    run = stage.run()
    flow.make_plan(run)
    if kind is not None:
        stage.engine.law = replace(stage.engine.law, troubles=(Fault(at_s=500.0, kind=kind),))
    report = flow.execute(run)
    final = [job for job in stage.engine.jobs if isinstance(job, TrainJob) and job.folder.endswith("-final")]
    assert len(final) == (1 if kind is None else 2)
    assert all(evaluates_in_process(job) for job in final)
    assert not any(evaluates_in_process(job) for job in stage.engine.jobs if job not in final)
    (evaluated,) = (e for e in run.accountant.ledger().entries if e.phase == "evaluate")
    assert evaluated.charged_s is not None
    assert evaluated.charged_s < 4.0
    (delivered,) = (row for row in report.methods if row.delivered)
    assert delivered.test is not None
    assert all(limit.kept for limit in report.receipt.limits)
    assert run.accountant.ledger().spent_s() > 590 - run.closing_s - 1


def test_what_a_final_training_that_dies_leaves_is_the_second_ones(begin: Begin) -> None:
    """It dies again and again before it has left a model: the rest of the run is another's, who is evaluated."""
    calm = begin(folder="calm")
    first = flow.execute(calm.run()).winner
    entries = calm.run().accountant.ledger().entries
    place = next(n for n, entry in enumerate(entries) if entry.key.endswith("-final"))
    begun_s = sum(entry.charged_s or 0.0 for entry in entries[:place])
    troubles = tuple(Fault(at_s=begun_s + at_s, kind="died") for at_s in (0.5, 0.6, 0.7))
    stage = begin(folder="troubled", law=SimulatedMachine(half_epochs=20, troubles=troubles))
    report = flow.execute(stage.run())
    died, final = (trial for trial in asked_trials(stage.store) if trial.final)
    assert died.candidate.name == first
    assert final.candidate.name == report.winner != first
    assert read_ensemble(stage.folder).trial.endswith(f"{report.winner}-final")
    rows = {row.name: row for row in report.candidates}
    assert "of those whose final training did not fail" in report.winner_why
    assert "simulated: died" in rows[str(first)].reason
    (delivered,) = (row for row in report.methods if row.delivered)
    assert delivered.test is not None
    assert report.receipt.balanced
    assert all(limit.kept for limit in report.receipt.limits)
    spent = next(limit for limit in report.receipt.limits if limit.name == "time")
    assert spent.spent > 0.9 * 900


def test_time_that_gains_too_little_is_left_unspent_and_the_report_says_so(begin: Begin) -> None:
    greedy, frugal = begin(), begin(folder="frugal", min_gain=500.0)
    reports = [flow.execute(stage.run()) for stage in (greedy, frugal)]
    spent = [limit.spent for each in reports for limit in each.receipt.limits if limit.name == "time"]
    final = asked_trials(frugal.store)[-1]
    assert final.final
    assert final.unspent_s > 60
    assert spent[1] == pytest.approx(spent[0] - final.unspent_s, abs=20)
    (note,) = (note for note in reports[1].notes if "left unspent" in note)
    assert not any("left unspent" in note for note in reports[0].notes)
    assert "one GPU-hour more would gain less than 500 points" in note
    plan = flow.make_plan(frugal.run())
    assert planning.from_json(plan.to_json()) == plan


def test_where_there_is_time_for_one_there_is_no_search(begin: Begin) -> None:
    stage = begin(time_s=40.0)
    flow.execute(stage.run())
    assert asked(stage) == []


def test_a_model_goes_on_where_the_recipe_lets_it(begin: Begin) -> None:
    for warm_start in (False, True):
        stage = begin(folder=str(warm_start), warm_start=warm_start)
        flow.execute(stage.run())
        starts = {Path(job.folder).name: job.init_from for job in stage.engine.jobs if isinstance(job, TrainJob)}
        final = next(name for name in starts if name.endswith("-final"))
        rung = final.replace("-final", "-rung1")
        assert Path(starts[final]).name == (rung if warm_start else "")
        assert starts[rung.removesuffix("-rung1")] == ""


@pytest.mark.parametrize("cut", [60, 90, 120, 140])
def test_a_search_that_was_interrupted_asks_what_it_would_have_asked(begin: Begin, cut: int) -> None:
    """The store ends after so many events, as where the process was killed: the rest is told again."""
    whole = begin(folder="whole")
    flow.execute(whole.run())
    assert len(whole.store.all()) > cut
    again = begin(folder="whole")
    again.store = cut_off(whole.store, cut)
    there = asked_trials(again.store)
    report = flow.execute(again.run())
    assert asked_trials(again.store)[: len(there)] == there
    assert sum(trial.rung == 0 for trial in asked_trials(again.store)) == 16
    assert report.receipt.balanced
    assert all(limit.kept for limit in report.receipt.limits)


@pytest.mark.parametrize("limit", ["time_s", "gpu_time_s"])
def test_killed_at_the_end_of_the_final_training_no_more_is_promised_than_there_is(begin: Begin, limit: str) -> None:
    """It had the time of the evaluation too, so it was charged more than its own seconds: nothing is left of these."""
    whole = begin(folder="whole", law=SimulatedMachine(half_epochs=20, startup_s=4.0))
    limits = {"time_s": None, "gpu_time_s": None, limit: 900.0}
    whole.request = replace(whole.request, budget=replace(whole.request.budget, **limits))
    flow.execute(whole.run())
    (opened,) = (e for e in whole.store.read(EntryOpened) if e.key.endswith("-final") and e.phase == "train")
    happened = events.read_all(whole.store)
    again = replace(whole, store=cut_off(whole.store, happened.index(opened) + 1))
    again.store.beat(opened.number, Heartbeat(number=opened.number, elapsed_s=opened.reserved_s - 1.0))
    (whole.folder / "candidates" / opened.key / OUTCOME).unlink(missing_ok=True)
    report = flow.execute(again.run())
    assert all(kept.kept for kept in report.receipt.limits)
    for books in ledger_after_each(again.store):
        gpu = limit == "gpu_time_s"
        assert books.spent_s(gpu=gpu) + books.reserved_s(gpu=gpu) <= 900.0 * (1 + 1e-9)


def test_the_plan_of_a_search_is_json(begin: Begin) -> None:
    plan = flow.make_plan(begin().run())
    again = planning.from_json(plan.to_json())
    assert (again.search, again.trials, again.profiles) == (plan.search, plan.trials, plan.profiles)
    assert json.loads(plan.to_json())["search"]["counts"] == [16, 4]
    assert {profile.candidate for profile in plan.profiles} == {trial.candidate for trial in plan.trials}


def steps(stage: Stage) -> dict[str, int]:
    """The steps that every trial took."""
    trained, failed = events.outcomes(stage.store)
    assert failed == {}
    return {name: one.steps for name, one in trained.items()}


@pytest.mark.parametrize("slots", [1, 3])
def test_a_frozen_search_has_its_steps_on_another_machine(begin: Begin, slots: int) -> None:
    """A faster one takes no more of them, a slower one as many where it has the time, and none of both profiles."""
    drawn = begin(folder="drawn", slots=slots)
    plan = replace(flow.make_plan(drawn.run()), frozen=True)
    told = {}
    for name, image_s, time_s in (("same", 1e-3, 900.0), ("faster", 0.8e-3, 900.0), ("slower", 1.3e-3, 1300.0)):
        stage = begin(folder=name, slots=slots, law=SimulatedMachine(half_epochs=20, image_s=image_s), time_s=time_s)
        report = flow.execute(stage.run(), plan)
        assert all(limit.kept for limit in report.receipt.limits)
        assert not any(entry.phase == "profile" for entry in stage.run().accountant.ledger().entries)
        told[name] = report.winner, steps(stage), sorted(asked(stage))
    assert told["faster"] == told["same"]
    assert told["slower"] == told["same"]
    first = {trial.name: trial.steps for trial in plan.trials}
    assert first.items() <= told["same"][1].items()
    assert len(told["same"][1]) > len(first) + slots


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_a_frozen_search_that_was_interrupted_is_the_uninterrupted_one(begin: Begin, cut: float) -> None:
    """The store ends after so many events, as where the process was killed."""
    plan = replace(flow.make_plan(begin(folder="drawn").run()), frozen=True)
    whole = begin(folder="whole")
    report = flow.execute(whole.run(), plan)
    again = begin(folder="whole")
    again.store = cut_off(whole.store, int(cut * len(whole.store.all())))
    resumed = flow.execute(again.run(), plan)
    assert resumed.winner == report.winner
    assert steps(again) == steps(whole)
    assert asked(again) == asked(whole)


def test_a_frozen_search_without_the_time_is_cut_and_keeps_the_limit(begin: Begin) -> None:
    plan = replace(flow.make_plan(begin(folder="drawn").run()), frozen=True)
    stage = begin(folder="short", time_s=500.0)
    report = flow.execute(stage.run(), plan)
    assert all(limit.kept for limit in report.receipt.limits)
    trained, _ = events.outcomes(stage.store)
    assert any(one.ended == "cut" for one in trained.values())


def test_the_bracket_is_said_in_a_sentence(begin: Begin) -> None:
    plan = flow.make_plan(begin().run())
    assert plan.search is not None
    told = plan.search.summary
    assert told.startswith("Successive halving: 16 trials of ")
    assert ", then the best 4 trials of " in told
    assert told.endswith(" for the winner.")


# --- side by side ----------------------------------------------------------------------------------------------------


#: After such shares of its events a run is killed.
CUTS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def spans(stage: Stage) -> list[tuple[str, float, float]]:
    """Every trial's entry beside the chain: its key, and when it was open by the simulated clock."""
    clock: dict[int, float] = stage.store.opened_at  # type: ignore[attr-defined]
    entries = [e for e in ledgers.read(stage.store).entries if e.concurrent and e.phase == "train"]
    return [(e.key, clock[e.number], clock[e.number] + (e.charged_s or 0.0)) for e in entries]


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_side_by_side_all_get_more_and_as_many_finals_as_slots(begin: Begin, slots: int) -> None:
    alone, several = begin(folder="alone"), begin(slots=slots)
    several.store = Timed(several.engine.now)
    flow.execute(alone.run())
    report = flow.execute(several.run())
    first, plan = flow.make_plan(alone.run()), flow.make_plan(several.run())
    assert plan.search is not None
    assert first.search is not None
    assert plan.search.slots == slots
    assert plan.search.budget_s > 0.95 * slots * first.search.budget_s
    assert f"{slots} side by side" in plan.search.summary
    trials = asked_trials(several.store)
    assert sum(trial.final for trial in trials) == slots
    trained, failed = events.outcomes(several.store)
    assert failed == {}
    assert {trial.ended for trial in trained.values()} == {"complete"}, "the clock cut nobody's schedule"
    assert report.winner in trained
    books = ledgers.read(several.store)
    assert books.spent_s() == pytest.approx(several.engine.now() - 1000.0 + ENDING_S)
    assert books.spent_s(gpu=True) > 0.93 * (slots - 0.3) * books.spent_s()
    open_at_once = [sum(begun_at < other < ended_at for _, begun_at, ended_at in spans(several)) for _, other, _ in
                    spans(several)]  # fmt: skip
    assert max(open_at_once) == slots - 1, "beside one that begins, so many are at work"


@pytest.mark.parametrize("limit", ["time_s", "gpu_time_s"])
@pytest.mark.parametrize(("time_s", "startup_s"), [(290.0, 4.0), (110.0, 1.0)])
def test_side_by_side_whoever_wins_is_evaluated_without_another_start(
    begin: Begin, limit: str, time_s: float, startup_s: float
) -> None:
    """Both processes of the final trainings stay; what one holds until the other has ended is in the books. (Of short
    ones too: for 25 s of training evaluations were foreseen to take 6 to 12.)"""
    law = SimulatedMachine(half_epochs=20, startup_s=startup_s, pace_noise=0.02, image_s=2e-4, eval_first_s=1.0)
    stage = begin(slots=2, law=law)
    limits = {"time_s": time_s} if limit == "time_s" else {"time_s": None, "gpu_time_s": 2 * time_s}
    stage.request = replace(stage.request, budget=replace(stage.request.budget, **limits))
    run = stage.run()
    report = flow.execute(run)
    final = [job for job in stage.engine.jobs if isinstance(job, TrainJob) and job.folder.endswith("-final")]
    assert len(final) == 2
    assert all(evaluates_in_process(job) for job in final)
    books = run.accountant.ledger()
    waited, evaluated = (entry for entry in books.entries if entry.phase == "evaluate")
    assert (waited.concurrent, waited.gpus, evaluated.gpus) == (True, 1, 1)
    assert {waited.key, evaluated.key} <= {f"{Path(job.folder).name}" for job in final}
    for entry in (waited, evaluated):
        assert entry.charged_s is not None
        assert entry.charged_s < min(max(startup_s, 2.5), entry.reserved_s), "no start"
    (delivered,) = (row for row in report.methods if row.delivered)
    assert delivered.test is not None
    assert all(kept.kept for kept in report.receipt.limits)
    assert books.spent_s(gpu=limit == "gpu_time_s") > limits[limit] - run.closing_s - 2


def test_a_plan_gives_every_trial_its_allotment_on_slots(begin: Begin) -> None:
    stage = begin(slots=3, time_s=400.0)
    stage.request = replace(stage.request, search="exhaustive")
    stage.store = Timed(stage.engine.now)
    flow.execute(stage.run())
    plan = flow.make_plan(stage.run())
    assert len(plan.trials) > 3
    trained, _ = events.outcomes(stage.store)
    assert set(trained) == {trial.name for trial in plan.trials}
    assert {trial.ended for trial in trained.values()} == {"complete"}
    rounds = -(-len(plan.trials) // 3)
    assert {trial.allotted_s for trial in plan.trials} == {plan.trials[0].allotted_s}
    assert 0.6 * 400 < rounds * plan.trials[0].allotted_s < 400
    held: dict[str, float] = {}
    for key, begun_at, ended_at in spans(stage):
        assert sum(begun_at < other < ended_at for other in held.values()) <= 3
        held[key] = begun_at


def test_where_each_has_a_slot_there_is_nothing_to_search(begin: Begin) -> None:
    stage = begin(slots=4)
    stage.request = replace(stage.request, models=MODELS[:2])
    flow.execute(stage.run())
    plan = flow.make_plan(stage.run())
    assert plan.search is None
    assert len(plan.trials) == 4
    assert min(trial.allotted_s for trial in plan.trials) > 800


@pytest.mark.parametrize("cut", CUTS)
def test_a_search_that_was_killed_with_several_trials_open_takes_all_of_them_up(begin: Begin, cut: float) -> None:
    """The store ends after so many events: who was asked for and had no end is asked for first, and no one else's."""
    whole = begin(folder="whole", slots=3)
    flow.execute(whole.run())
    kept = int(cut * len(whole.store.all()))
    again = begin(folder="whole", slots=3)
    again.store = cut_off(whole.store, kept)
    asked_before = asked_trials(again.store)
    ended_before = {event.name for event in again.store.read(TrialEnded)}
    still_open = [trial.name for trial in asked_before if trial.name not in ended_before]
    assert len(still_open) <= 3
    report = flow.execute(again.run())
    later = events.read_all(again.store)[kept:]
    opened = [event.key for event in later if isinstance(event, EntryOpened) and event.concurrent]
    trained_again = [key for key in opened if not key.startswith("profile")]
    if asked_before:
        assert trained_again[: len(still_open)] == still_open
    asked_in_all = asked_trials(again.store)
    assert asked_in_all[: len(asked_before)] == asked_before, "what was asked stays asked"
    names = [trial.name for trial in asked_in_all]
    assert len(set(names)) == len(names), "nothing is tried twice"
    trained, failed = events.outcomes(again.store)
    assert set(names) == set(trained) | set(failed)
    assert report.receipt.balanced
    assert all(limit.kept for limit in report.receipt.limits)


def test_those_cuts_leave_several_open(begin: Begin) -> None:
    """The test above means what it says."""
    whole = begin(folder="whole", slots=3)
    flow.execute(whole.run())
    most = 0
    for cut in CUTS:
        kept = cut_off(whole.store, int(cut * len(whole.store.all())))
        ended = {event.name for event in kept.read(TrialEnded)}
        most = max(most, sum(trial.name not in ended for trial in asked_trials(kept)))
    assert most == 3


def test_a_run_told_twice_is_the_same_run(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, in simulated time, is deterministic."""
    told = []
    for folder in ("one", "two"):
        monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / f"cache-{folder}"))
        stage = begin(folder=folder, slots=4, law=SimulatedMachine(half_epochs=20, pace_noise=0.2))
        flow.execute(stage.run())
        told.append(events.read_all(stage.store))
    assert told[0] == told[1]


@dataclass(frozen=True, kw_only=True)
class Cursed(SimulatedMachine):
    """The ``cursed`` candidates hit the cap, in spite of the certificates that they had before."""

    cursed: frozenset[str] = frozenset()

    def memory_bytes(self, candidate: Candidate, batch: int, job: int = 0) -> int:
        return 2 * GIB if candidate.name in self.cursed else super().memory_bytes(candidate, batch, job)


def test_a_trial_that_fails_leaves_its_slot_to_others(begin: Begin) -> None:
    """The others' trials go on as they were."""
    law = Cursed(half_epochs=20)
    stage = begin(slots=2, law=law)
    flow.make_plan(stage.run())
    stage.engine.law = replace(law, cursed=frozenset(f"resnet34-amp-{px}" for px in (160, 224)))
    report = flow.execute(stage.run())
    trained, failed = events.outcomes(stage.store)
    assert {name.partition("-")[0] for name in failed} == {"resnet34"}
    assert {trial.ended for trial in trained.values()} == {"complete"}
    assert report.receipt.balanced


@pytest.mark.parametrize("slots", [1, 2])
def test_where_all_that_entered_fail_those_left_out_have_what_is_left(begin: Begin, slots: int) -> None:
    law = Cursed(half_epochs=20, startup_s=1.0)
    flow.make_plan(begin(folder="before", slots=slots, law=law).run())  # all are profiled
    stage = begin(slots=slots, law=law, time_s=30.0 * slots)
    plan = flow.make_plan(stage.run())
    assert plan.search is not None
    others = {row.candidate.name for row in plan.rejections if row.reason.startswith("left out")}
    assert others
    stage.engine.law = replace(law, cursed=frozenset(trial.candidate.name for trial in plan.trials))
    report = flow.execute(stage.run())
    names = [row.name for row in report.candidates]
    assert len(names) == len(set(names)) == 16
    assert report.winner in others
    assert report.search is not None
    assert {*names} - {verdict.candidate for verdict in report.search.eliminations} == {report.winner}
    assert report.receipt.balanced
    assert all(limit.kept for limit in report.receipt.limits)


def test_profiles_are_made_on_all_slots_and_neighbours_learn_from_each_other(begin: Begin) -> None:
    alone, several = begin(folder="alone"), begin(slots=4)
    runs = {}
    for stage, cache in ((alone, "a"), (several, "b")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FITWITHIN_CACHE", str(stage.folder.parent / cache))
            begun_at = stage.engine.now()
            found = profile_phase.profile(stage.run())
            runs[cache] = {each.candidate: each for each in found}, stage.engine.now() - begun_at
    (one, alone_s), (other, several_s) = runs["a"], runs["b"]
    assert {c: p.batch for c, p in one.items()} == {c: p.batch for c, p in other.items()}
    assert several_s < 0.3 * alone_s
    entries = [e for e in ledgers.read(several.store).entries if e.phase == "profile"]
    assert [(e.key, e.gpus) for e in entries if not e.concurrent] == [("", 0)]
    assert sorted(e.key for e in entries if e.concurrent) == sorted(candidate.name for candidate in other)
    assert all(e.peak_bytes for e in entries if e.concurrent)
    trials = {px: [p.num_tried for c, p in other.items() if c.train_px == px] for px in (160, 224)}
    assert sum(trials[224]) < sum(trials[160]), "the larger size was placed by the smaller one"
