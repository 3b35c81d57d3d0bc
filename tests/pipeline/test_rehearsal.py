"""What is drawn in rehearsal is as long as what a run will draw."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fitwithin.candidate import grid
from fitwithin.pipeline import rehearsal
from fitwithin.planning import cost
from fitwithin.planning.halving import make_bracket
from fitwithin.report import render
from fitwithin.report.render import markdown
from simulation import request


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_report_of_a_search_is_rehearsed_with_its_trials(count: int) -> None:
    asked = replace(request(models=tuple(f"resnet{n}" for n in range(count))), search="halving")
    candidates = grid(asked.models, asked.precisions, asked.sizes)
    sample = rehearsal._sample(candidates, asked)
    assert sample.search is not None
    most = make_bracket(count, 1e9, 0.0)
    assert most is not None
    assert len(sample.search.trials) >= sum(most.counts) + 1
    assert len(sample.search.eliminations) == count - 1
    assert "The search" in markdown(sample)
    alone = rehearsal._sample(candidates[:1], asked)
    assert alone.search is None
    assert rehearsal._sample(candidates, replace(asked, search="exhaustive")).search is None


def test_charts_are_drawn_once_and_that_is_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once again they would take less than at the end."""
    asked, left = request(models=("resnet18", "resnet26")), [1.3]
    clock = SimpleNamespace(now=0.0)

    def draw(report: object) -> render.Drawings:
        clock.now += left.pop(0)
        return render.NO_DRAWINGS

    monkeypatch.setattr(render, "drawings", draw)
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(monotonic=lambda: clock.now, thread_time=lambda: 0.0))
    candidates = grid(asked.models, asked.precisions, asked.sizes)
    kept_s, drawing_s = rehearsal.rehearse(candidates, asked)
    assert not left
    assert drawing_s == 1.3
    assert kept_s == pytest.approx(cost.CLOSING_MARGIN * drawing_s + rehearsal.BESIDE_S)
