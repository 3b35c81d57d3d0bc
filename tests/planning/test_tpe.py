"""Successive halving with Optuna's word on who enters."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.candidate import Candidate
from fitwithin.errors import UsageError
from fitwithin.pipeline import profile_phase, run
from fitwithin.planning import plan as planning
from fitwithin.planning.halving import Halving
from fitwithin.planning.search import SearchCandidate, Trial
from fitwithin.planning.stats import Accuracy
from fitwithin.request import parse
from simulated.law import SimulatedMachine
from simulated.run import CountedImages, Stage, asked_trials, cut_off, request, tries, without_pages

pytest.importorskip("optuna", reason="Optuna is not installed")

from fitwithin.planning.tpe import AT_RANDOM, TPEHalving, traits

N_VAL = 1000
FAMILIES = ("convnet", "densenet", "regnetx", "resnet", "vgg", "vit")


def grid(seed: int = 0, each: int = 10) -> list[SearchCandidate]:
    """Ten backbones of each family at two sizes, in an order that says nothing."""
    found = [
        SearchCandidate(candidate=Candidate(model=f"{family}{n}", train_px=px, precision="amp"), overhead_s=1.0)
        for family in FAMILIES
        for n in range(each)
        for px in (128, 160)
    ]
    random.Random(seed).shuffle(found)
    return found


def score(trial: Trial) -> Accuracy:
    """One family is better than the others, and its larger size better still."""
    good = trial.candidate.model.startswith("resnet")
    return Accuracy(correct=500 + 300 * good + 50 * (trial.candidate.train_px == 160), total=N_VAL)


def play(search: Halving, budget_s: float, stop: int = 10**6) -> list[Trial]:
    left_s = budget_s
    while len(search.trials) < stop and (trial := search.ask(left_s=left_s)) is not None:
        left_s -= trial.seconds
        search.tell(trial.number, score(trial))
    return search.trials


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_of_what_did_well_enters(seed: int) -> None:
    search = TPEHalving(grid(seed), budget_s=200.0, seed=seed)
    trials = play(search, 200.0)
    entered = [trial.candidate for trial in trials if trial.rung == 0]
    assert len(entered) == search.count < len(search.entrants) / 2
    assert len(set(entered)) == len(entered), "nobody enters twice"
    early = entered[AT_RANDOM : 4 * AT_RANDOM]  # later there are hardly any left
    good = sum(candidate.model.startswith("resnet") for candidate in early)
    assert good / len(early) > 2 / len(FAMILIES), "twice what chance gives"
    assert search.best is not None
    assert search.best.candidate.model.startswith("resnet")
    out = [verdict for verdict in search.eliminations() if verdict.reason.startswith("left out")]
    assert len(out) == len(search.entrants) - len(entered)
    assert search.finished


@tries(10)
@given(st.integers(0, 1000), st.integers(0, 30))
def test_told_the_same_again_the_same_enter(seed: int, stop: int) -> None:
    first = play(TPEHalving(grid(), budget_s=200.0, seed=seed), 200.0)
    search = TPEHalving(grid(), budget_s=200.0, seed=seed)
    left_s = 200.0
    for trial in first[:stop]:
        assert search.ask(left_s=left_s) == trial
        left_s -= trial.seconds
        assert search.ask(left_s=0.0) is None  # in vain, while that is at work: what it had in mind must not matter
        search.tell(trial.number, score(trial))
    assert play(search, left_s) == first


def test_traits_are_what_candidates_share() -> None:
    one = traits(Candidate(model="resnet18d.ra_in1k", train_px=160, precision="amp"), 0, 40)
    other = traits(Candidate(model="resnet50", train_px=224, precision="amp"), 39, 40)
    assert (one["family"], one["pace"], other["pace"]) == ("resnet", "0", "3")
    assert dict(one.items() & other.items()) == {"family": "resnet", "variant": "amp nchw"}
    assert traits(Candidate(model="efficientnet_b0", train_px=160, precision="amp"), 0, 1)["family"] == "efficientnet"


def test_a_run_samples_its_candidates_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)

    def begin(folder: str, time_s: float = 150.0) -> Stage:
        models = tuple(f"{family}{n}" for family in FAMILIES for n in range(4))
        asked = request(models=models, recipe="fast", memory_bytes=2**33, time_s=time_s)
        return Stage(SimulatedMachine(), replace(asked, search="optuna", seed=7), tmp_path / folder, CountedImages())

    profile_phase.profile(begin("before", time_s=10_000.0).run())  # all are known from then on
    whole = begin("whole")
    report = run.execute(whole.run())
    plan = run.make_plan(whole.run())
    assert planning.from_json(plan.to_json()) == plan
    assert plan.search is not None
    assert plan.search.seed == 7
    trials = asked_trials(whole.store)
    entered = {trial.candidate.name for trial in trials}
    assert 4 < len(entered) < len(FAMILIES) * 4
    rows = {row.name: row for row in report.candidates}
    assert len(rows) == len(FAMILIES) * 4
    for name, row in rows.items():
        assert (row.status == "rejected") == (name not in entered), (name, row.status)
        assert name in entered or "left out" in row.reason
    again = begin("whole")
    again.store = cut_off(whole.store, int(0.8 * len(whole.store.all())))
    run.execute(again.run())
    assert asked_trials(again.store)[: len(trials) // 2] == trials[: len(trials) // 2]


def test_without_optuna_it_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, Any] = {"memory": "6GiB", "time": "1h", "search": "optuna"}
    assert parse("photos", **words).search == "optuna"
    monkeypatch.setattr("fitwithin.request.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="fitwithin\\[optuna\\]"):
        parse("photos", **words)
