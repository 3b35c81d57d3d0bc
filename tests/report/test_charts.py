"""Laws of the charts' data: every figure of the report is in it and in its table, and nothing that JSON cannot say."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwithin.planning.stats import Accuracy
from fitwithin.report import render
from fitwithin.report.charts import (
    LEAST_READINGS,
    MOST_READINGS,
    PAGE_READINGS,
    Chart,
    accuracy_over_rungs,
    charts,
    loss_curves,
    thin,
    thinned,
)
from fitwithin.report.schema import CurvePoint, Report
from report.test_schema import complete, curve, curves, estimates, plan, rows, searched, small, trained

losses = st.floats()  # NaN and infinity too
readings = st.lists(st.builds(lambda point, loss: dataclasses.replace(point, loss=loss), curves, losses), max_size=6)
charted = st.lists(
    st.builds(
        lambda row, points, front: dataclasses.replace(row, curve=tuple(points), front=front),
        rows,
        readings,
        st.sampled_from([None, True, False]),
    ),
    max_size=5,
    unique_by=lambda row: row.name,
).map(lambda found: small(*found, winner=found[0].name if found else None))
trials = st.lists(
    st.builds(
        lambda name, gpu_s, accuracy: dataclasses.replace(
            searched().search.trials[0], candidate=name, gpu_s=gpu_s, accuracy=accuracy
        ),
        st.sampled_from(["a", "b", "c"]),
        st.floats(0.0, 1e7),
        st.none() | estimates,
    ),
    max_size=9,
)


def by_anchor(report: Report) -> dict[str, Chart]:
    return {chart.anchor: chart for chart in charts(report)}


def series(chart: Chart | None) -> dict[str, dict[str, object]]:
    """The series of a chart by name; none without a chart."""
    return {each["name"]: each for each in chart.data["series"]} if chart else {}


def test_there_is_no_chart_where_there_is_nothing_to_show():
    bare = trained("resnet18", "amp", 160, 900, actual_s=1.0)
    empty = dataclasses.replace(bare, validation=None, actual_s=None, peak_bytes=None, curve=())
    for report in (plan(), small(empty), small()):
        assert charts(report) == []
    anchors = ["chart-time", "chart-memory", "chart-loss", "chart-prediction", "chart-rungs"]
    assert list(by_anchor(searched())) == anchors
    assert list(by_anchor(complete())) == anchors[:4]


@given(charted)
@settings(deadline=None)
def test_every_figure_of_a_candidate_is_in_the_data_and_its_name_in_the_table(report):
    made = by_anchor(report)
    scale = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
    for row in report.candidates:
        for anchor, x in {"chart-time": row.actual_s, "chart-memory": row.peak_bytes}.items():
            found = series(made.get(anchor)).get(row.name)
            assert (found is None) == (row.validation is None or x is None)
            if found is None:
                continue
            unit = {"GiB": 2**30, **scale}[made[anchor].data["x"]["unit"]]
            share = [row.validation.share, *row.validation.interval]
            (point,) = found["points"]
            assert point == pytest.approx([x / unit, *(100 * end for end in share)])
            assert (found["front"], found["winner"]) == (row.front, row.name == report.winner)
        finite = [[point.epoch, point.loss] for point in row.curve if math.isfinite(point.loss)]
        found = series(made.get("chart-loss")).get(row.name)
        assert (found["points"] if found else None) == (finite if row.status == "trained" and len(finite) > 1 else None)
        found = series(made.get("chart-prediction")).get(row.name)
        assert (found is None) == (not row.predicted_s or row.actual_s is None)
        if found:
            unit = scale[made["chart-prediction"].data["x"]["unit"]]
            assert (found["predicted"] * unit, found["actual"] * unit) == pytest.approx((row.predicted_s, row.actual_s))
    for chart in made.values():
        named = [cells[0].text.removesuffix(" (winner)") for cells in chart.table.rows]
        assert named == [each["name"] for each in chart.data["series"]]
        json.dumps(chart.data, allow_nan=False)
        shown = [cell.line for cells in chart.table.rows for cell in cells[1:]]
        shown += [line.partition(": ")[2] for line in chart.readings]
        assert not re.search("nan|inf", " ".join(shown))


@given(trials)
def test_every_trial_of_a_search_is_in_the_data_and_in_the_table(found):
    report = searched(search=dataclasses.replace(searched().search, trials=tuple(found)))
    chart = accuracy_over_rungs(report)
    had: dict[str, float] = {}
    wanted: dict[str, list[list[float]]] = {}
    for trial in found:
        had[trial.candidate] = had.get(trial.candidate, 0.0) + trial.gpu_s
        if trial.accuracy and had[trial.candidate] > 0:
            share = [trial.accuracy.share, *trial.accuracy.interval]
            wanted.setdefault(trial.candidate, []).append([had[trial.candidate], *(100 * end for end in share)])
    assert (chart is None) == (not wanted)
    if chart is None:
        return
    unit = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}[chart.data["x"]["unit"]]
    assert {name: len(points) for name, points in wanted.items()} == {
        name: len(each["points"]) for name, each in series(chart).items()
    }
    for name, each in series(chart).items():
        for (x, *rest), point in zip(wanted[name], each["points"], strict=True):
            assert point == pytest.approx([x / unit, *rest])
    assert len(chart.table.rows) == sum(map(len, wanted.values()))
    json.dumps(chart.data, allow_nan=False)


def test_the_delivered_model_is_marked_in_chart_and_table():
    chart = accuracy_over_rungs(searched())
    each = series(chart)[searched().winner]
    assert each["delivered"] == len(each["points"]) - 1
    assert [row[1].text for row in chart.table.rows if "delivered" in row[1].text] == ["the final training, delivered"]
    assert all(each["delivered"] is None for name, each in series(chart).items() if name != searched().winner)


@given(st.lists(curves, max_size=60), st.integers(4, 20))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(points, most):
    kept = thin(tuple(points), most)
    assert len(kept) <= most
    left = iter(points)
    assert all(any(point is other for other in left) for point in kept), "in order, and nothing else"
    if len(points) <= most:
        assert kept == tuple(points)
    else:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
    for extreme in (min, max):
        assert extreme((point.loss for point in kept), default=0) == extreme(
            (point.loss for point in points), default=0
        )


@pytest.mark.parametrize("count", [1, 10, 20, 80, 200])
def test_a_page_holds_so_many_readings(count):
    report = thinned(small(*(dataclasses.replace(trained(f"m{n}", "amp", 160, 9), curve=LONG) for n in range(count))))
    kept = [len(row.curve) for row in report.candidates]
    assert min(kept) >= LEAST_READINGS - 2
    assert max(kept) <= MOST_READINGS
    assert sum(kept) <= max(PAGE_READINGS, LEAST_READINGS * count)


LONG: tuple[CurvePoint, ...] = curve(44.1, 0.1, 1000)


def test_losses_have_a_logarithmic_axis_where_they_span_a_decade():
    def axis(*drawn: float) -> bool:
        points = [dataclasses.replace(point, loss=loss) for point, loss in zip(LONG, drawn, strict=False)]
        return loss_curves(small(dataclasses.replace(trained("a", "amp", 160, 9), curve=tuple(points)))).data["y"][
            "log"
        ]

    assert axis(2.0, 0.1)
    assert not axis(2.0, 0.3)
    assert not axis(2.0, 0.0)
    assert not axis(2.0, -0.1)


@given(st.text(max_size=30) | st.sampled_from(["</script>", "<!--<script>", "\u2028", "\ud800"]), estimates)
@settings(max_examples=50, deadline=None)
def test_nothing_in_the_data_can_end_its_script(name, accuracy):
    row = dataclasses.replace(trained("resnet18", "amp", 160, 9), name=name, precision=name, validation=accuracy)
    report = small(row, winner=name)
    text = render.html(report)
    scripts = re.findall(r"<script.*?>(.*?)</script", text, re.S | re.I)
    assert len(scripts) == 4
    assert not re.search("[<>&]", scripts[0] + scripts[1])
    assert json.loads(scripts[1]) == {chart.anchor: chart.data for chart in charts(report)}


def test_ends_of_the_scale_stay_within_it():
    none = dataclasses.replace(trained("m", "amp", 160, 0), validation=Accuracy(correct=0, total=3))
    for row in (none, trained("m", "amp", 160, 1000)):
        ((_, share, low, high),) = series(charts(small(row))[0])[row.name]["points"]
        assert 0 <= low <= share <= high <= 100
