"""Every kind of event comes back as it was written, and what cannot be read is named before a run goes on."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from fitwithin import api, events
from fitwithin.errors import RunFolderError
from fitwithin.events import EVENTS, ModelEvaluated, PlanGiven, RunRequested, TrialAsked
from fitwithin.files import from_json, to_json
from fitwithin.pipeline import run as flow
from fitwithin.planning.plan import Plan
from fitwithin.store import Event, Store
from simulated.law import SimulatedMachine
from simulated.run import CountedImages, Stage, request, without_pages


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({kind.kind for kind in EVENTS}) == len(EVENTS)


@pytest.mark.parametrize("search", ["halving", "exhaustive"])
def test_all_that_a_run_writes_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)
    asked = replace(request(models=("a", "b", "c", "d"), time_s=900.0), search=search)
    stage = Stage(SimulatedMachine(), asked, tmp_path, CountedImages())
    stage.store.append(RunRequested(request=asked))
    flow.execute(stage.run())
    plan = flow.make_plan(stage.run())
    stage.store.append(PlanGiven(plan=plan))
    told = events.read_all(stage.store)
    assert {type(event) for event in told} >= set(EVENTS) - {
        TrialAsked,
        events.PoolChosen,
        events.WeightsFound,
        events.LinearProbed,
        events.StartChosen,
        events.CandidateRejected,
        *LEDGER_EVENTS,
    }
    assert (TrialAsked in {type(event) for event in told}) == (search == "halving")
    for event in told:
        assert from_json(type(event), to_json(event)) == event
    assert (told[0], told[-1]) == (RunRequested(request=asked), PlanGiven(plan=plan))
    assert from_json(Plan, to_json(plan)) == plan
    (evaluated,) = {event.name for event in stage.store.read(ModelEvaluated)}
    assert evaluated in events.outcomes(stage.store)[0]


#: Not every run has each of them.
LEDGER_EVENTS = (events.EntryAbandoned,)


@dataclass(frozen=True, kw_only=True)
class Later(Event):
    """An event of a later version."""

    kind: ClassVar[str] = "later"


def test_a_run_with_an_unknown_event_is_not_carried_on(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(RunRequested(request=request()))
        store.append(Later())
    with pytest.raises(RunFolderError, match=r"event 2 of this run is of a kind .* \('later'\)"):
        api.resume(tmp_path)


def test_a_run_with_a_damaged_event_is_not_carried_on(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(RunRequested(request=request()))
    with sqlite3.connect(tmp_path / "run.db") as database:
        database.execute("""UPDATE events SET body = replace(body, '"jobs": 1', '"jobs": "one"')""")
    database.close()
    with pytest.raises(RunFolderError, match=r"event 1 of this run \(request\) is damaged, or .*Request.jobs: 'one'"):
        api.resume(tmp_path)
