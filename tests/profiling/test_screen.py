"""screen: what it says of backbones' variants, and of those that fail. On the CPU; tests/gpu looks at the figures."""

from __future__ import annotations

from typing import Any

import pytest

from fitwithin.candidate import Candidate, grid
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import CompareJob, JobSettings
from fitwithin.errors import OutOfMemory
from fitwithin.profiling import screen
from fitwithin.training.learner import Learner
from simulated.run import on_cpu

RESNET, EFFICIENTNET = "test_resnet", "test_efficientnet"  # the latter has depthwise convolutions


def job(models: list[str], *, quick: bool) -> CompareJob:
    candidates = grid(models, ["amp"], [32], ["nchw", "channels_last"])
    return CompareJob(setting=on_cpu("paper"), candidates=tuple(candidates), quick=quick)


def test_kernels_that_would_be_built_are_left_to_those_who_have_time() -> None:
    whole = screen.screen(job([EFFICIENTNET], quick=False), Cpu())
    assert len(whole.paces) == 2
    assert all(pace.batch == 64 and pace.step_s > 0 and pace.first_s >= 0 for pace in whole.paces.values())
    short = screen.screen(job([EFFICIENTNET, RESNET], quick=True), Cpu())
    assert set(short.paces) == {
        f"{EFFICIENTNET}-amp-32",
        f"{RESNET}-amp-32",
        f"{RESNET}-amp-32-channels_last",
    }


@pytest.mark.parametrize("failing", [RESNET, EFFICIENTNET])
def test_a_backbone_that_fails_leaves_the_others_their_paces(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    build = Learner.__init__

    def fail(self: Learner, setting: JobSettings, candidate: Candidate, *more: Any, **named: Any) -> None:
        if candidate.model == failing:
            raise ValueError("this model takes no images")
        build(self, setting, candidate, *more, **named)

    monkeypatch.setattr(Learner, "__init__", fail)
    found = screen.screen(job([RESNET, EFFICIENTNET], quick=False), Cpu())
    other = {RESNET, EFFICIENTNET} - {failing}
    assert {name.partition("-")[0] for name in found.paces} == other


def test_all_variants_of_a_backbone_are_compared_at_a_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Learner.step

    def step(self: Learner, x: Any, *more: Any) -> Any:
        if len(x) > 16 and self._format is not None and "channels_last" in str(self._format):
            raise OutOfMemory("too much")
        return take(self, x, *more)

    monkeypatch.setattr(Learner, "step", step)
    found = screen.screen(job([RESNET], quick=False), Cpu())
    assert [pace.batch for pace in found.paces.values()] == [16, 16]
