"""How good the answers are, as the report tells it; and the model card."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fitwithin.report import model_card, render
from fitwithin.report.assessment_sections import sections
from fitwithin.report.schema import Report
from fitwithin.report.tables import Section
from report.test_schema import REPORTS, class_rows, complete, plan, without_test


def section(report: Report, anchor: str) -> Section:
    return next(each for each in sections(report) if each.anchor == anchor)


def test_classes_come_with_recall_precision_and_means() -> None:
    report = complete()
    found = section(report, "classes")
    assert [column.title for column in found.tables[0].columns][-1] == "Precision"
    assert len(found.tables[0].rows) == len(report.classes)
    assert "100 to 1,200 training images" in found.paragraphs[1]
    test = report.assessments[-1]
    assert f"recall is {100 * test.macro_recall:.1f} %" in found.paragraphs[1]


def test_means_over_equal_classes_are_left_out() -> None:
    rows = tuple(dataclasses.replace(row, train=500) for row in class_rows())
    assert section(complete(classes=rows), "classes").paragraphs[1] == ""


def test_calibration_before_and_after_stands_for_each_split() -> None:
    table, surest = section(complete(), "trust").tables
    assert [row[0].text for row in table.rows] == [
        "Validation, as it came",
        "Validation, calibrated",
        "Test, as it came",
        "Test, calibrated",
    ]
    assert [row[0].text for row in surest.rows] == ["100 %", "95 %", "90 %", "80 %", "50 %"]
    assert "test images" in surest.caption


def test_without_a_temperature_there_is_one_row_a_split() -> None:
    report = without_test()
    raw = dataclasses.replace(report.assessments[0], temperature=1.0)
    table, surest = section(dataclasses.replace(report, assessments=(raw,)), "trust").tables
    assert [row[0].text for row in table.rows] == ["Validation"]
    assert "validation images" in surest.caption


def test_a_plan_has_nothing_to_say_of_answers() -> None:
    for each in sections(plan()):
        assert not any(table.rows for table in each.tables)


@pytest.mark.parametrize("make", [make for name, make in REPORTS.items() if name != "plan"])
def test_the_model_card_says_what_the_report_says(make: object, tmp_path: Path) -> None:
    report = make()  # type: ignore[operator]
    (tmp_path / "model").mkdir()
    model_card.write(report, tmp_path)
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: timm\n")
    assert "local-dir:" in text
    assert "91.2 %" in text or "91.6 %" in text
    assert "licence is unknown" in text
    for limit in report.receipt.limits:
        assert f"Limit on {limit.name}" in text
    for note in report.notes:
        assert note in text


def test_the_card_names_the_weakest_classes_and_the_views() -> None:
    report = complete()
    text = model_card.model_card(report)
    weakest = min(report.classes, key=lambda row: row.test.share if row.test else 1.0)
    assert f"| {weakest.name} |" in text
    assert "the average of 3 (160 px, 224 px, 224 px flipped;" in text


def test_the_page_shows_the_pictures_of_mistakes_that_there_are() -> None:
    report = complete()
    some = [each.path for each in report.assessments[-1].mistakes[:3]]
    text = render.html(report, "RUN", dict.fromkeys(some, b"\xff\xd8 a picture"))
    assert text.count('<img src="data:image/jpeg;base64,') == 3
    assert text.count("<figcaption>Taken for ") == 3
    assert "<script>alert" not in text
    assert '<div class="sheet">' not in render.html(report)
