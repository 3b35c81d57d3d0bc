"""A run whose candidates share the time by successive halving, by a law in place of hardware."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin import assemble, flow, gather, planning
from fitwithin.engine.simulated import Law
from fitwithin.errors import UsageError
from fitwithin.jobs import TrainJob
from fitwithin.store import MemoryStore
from simulation import CountedImages, Stage, request

MODELS = ("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "vgg13")

Begin = Callable[..., Stage]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))

    def stage(*, time_s: float = 900.0, folder: str = "run", law: Law | None = None, **recipe: Any) -> Stage:
        asked = request(models=MODELS, sizes=(160, 224), view_sizes=(160, 224), time_s=time_s)
        asked = replace(asked, search="halving", recipe=replace(asked.recipe, **recipe))
        return Stage(law or Law(half_epochs=20), asked, tmp_path / folder, CountedImages())

    return stage


def asked(stage: Stage) -> list[tuple[str, int, float]]:
    return [(t.candidate.name, t.rung, t.seconds) for _, t in gather.trials(stage.store.events("trial"))]


def test_the_weak_get_little_and_the_winner_what_is_left(begin: Begin) -> None:
    stage = begin()
    report = flow.tell(stage.run())
    plan = flow.draw_up(stage.run())
    assert plan.search is not None
    assert plan.search.counts == (16, 4)
    trials = gather.trials(stage.store.events("trial"))
    assert [sum(trial.rung == rung for _, trial in trials) for rung in (0, 1, -1)] == [16, 4, 1]
    final = trials[-1][1]
    assert final.final
    assert final.candidate.name == report.winner
    assert final.seconds >= plan.search.final_s
    assert assemble.read(stage.folder).folder.endswith(f"{report.winner}-final")
    rows = {row.name: row for row in report.candidates}
    assert len(rows) == 16
    out = [row for row in rows.values() if row.name != report.winner]
    assert all("went on" in row.reason and "100 validation images" in row.reason for row in out)
    assert rows[report.winner].actual_s == pytest.approx(
        sum(t.seconds for _, t in trials if t.candidate.name == report.winner), rel=0.1
    )
    spent = next(limit for limit in report.receipt.limits if limit.name == "time")
    assert spent.kept
    assert spent.spent > 0.9 * 900


def test_where_there_is_time_for_one_there_is_no_search(begin: Begin) -> None:
    stage = begin(time_s=40.0)
    flow.tell(stage.run())
    assert asked(stage) == []


def test_a_model_goes_on_where_the_recipe_lets_it(begin: Begin) -> None:
    for continues in (False, True):
        stage = begin(folder=str(continues), continues=continues)
        flow.tell(stage.run())
        starts = {Path(job.folder).name: job.start for job in stage.engine.jobs if isinstance(job, TrainJob)}
        final = next(name for name in starts if name.endswith("-final"))
        rung = final.replace("-final", "-rung1")
        assert Path(starts[final]).name == (rung if continues else "")
        assert starts[rung.removesuffix("-rung1")] == ""


@pytest.mark.parametrize("cut", [60, 90, 120, 140])
def test_a_search_that_was_interrupted_asks_what_it_would_have_asked(begin: Begin, cut: int) -> None:
    """The store ends after so many events, as where the process was killed: the rest is told again."""
    whole = begin(folder="whole")
    flow.tell(whole.run())
    events = whole.store.events()
    assert len(events) > cut
    again = begin(folder="whole")
    again.store = MemoryStore()
    for event in events[:cut]:
        again.store.append(event.kind, event.body)
    report = flow.tell(again.run())
    there = [trial for _, trial in gather.trials(events[:cut])]
    assert [trial for _, trial in gather.trials(again.store.events("trial"))][: len(there)] == there
    assert sum(trial.rung == 0 for _, trial in gather.trials(again.store.events("trial"))) == 16
    assert report.receipt.balanced
    assert all(limit.kept for limit in report.receipt.limits)


def test_the_plan_of_a_search_is_json_and_is_not_carried_out_step_by_step(begin: Begin) -> None:
    stage = begin()
    plan = flow.draw_up(stage.run())
    again = planning.from_json(plan.to_json())
    assert (again.search, again.turns) == (plan.search, plan.turns)
    assert json.loads(plan.to_json())["search"]["counts"] == [16, 4]
    with pytest.raises(UsageError, match="--search exhaustive"):
        flow.check_plan(plan, plan.fingerprint)


def test_the_ladder_is_told_in_a_sentence(begin: Begin) -> None:
    plan = flow.draw_up(begin().run())
    assert plan.search is not None
    told = plan.search.told
    assert told.startswith("Successive halving: 16 trials of ")
    assert ", the best 4 trials of " in told
    assert told.endswith(" for the winner.")
