"""What a report says of its search: every rung and candidate with its figures, and words where figures tell nothing."""

from __future__ import annotations

import dataclasses

import pytest

from fitwithin.report.schema import Report
from fitwithin.report.search_sections import sections
from fitwithin.report.tables import Section, Table
from report.test_schema import complete, searched


def shown(report: Report | None = None) -> dict[str, Section]:
    return {section.anchor: section for section in sections(report or searched())}


def cells(table: Table) -> dict[str, dict[str, str]]:
    titles = [column.title for column in table.columns]
    return {row[0].text: dict(zip(titles, (cell.line for cell in row), strict=True)) for row in table.rows}


def test_without_a_search_and_a_forecast_there_is_nothing_to_say() -> None:
    assert sections(complete()) == []


def test_the_rungs_say_what_was_promised_and_what_it_took() -> None:
    rungs, _ = shown()["search"].tables
    rows = cells(rungs)
    assert list(rows) == ["Rung 1", "Rung 2", "Final", "All"]
    assert rows["Rung 1"] == {
        "Rung": "Rung 1",
        "Planned": "7",
        "Each": "2m 00s",
        "Tried": "7",
        "Failed": "1",
        "Time": "7m 00s",
        "GPU time": "14m 00s",
        "Share": "22 %",
    }
    assert rows["Final"]["Each"] == "≥ 30m 00s"
    assert rows["All"]["GPU time"] == "1h 03m"
    assert rows["All"]["Tried"] == "10"


def test_time_by_the_clock_is_shown_only_where_it_is_not_gpu_time() -> None:
    search = searched().search
    assert search is not None
    alone = tuple(dataclasses.replace(trial, charged_s=trial.gpu_s) for trial in search.trials)
    report = searched(search=dataclasses.replace(search, trials=alone))
    for table in shown(report)["search"].tables:
        titles = [column.title for column in table.columns]
        assert "Time" not in titles
        assert "GPU time" in titles


def test_every_candidate_that_was_tried_has_its_row_and_its_end() -> None:
    report = searched()
    assert report.search is not None
    rows = cells(shown()["search"].tables[1])
    assert set(rows) == {trial.candidate for trial in report.search.trials}
    assert next(iter(rows)) == report.winner
    winner = rows[report.winner]
    assert (winner["Rung 1"], winner["Final"]) == ("80.0 % (77.4–82.4)", "91.2 % (89.3–92.8)")
    assert (winner["Out"], winner["How sure"]) == ("delivered", "–")
    runner_up = rows["resnet50-amp-160"]
    assert (runner_up["Out"], runner_up["How sure"], runner_up["Why"]) == (
        "after rung 2",
        "83 %",
        "the last one that went on had 86.0 %",
    )
    failed = rows["resnest50d_4s2x40d-amp-160"]
    assert (failed["Rung 1"], failed["Out"], failed["Why"]) == ("failed", "failed on rung 1", "it died")
    tie = next(row for row in rows.values() if row["How sure"] == "unknown")
    assert tie["Why"] == "the last one that went on had 78.0 %; 1,000 images cannot tell the two apart"
    assert "50 %" not in {row["How sure"] for row in rows.values()}


def test_who_was_never_tried_is_counted() -> None:
    assert "1 candidate was never tried (left out: no time)." in shown()["search"].paragraphs


def test_every_trial_is_listed_in_order() -> None:
    (trials,) = shown()["search"].collapsible
    assert len(trials[1]) == 10
    assert trials[1][-1] == (
        "resnest50d_1s4x24d-amp-160: the final training, 91.2 % (89.3–92.8) in 16m 40s of 33m 20s promised, "
        "33m 20s of GPU time; delivered (all get 2m 00s)"
    )


def test_a_plan_has_its_bracket_and_no_trials() -> None:
    search = searched().search
    assert search is not None
    planned = dataclasses.replace(search, trials=(), eliminations=(), delivered=None, delivered_why="", runner_up=None)
    section = shown(searched(search=planned, winner=None, forecast=None))["search"]
    assert section.paragraphs == (search.summary,)
    assert [row[0].text for row in section.tables[0].rows] == ["Rung 1", "Rung 2", "Final"]
    assert section.tables[1].rows == ()


def test_the_forecast_has_its_table_only_where_there_is_one() -> None:
    section = shown()["forecast"]
    (table,) = section.tables
    rows = cells(table)
    assert list(rows) == ["twice", "four times"]
    assert [row["Limit"] for row in rows.values()] == ["6h 00m", "12h 00m"]
    assert rows["twice"]["More"] == "+2.5 points"
    forecast = searched().forecast
    assert forecast is not None
    assert forecast.forecasts[0].share == pytest.approx(0.912 + 0.0253, abs=1e-3)
    nothing = dataclasses.replace(forecast, forecasts=(), why="No forecast.")
    section = shown(searched(forecast=nothing))["forecast"]
    assert (section.paragraphs, section.tables) == (("No forecast.",), ())
