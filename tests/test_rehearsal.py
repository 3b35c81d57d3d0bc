"""What is drawn in rehearsal is as long as what a run will draw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fitwithin import rehearsal
from fitwithin.candidate import grid
from fitwithin.halving import ladder
from fitwithin.page import markdown
from simulation import request


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_report_of_a_search_is_rehearsed_with_its_trials(count: int) -> None:
    asked = replace(request(models=tuple(f"resnet{n}" for n in range(count))), search="halving")
    candidates = grid(asked.models, asked.precisions, asked.sizes)
    sample = rehearsal._sample(candidates, asked)
    assert sample.search is not None
    most = ladder(count, 1e9, 0.0)
    assert most is not None
    assert len(sample.search.trials) >= sum(most.counts) + 1
    assert len(sample.search.verdicts) == count - 1
    assert "The search" in markdown(sample)
    alone = rehearsal._sample(candidates[:1], asked)
    assert alone.search is None
    assert rehearsal._sample(candidates, replace(asked, search="exhaustive")).search is None
