"""flow: what is planned from the profiles there are. How it is carried out: test_instantiate.py, test_searching.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fitwithin.candidate import Candidate
from fitwithin.errors import BudgetError
from fitwithin.pipeline import run as flow
from fitwithin.planning.plan import Plan
from simulated.law import SimulatedMachine
from simulated.run import CountedImages, Stage, profile, request, without_pages

#: Few images to validate on and many to test: a slow evaluation takes little of the profile phase.
IMAGES = CountedImages((800, 10, 200))

SLOW = "resnet101"


class SlowToEvaluate(SimulatedMachine):
    """One backbone needs a second for every image that it is evaluated on, and no longer than others to train."""

    def weight(self, candidate: Candidate) -> float:
        """All are alike."""
        return 1.0

    def eval_image_s(self, candidate: Candidate, px: int) -> float:
        """A second of that one."""
        return 1.0 if candidate.model == SLOW else super().eval_image_s(candidate, px)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    without_pages(monkeypatch)


def planned(folder: Path, *models: str, time_s: float, **limits: float) -> Plan:
    asked = replace(request(models=models, recipe="fast", time_s=time_s, **limits), search="halving")
    return flow.make_plan(Stage(SlowToEvaluate(), asked, folder, IMAGES).run())


@pytest.mark.parametrize("time_s", [300.0, 600.0])
def test_who_could_not_be_evaluated_in_time_does_not_spoil_it_for_others(tmp_path: Path, time_s: float) -> None:
    few = planned(tmp_path / "few", "resnet18", "resnet34", "resnet50", time_s=time_s)
    plan = planned(tmp_path / "all", "resnet18", "resnet34", "resnet50", SLOW, time_s=time_s)
    (left_out,) = (each for each in plan.rejections if each.candidate.model == SLOW)
    assert left_out.reason.startswith("its evaluation would take 8m ")
    assert left_out.reason.endswith("are left; give more time, or fewer or smaller test sizes")
    assert plan.search is not None
    assert few.search is not None
    assert plan.search.counts == few.search.counts == (3,)
    assert plan.search.final_s > 0.8 * few.search.final_s, "no more is lost than its profile took"


def test_with_enough_time_it_takes_part(tmp_path: Path) -> None:
    plan = planned(tmp_path, "resnet18", "resnet34", "resnet50", SLOW, time_s=3000.0)
    assert SLOW in {trial.candidate.model for trial in plan.trials}


def test_who_is_too_slow_to_use_is_not_trained(tmp_path: Path) -> None:
    plan = planned(tmp_path, "resnet18", "resnet34", SLOW, time_s=3000.0, inference_ms=100.0)
    (left_out,) = (each for each in plan.rejections if each.candidate.model == SLOW)
    assert left_out.reason == "an image takes 1000 ms where the model is used, more than the 100 ms allowed"
    assert {trial.candidate.model for trial in plan.trials} == {"resnet18", "resnet34"}


def test_where_all_are_too_slow_to_use_the_quickest_is_trained(tmp_path: Path) -> None:
    plan = planned(tmp_path, "resnet18", SLOW, time_s=3000.0, inference_ms=1e-3)
    assert {trial.candidate.model for trial in plan.trials} == {"resnet18"}


def test_who_is_alone_takes_part_whatever_its_evaluation_takes(tmp_path: Path) -> None:
    (trial,) = planned(tmp_path, SLOW, time_s=700.0).trials
    assert trial.candidate.model == SLOW


@pytest.mark.parametrize("search", ["exhaustive", "halving"])
def test_one_candidate_more_never_makes_a_run_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    """Whatever the time: also where its evaluation is a third of what is left, and an epoch the rest."""
    epoch_of_30_s = {"step_s": 1.2, "step_low_s": 1.2, "step_high_s": 1.2}
    one = profile("resnet18", **epoch_of_30_s)
    other = profile("resnet34", **epoch_of_30_s, eval_image_s={160: 0.022, 224: 0.022})
    told = []
    for time_s in range(30, 90):
        asked = replace(request(models=("resnet18", "resnet34"), time_s=float(time_s)), search=search)
        for known in ([one], [one, other]):
            monkeypatch.setattr(flow.profile_phase, "profile", lambda run, known=known: known)
            try:
                told.append(len(flow.make_plan(Stage(SimulatedMachine(), asked, tmp_path).run()).trials))
            except BudgetError:
                told.append(0)
    alone, together = told[::2], told[1::2]
    assert 0 in alone
    assert [bool(trials) for trials in together] == [bool(trials) for trials in alone]
