"""finish: when the charts of a report are drawn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from fitwithin.pipeline.finish import Drawing
from fitwithin.report.render import Drawings


class Pen:
    """Draws nothing, and counts how often."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self) -> Drawings:
        self.drawn += 1
        return Drawings(shown=(), climbs=None)


@pytest.mark.parametrize("said", [0, 1, 3])
def test_a_thread_draws_once_and_not_before_it_is_told(said: int) -> None:
    """However often; if nobody said so, when the charts are asked for."""
    pen = Pen()
    with ThreadPoolExecutor(1) as pool:
        charts = Drawing(pen, pool)
        assert pen.drawn == 0
        for _ in range(said):
            charts.begin()
        assert charts.result() is charts.result()
    assert pen.drawn == 1


def test_without_a_thread_nothing_is_drawn_before_it_is_asked_for() -> None:
    pen = Pen()
    charts = Drawing(pen, None)
    charts.begin()
    assert pen.drawn == 0
    assert charts.result() == Drawings(shown=(), climbs=None)
    assert pen.drawn == 1
