"""Laws of the rendered report: complete, safe, self-contained, legible; and what a browser makes of it."""

import dataclasses
import functools
import html as html_text
import io
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fitwithin.planning.stats import Accuracy
from fitwithin.report import charts, render
from fitwithin.report.schema import Limit, Report, from_json
from fitwithin.report.sections import clean
from fitwithin.report.summary import headline, search_sentence, trust_note
from report.test_schema import (
    HOSTILE,
    REPORTS,
    complete,
    plan,
    receipt,
    rows,
    searched,
    small,
    trained,
    untrained,
    without_test,
)

CHARTS = (
    charts.accuracy_against_time,
    charts.accuracy_against_memory,
    charts.loss_curves,
    charts.predicted_against_actual,
    charts.accuracy_over_rungs,
)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """The tags of a page: fails on unbalanced ones, collects ids, links, text and the JSON block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.json = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            elif key in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.json += data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)


@functools.cache
def html_of(make: Callable[[], Report]) -> str:
    return render.html(make())


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser


def words(texts: list[str]) -> str:
    return re.sub(r"\s+", " ", " ".join(texts))


def printed(renderable: object, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
class TestEveryReport:
    def test_html_is_balanced_self_contained_and_its_ids_are_unique(self, make):
        page_html = html_of(make)
        found = outline(page_html)
        assert len(found.ids) == len(set(found.ids))
        assert not [link for link in found.links if not link.startswith(("#", "data:,"))]
        assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
        used = re.findall(r"url\(#([^)]+)\)", page_html)
        assert set(used) <= set(found.ids)
        assert not re.search(r"@import|url\((?!#)", page_html)
        assert found.tags.count("script") == 1
        assert {"header", "nav", "main", "section", "caption", "h1", "h2"} <= set(found.tags)

    def test_html_carries_the_report_as_json(self, make):
        assert from_json(outline(html_of(make)).json) == make()

    def test_the_three_voices_say_the_same_headline_and_name_every_candidate(self, make):
        report = make()
        text, marked = printed(render.render_text(report), 1000), render.markdown(report)
        shown = words(outline(html_of(make)).text).replace("\u00a0", " ")
        told = headline(report)
        assert told in text
        assert told in marked
        assert told in shown
        for row in report.candidates:
            assert row.name in text
            assert row.name in marked
            assert row.name in shown

    @pytest.mark.parametrize("width", [40, 80, 140])
    def test_text_stays_within_the_terminal(self, make, width):
        for renderable in (render.render_text(make()), render.plan_table(make())):
            assert max(map(len, printed(renderable, width).splitlines())) <= width

    def test_rendering_twice_gives_the_same_page(self, make):
        assert render.html(make()) == html_of(make)


def test_a_broken_promise_is_in_the_headline_and_not_told_by_colour():
    limit = Limit(name="time", limit=10800.0, spent=10900.0, unit="s", kept=False)
    report = complete(receipt=receipt(limits=(limit,), balanced=False, finished=False))
    assert headline(report).endswith("against limits of 3h 00m: spent 3h 02m. NOT KEPT: time.")
    for voice in (render.html(report), render.markdown(report), printed(render.render_text(report), 120)):
        assert "✗ NO" in voice
        assert "BOOKS DO NOT BALANCE" in voice
        assert "did NOT finish" in voice


def test_without_a_test_split_the_validation_figure_is_called_one():
    assert "on 1,000 validation images" in headline(without_test())
    assert "there is no labelled test split" in trust_note(without_test())
    assert "Test accuracy" not in render.html(without_test())


def test_a_plan_reads_as_a_plan():
    report = plan()
    assert headline(report) == "6 of 8 candidates fit within 6.00 GiB and 3h 00m; nothing has been trained yet."
    assert "<svg" not in render.html(report)
    narrow = printed(render.plan_table(report), 80)
    assert "34m 09s" in narrow
    assert "97 went past" in narrow
    assert "this model only takes 224 px images" in narrow


def test_a_run_that_left_no_model_says_why():
    report = small(untrained("resnet18", "amp", 160, "failed", "the loss was not finite"))
    assert "the loss was not finite" in render.html(report)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(hostile):
    report = dataclasses.replace(
        plan(),
        title=hostile,
        data={"path": hostile, "classes": [hostile], "counts": {"train": 1}, "split": hostile, "broken": []},
        notes=(hostile, "\x1b[31m \udcff"),
    )
    found = outline(render.html(report))
    assert found.tags.count("script") == 1
    assert clean(hostile) in words(found.text)
    assert from_json(found.json) == report
    render.html(report).encode("utf-8")
    text = printed(render.render_text(report), 400)
    assert clean(hostile) in text
    assert "\x1b[31m" not in text
    assert not re.search(r"(?<!\\)<script", render.markdown(report))


@given(st.lists(rows, min_size=1, max_size=5, unique_by=lambda row: row.name))
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # half a second each
def test_every_candidate_is_named_everywhere(candidates):
    report = small(*candidates)
    marked, shown = render.markdown(report), words(outline(render.html(report)).text)
    for row in candidates:
        assert row.name in html_text.unescape(marked).replace("\\", "")
        assert row.name in shown


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_markdown_cells_stay_in_their_table(name):
    escaped = render._md(name)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(\\\\)*\|", escaped)
    assert "<" not in escaped


def test_charts_are_none_where_there_is_nothing_to_show():
    bare = trained("resnet18", "amp", 160, 900, actual_s=1.0)
    empty = dataclasses.replace(bare, validation=None, actual_s=None, peak_bytes=None, curve=())
    for chart in CHARTS:
        assert chart(plan()) is None
        assert chart(small(empty)) is None
        assert chart(small()) is None
        assert chart(searched()) is not None
    assert charts.accuracy_over_rungs(complete()) is None


def test_charts_are_accessible_and_take_the_pages_colour():
    for chart in CHARTS:
        svg = chart(searched())
        assert svg.startswith("<svg ")
        assert svg.endswith("</svg>")
        labels = re.search(r'role="img" aria-labelledby="(\S+) (\S+)"', svg)
        assert f'<title id="{labels[1]}">' in svg
        assert f'<desc id="{labels[2]}">' in svg
        assert "currentColor" in svg
        assert "resnest50d_1s4x24d-amp-160" in svg
        assert charts.INK not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg


def test_charts_take_strange_names_and_losses_that_are_not_numbers():
    row = trained("a$b$<猫>&", "amp", 160, 900)
    bad = [dataclasses.replace(point, loss=float("nan")) for point in row.curve[:3]]
    report = small(dataclasses.replace(row, curve=(*bad, *row.curve[3:])))
    for chart in CHARTS[:4]:
        outline(chart(report))
    assert "nan" not in charts.loss_curves(report)


def test_charts_take_the_ends_of_the_scale():
    ends = [trained(f"m{n}", "amp", 160, n) for n in (0, 1000)]
    third = dataclasses.replace(ends[0], name="third", validation=Accuracy(correct=0, total=3))
    for chart in CHARTS[:4]:
        outline(chart(small(*ends, third)))
    outline(charts.accuracy_over_rungs(of_trials({"none": [0], "some": [0, 1000]})))


def test_charts_take_many_candidates():
    many = [trained(f"resnet{i}", ("amp", "fp32")[i % 2], 160, 700 + i, actual_s=60.0 + 3 * i) for i in range(40)]
    report = small(*many, winner="resnet39-fp32-160")
    assert charts.loss_curves(report).count("#8a8a8a") > 30
    assert "28 more are in the table" in charts.predicted_against_actual(report)
    named = set(re.findall(r"resnet\d+-\w+-160(?=</text>)", charts.accuracy_against_time(report)))
    assert 1 <= len(named) <= 8
    climbs = charts.accuracy_over_rungs(of_trials({f"resnet{i}": [700 + i] * (3 if i > 35 else 1) for i in range(40)}))
    assert len(set(re.findall(r"resnet\d+(?=</text>)", climbs))) == 10


def of_trials(reached: dict[str, list[int]]) -> Report:
    """A report of a search in which each candidate had so many of 1,000 images right, rung after rung."""
    example = searched().search.trials[0]
    trials = [
        dataclasses.replace(
            example, candidate=name, name=f"{name}-{rung}", rung=rung, accuracy=Accuracy(correct=right, total=1000)
        )
        for name, all_right in reached.items()
        for rung, right in enumerate(all_right)
    ]
    return searched(search=dataclasses.replace(searched().search, trials=tuple(trials)))


def test_a_search_is_in_all_three_voices_with_its_chart_beside_the_ladder():
    report = searched()
    text, marked, shown = printed(render.render_text(report), 1000), render.markdown(report), html_of(searched)
    told = search_sentence(report)
    assert told in text
    assert told in marked
    assert told in words(outline(shown).text).replace("\u00a0", " ")
    part = shown[shown.index('<section id="search"') : shown.index('<section id="forecast"')]
    assert part.count("<svg ") == 1
    assert part.count("<table") == 2
    assert part.index("GPU time promised") < part.index("<svg ") < part.index("who is out when")
    for voice in (text, marked, part):
        assert "unknown" in voice
    for name in ("search", "forecast"):
        assert f'id="{name}"' not in html_of(complete)


def test_a_terminal_is_told_of_the_first_trials_only():
    many = of_trials({f"resnet{i}": [700 + i] for i in range(60)})
    text, marked = printed(render.render_text(many), 200), render.markdown(many)
    assert f"the first {render.MOST_TRIALS} of 60" in text
    assert text.count(" promised") == render.MOST_TRIALS
    assert marked.count(" promised") == 60


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1))
def test_the_pareto_front_is_exactly_what_nothing_beats(points):
    front = charts.pareto(points)
    beaten = {(x, y) for x, y in points for a, b in points if (a <= x and b >= y) and (a, b) != (x, y)}
    assert set(front) == set(points) - beaten
    assert front == sorted(front)


def test_importing_the_page_imports_nothing_heavy():
    code = (
        "import sys, fitwithin.report.render, fitwithin.report.sections\n"
        "import fitwithin.report.summary, fitwithin.report.charts\n"
        "print([name for name in ('matplotlib', 'jinja2', 'rich', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A function that runs a headless browser on an HTML text and returns what it printed."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    folder = tmp_path_factory.mktemp("chromium")

    def run(text: str, *options: str) -> str:
        (folder / "page.html").write_text(text, encoding="utf-8")
        quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
        command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet.split()]
        command += [f"--user-data-dir={folder / 'profile'}", *options, (folder / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    return run


def framed(text: str, width: int) -> str:
    """A page that shows ``text`` in a frame of ``width`` pixels and writes how wide it turned out into its title.

    A browser window can't be made narrower than about 500 px; a frame can.
    """
    measure = (
        "const d = this.contentDocument.documentElement; document.title = `wide ${d.scrollWidth} of ${d.clientWidth}; `"
        " + [...d.querySelectorAll('.scroll')].map(t => `${t.ariaLabel}: ${t.scrollWidth - t.clientWidth}`).join('; ')"
    )
    style = f"border: 0; display: block; width: {width}px; height: 2400px"
    frame = f'<iframe srcdoc="{html_text.escape(text)}" style="{style}" onload="{measure}"></iframe>'
    return f'<!DOCTYPE html><title>not measured</title><body style="margin: 0">{frame}'


@pytest.mark.parametrize("make", [complete, searched], ids=["complete", "searched"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_without_sideways_scrolling(chromium, width, make):
    dom = chromium(framed(html_of(make), width), f"--window-size={max(width, 500)},2400", "--dump-dom")
    wide, of = map(int, re.search(r"wide (\d+) of (\d+)", dom).groups())
    assert width - 20 <= of <= width
    assert wide <= of


def test_on_a_desk_no_table_of_a_search_is_wider_than_the_page(chromium):
    title = re.search(r"<title>(.*?)</title>", chromium(framed(html_of(searched), 1200), "--dump-dom")).group(1)
    beyond = dict(part.rsplit(": ", 1) for part in html_text.unescape(title).split("; ")[1:])
    assert "Validation accuracy on every rung, and who is out when" in beyond
    assert "The paper's Table 2 on this data and machine" in beyond
    assert {table: px for table, px in beyond.items() if int(px) > 0} == {}


def test_a_browser_reads_the_headline(chromium):
    found = outline(re.sub(r"<!DOCTYPE[^>]*>", "", chromium(html_of(complete), "--dump-dom")))
    assert headline(complete()) in words(found.text).replace("\u00a0", " ")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_screenshot_is_a_picture_of_something(chromium, tmp_path, width):
    target = Path(tmp_path / "page.png")
    chromium(framed(html_of(complete), width), f"--window-size={width},2400", f"--screenshot={target}")
    png = target.read_bytes()
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24])[1] >= 2000
    assert len(png) > 50_000
