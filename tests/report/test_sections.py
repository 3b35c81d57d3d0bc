"""What a report says before any format sets it: sections, tables and the values in their cells."""

import dataclasses

import pytest

from fitwithin.report.sections import choices, sections
from report.test_schema import REPORTS, complete, plan, receipt, searched, small, trained


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_no_heading_stands_over_nothing(make):
    for section in sections(make()):
        assert section.tables or section.paragraphs
        assert all(table.rows and table.columns for table in section.tables)
        assert all(lines for _, lines in section.collapsible)


def test_a_plan_has_the_sections_of_a_plan():
    assert [section.title for section in sections(plan())] == ["Promises", "Plan", "Receipt", "Data", "Request"]


def test_nothing_is_promised_before_there_is_a_receipt():
    report = dataclasses.replace(plan(), receipt=receipt(limits=(), phases=()))
    assert "promises" not in [section.anchor for section in sections(report)]


def test_the_delivered_row_is_set_off_among_the_methods():
    first, *others = complete().methods
    methods = (dataclasses.replace(first, delivered=True), *(dataclasses.replace(m, delivered=False) for m in others))
    for report, highlighted in ((complete(), 3), (complete(methods=methods), 0)):
        table = next(section for section in sections(report) if section.anchor == "methods").tables[0]
        assert table.highlighted == highlighted
        titles = [column.title for column in table.columns]
        assert table.rows[3][titles.index("Train px")].text == "160"
        assert table.rows[3][titles.index("Test px")].text == "160 + 224 with flips"


def test_every_candidate_has_its_choices():
    found = dict(choices(plan()))
    assert set(found) == {row.name for row in plan().candidates if row.status == "planned"}
    assert "97 went past" in found["resnet50-amp-160"]


def test_candidates_stand_by_accuracy_then_by_how_far_they_came():
    section = next(section for section in sections(complete()) if section.anchor == "candidates")
    status = [row[1].text for row in section.tables[0].rows]
    assert status == ["winner", *["trained"] * 5, "planned", "failed"]
    assert section.tables[0].highlighted == 0


def test_missing_values_are_dashes_and_empty_columns_go():
    report = small(
        trained("resnet18", "amp", 160, 900, peak_bytes=None, parameters=None, images_per_s=None),
        trained("resnet50", "amp", 160, 890, images_per_s=None),
    )
    table = next(section for section in sections(report) if section.anchor == "candidates").tables[0]
    titles = [column.title for column in table.columns]
    assert "Images/s" not in titles
    assert table.rows[0][titles.index("Peak")].text == "–"


def test_requested_values_read_in_their_units():
    table = next(section for section in sections(complete()) if section.anchor == "request").tables[0]
    facts = {row[0].text: row[1].text for row in table.rows}
    assert facts["memory"] == "6.00 GiB"
    assert facts["time"] == "3h 00m"
    assert facts["gpu time"] == "off"
    assert facts["inference"] == "5 ms"
    assert facts["sizes"] == "160, 224"


def test_the_front_is_marked_and_explained_where_candidates_were_tried():
    section = next(section for section in sections(searched()) if section.anchor == "candidates")
    assert "at least as good in accuracy, the training time given, inference time and memory" in section.paragraphs[-1]
    assert "was measured by the profile" in section.paragraphs[-1]
    table = section.tables[0]
    place = [column.title for column in table.columns].index("Front")
    for row in table.rows:
        facts = searched().row(row[0].text)
        assert row[place].text == {True: "yes", False: "no", None: "–"}[facts.front]
        assert (f"not on the front, {facts.dominated_by} is better" in row[0].below) == (facts.front is False)
    assert {row[place].text for row in table.rows} == {"yes", "no", "–"}
    for report in (complete(), plan()):
        section = next(section for section in sections(report) if section.anchor == "candidates")
        assert "Front" not in [column.title for column in section.tables[0].columns]
        assert [text for text in section.paragraphs if "left out" not in text] == []


@pytest.mark.parametrize(("predicted_s", "there"), [(10.0, True), (0.0, False), (None, False)])
def test_a_linear_head_has_no_steps_whose_time_was_predicted(predicted_s, there):
    report = complete()
    times = {"actual_training_s": 11.0, "predicted_startup_s": 1.0, "actual_startup_s": 1.0}
    rows = tuple(
        dataclasses.replace(row, predicted_training_s=predicted_s, **times) if row.name == report.winner else row
        for row in report.candidates
    )
    collapsed = [each.collapsible for each in sections(dataclasses.replace(report, candidates=rows))]
    said = [text for collapsible in collapsed for _, lines in collapsible for text in lines]
    assert any("steps took 11.0s, predicted 10.0s" in text for text in said) is there
