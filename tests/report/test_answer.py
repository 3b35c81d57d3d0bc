"""The answer on top of a report: the model, its cost, where the time went, and what was left out in a line."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from fitwithin.report import render
from fitwithin.report.answer import answer, left_out, shown
from fitwithin.report.schema import PoolRow
from report.test_schema import complete, plan, searched, small, trained, untrained


def printed(width: int, report=None, folder: str = "my runs/one") -> str:
    screen = Console(file=io.StringIO(), width=width)
    screen.print(render.render_answer(report or complete(), folder))
    return screen.file.getvalue()


def test_it_names_model_cost_time_files_and_what_to_do_next():
    facts = dict(answer(complete(), "my runs/one"))
    assert list(facts) == ["Model", "Cost", "Time", "Files", "Next"]
    row = complete().row(complete().winner)
    assert row.model in facts["Model"]
    assert f"{row.train_px} px" in facts["Model"]
    assert "ms an image" in facts["Cost"]
    assert all(phase.phase in facts["Time"] for phase in complete().receipt.phases)
    assert facts["Next"] == "fitwithin predict 'my runs/one' IMAGES -o predictions.csv"


def test_a_plan_has_no_answer_yet():
    assert answer(plan(), "run") == []


def test_what_nothing_came_of_is_named():
    report = small(
        trained("resnet18", "amp", 160, 900),
        untrained("resnet50", "amp", 160, "failed", "it died", actual_s=12.0),
        untrained("resnet101", "amp", 160, "rejected", "too slow", profile_s=30.0),
        winner="resnet18-amp-160",
    )
    texts = [fact.text for fact in answer(report, "run")]
    assert any("1 profiled and not trained (30.0s), 1 that left no model (12.0s)" in text for text in texts)


def test_a_reason_is_named_up_to_its_explanation():
    why = "left out: no time to compare more; the recipe's first one is taken"
    others = [untrained("vgg11", "amp", 160, "rejected", why), untrained("vgg13", "amp", 160, "rejected", "slow (9 s)")]
    said, lines = left_out(small(trained("resnet18", "fp32", 160, 900), *others))
    assert said == "2 of 3 candidates were left out (1: no time to compare more; 1: slow)."
    assert lines == (f"vgg11-amp-160: {why}", "vgg13-amp-160: slow (9 s)")


def test_candidates_without_a_trial_are_one_line_with_their_reasons():
    never = [untrained(f"resnet{n}", "amp", 160, "rejected", "no time was left to profile it") for n in range(78)]
    others = [untrained(f"vgg{n}", "amp", 160, "rejected", f"reason {n}") for n in range(4)]
    report = small(trained("resnet18", "fp32", 160, 900), *never, *others)
    said, lines = left_out(report)
    assert said.startswith("82 of 83 candidates were left out (78: no time was left to profile it; 1: reason 0; ")
    assert said.endswith("; 2: for other reasons).")
    assert len(lines) == 82
    assert [row.name for row in shown(report)] == ["resnet18-fp32-160"]
    for voice in (render.markdown(report, "run"), render.html(report, "run")):
        assert "resnet77-amp-160" in voice, "the list is a click away"
    assert "resnet77-amp-160" not in printed(80, report)


def test_where_none_was_trained_all_are_in_the_table():
    report = small(untrained("resnet18", "amp", 160, "rejected", "too slow"))
    assert [row.name for row in shown(report)] == ["resnet18-amp-160"]
    assert left_out(report) == ("", ())


def test_it_fits_into_eighty_columns_and_one_screen():
    for report in (complete(), searched()):
        lines = printed(80, report).splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 40
    assert "fitwithin predict" in printed(80)


def test_the_page_shows_the_answer_before_the_sections():
    page = render.html(complete(), "my runs/one")
    assert page.index('<dl class="answer">') < page.index("<nav")
    hostile = dataclasses.replace(complete(), receipt=dataclasses.replace(complete().receipt, device={"name": "<b>"}))
    assert "<b>" not in render.html(hostile, "run").partition("<nav")[0]


def pooled(report):
    """The report with backbones that nobody named: two tried, many not."""
    rows = [
        PoolRow(
            model=f"net{n}",
            px=96,
            expected=0.9 - 0.01 * n,
            taken=n < 2,
            reason=f"less is expected of it ({n}.0 points below net0)",
        )
        for n in range(30)
    ]
    return dataclasses.replace(report, pool=tuple(rows), pool_why="The 2 of 30 backbones of which most is expected.")


def test_what_was_expected_is_in_reports_and_plans():
    for voice in (render.markdown(pooled(complete()), "run"), render.html(pooled(complete()), "run")):
        assert "What was expected" in voice
        assert "The 2 of 30 backbones of which most is expected." in voice
        assert "net1" in voice
        assert "net9" in voice
    assert "net12" not in render.markdown(pooled(complete()), "run"), "the next best are enough"
    assert "What was expected" not in render.markdown(complete(), "run")
    screen = Console(file=io.StringIO(), width=80)
    screen.print(render.plan_table(pooled(plan())))
    shown_lines = screen.file.getvalue()
    assert "The 2 of 30 backbones" in shown_lines
    assert "89.0 %" in shown_lines
    assert max(map(len, shown_lines.splitlines())) <= 80


def test_reasons_that_differ_in_a_figure_are_counted_together_and_end_at_a_word():
    less = [
        untrained(f"net{n}", "amp", 96, "rejected", f"less is expected of it ({n}.0 points below net0)")
        for n in range(5)
    ]
    long = untrained("vgg", "amp", 96, "rejected", "word " * 40)
    said, _ = left_out(small(trained("resnet18", "fp32", 160, 900), *less, long))
    assert "5: less is expected of it; 1: word" in said
    assert "word …" in said
