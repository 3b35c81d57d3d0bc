"""Laws of the rendered report: complete, safe, self-contained, legible; and what a browser makes of it."""

import dataclasses
import functools
import html as html_text
import io
import re
import struct
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

import browser
from fitwithin.planning.stats import Accuracy
from fitwithin.report import render
from fitwithin.report.schema import Limit, Report, from_json
from fitwithin.report.sections import clean
from fitwithin.report.summary import headline, search_sentence, trust_note
from report.test_schema import (
    HOSTILE,
    REPORTS,
    complete,
    curve,
    plan,
    receipt,
    rows,
    searched,
    small,
    trained,
    untrained,
    without_test,
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
        self.scripts: list[tuple[str, str]] = []  # id and text

    @property
    def json(self) -> str:
        return dict(self.scripts)["report"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("id") or "", ""))
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
            name, text = self.scripts[-1]
            self.scripts[-1] = (name, text + data)
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
        unscripted = re.sub(r"<script>.*?</script>", "", page_html, flags=re.S)
        used = re.findall(r"url\(#([^)]+)\)", unscripted)
        assert set(used) <= set(found.ids)
        assert not re.search(r"@import|url\((?!#)", unscripted)
        assert "Content-Security-Policy\" content=\"default-src 'none';" in page_html  # nor may a script ask
        own = ["charts-data", "", ""] if "<figure" in page_html else []
        assert [name for name, _ in found.scripts] == ["report", *own]
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
    assert "<figure" not in render.html(report)
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
    assert [name for name, _ in found.scripts] == ["report"]
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
    assert part.count("<figure ") == 1
    assert part.count("<table") == 3  # the chart's own is one
    order = ("GPU time promised and spent on each rung", "<figure ", "who is out when")
    assert sorted(order, key=part.index) == list(order)
    for voice in (text, marked, part):
        assert "unknown" in voice
    for name in ("search", "forecast"):
        assert f'id="{name}"' not in html_of(complete)


def test_a_terminal_is_told_of_the_first_trials_only():
    many = of_trials({f"resnet{i}": [700 + i] for i in range(60)})
    text, marked = printed(render.render_text(many), 200), render.markdown(many)
    assert f"the first {render.MOST_LINES} of 60" in text
    assert text.count(" promised") == render.MOST_LINES
    assert marked.count(" promised") == 60


def test_importing_the_page_imports_nothing_heavy():
    code = (
        "import sys, fitwithin.report.render, fitwithin.report.sections\n"
        "import fitwithin.report.summary, fitwithin.report.charts\n"
        "print([name for name in ('matplotlib', 'jinja2', 'rich', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_script_runs_but_the_pages_own():
    text = html_of(searched)
    allowed = re.search(r"script-src ([^;\"]+)", html_text.unescape(text)).group(1).split()
    own = [
        body for kind, _, body in re.findall(r"<script( type=\S+( id=\S+)?)?>(.*?)</script>", text, re.S) if not kind
    ]
    assert allowed == [f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'" for body in own]
    assert len(own) == 2
    assert "\r" not in "".join(own)  # a browser would read it as a line's end, and the sum would be another
    assert "<!--" not in "".join(own)
    assert not re.search(r"<[^>]*\son[a-z]+=", re.sub(r"<script.*?</script>", "", text, flags=re.S))
    assert "script-src" not in html_of(plan)


def test_the_vendored_library_is_what_its_readme_says():
    folder = Path(render.__file__).parent / "templates" / "vendor"
    assert sha256((folder / "plot.min.js").read_bytes()).hexdigest() in (folder / "README.md").read_text()
    assert "Mike Bostock" in (folder / "LICENSE.txt").read_text()


def crowded(count: int, points: int) -> Report:
    """So many candidates, with curves of so many readings."""
    rows = [trained(f"resnet{n}", ("amp", "fp32")[n % 2], 160, 500 + n, actual_s=60.0 + 3 * n) for n in range(count)]
    return small(*(dataclasses.replace(row, curve=curve(44.1, 0.1, points)) for row in rows), winner=rows[-1].name)


def test_a_large_page_is_made_in_no_time():
    """80 candidates with a thousand readings each: about 0.08 s of one core."""
    report = crowded(80, 1000)

    def seconds() -> float:
        begun_s = time.process_time()
        assert len(render.html(report)) < 2e6
        return time.process_time() - begun_s

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.fixture(scope="module")
def tab():
    """A tab of a headless browser."""
    path = browser.found()
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with browser.browser(path) as opened:
        yield opened


@pytest.fixture
def show(tab, tmp_path):
    """A function that opens the page of a report, and returns the tab."""

    def opened(report: Report, **how: object) -> browser.Tab:
        (tmp_path / "page.html").write_text(render.html(report), encoding="utf-8")
        tab.complaints.clear()
        tab.open(tmp_path / "page.html", **how)
        return tab

    return opened


DRAWN = """[...document.querySelectorAll("figure")].map(figure => {
    const svg = figure.querySelector(".plot > svg"), box = svg && svg.getBoundingClientRect();
    return [figure.id, svg ? Math.round(box.width) : 0, svg ? Math.round(box.height) : 0,
            figure.querySelector(".values").open, figure.clientWidth];
})"""


@pytest.mark.parametrize("make", [complete, searched], ids=["complete", "searched"])
@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1440])
def test_a_browser_draws_every_chart_and_nothing_is_wider_than_the_page(show, width, make):
    tab = show(make(), width=width)
    drawn = {anchor: rest for anchor, *rest in tab.run(DRAWN)}
    assert list(drawn) == re.findall(r'<figure[^>]* id="([^"]+)"', html_of(make))
    for wide, high, values_open, room in drawn.values():
        assert 0.7 * room < wide <= room
        assert high > 200
        assert not values_open
    assert tab.run("document.documentElement.scrollWidth") <= width
    # Within a chart no text is cut off.
    beyond = """[...document.querySelectorAll(".plot > svg")].flatMap(svg => [...svg.querySelectorAll("text")].filter(
        text => { const [a, b] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
                  return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1; }
    ).map(text => text.textContent))"""
    assert tab.run(beyond) == []
    assert tab.complaints == []


@pytest.mark.parametrize(
    "report",
    [
        crowded(40, 40),
        small(*(trained(f"m{n}", "amp", 160, n) for n in (0, 1000)), winner="m0-amp-160"),
        small(trained("alone", "amp", 160, 900, actual_s=1.0)),
        small(dataclasses.replace(trained("flat", "amp", 160, 900), curve=2 * curve(1.0, 0.5)[:1])),
        small(dataclasses.replace(trained("<b>&amp;</script>", "amp", 160, 900), name="<b>&amp;</script>" * 9)),
    ],
    ids=["crowded", "ends of the scale", "alone", "flat", "hostile"],
)
def test_a_browser_draws_odd_charts_without_complaint(show, report):
    tab = show(report, width=360)
    assert all(wide > 200 and high > 80 for _, wide, high, _, _ in tab.run(DRAWN))
    assert tab.run("document.documentElement.scrollWidth") <= 360
    assert not tab.run("document.querySelectorAll('.plot').length == 0")
    assert "NaN" not in tab.run("[...document.querySelectorAll('.plot')].map(plot => plot.innerHTML).join()")
    assert tab.complaints == []


def test_charts_follow_the_width_and_the_readers_colours(show):
    tab = show(searched(), width=1440)
    ink = "getComputedStyle(document.querySelector('.plot .name')).fill"
    light, wide = tab.run(ink), tab.run(DRAWN)
    tab.scheme(dark=True)
    assert tab.run(ink) != light
    tab.widen(360)
    tab.settle()
    for (anchor, before, *_), (after_anchor, after, *_, room) in zip(wide, tab.run(DRAWN), strict=True):
        assert anchor == after_anchor
        assert after < before
        assert after <= room
    assert tab.run("document.documentElement.scrollWidth") <= 360


def test_arrow_keys_read_a_charts_values(show):
    tab = show(searched(), width=768)
    for name, key in [(None, "ArrowRight"), (None, "ArrowRight"), (None, "ArrowLeft")]:
        tab.run("document.querySelector('#chart-time svg').focus()")
        tab.run(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        tab.settle()
        name = tab.run("document.querySelector('#chart-time [aria-live]').textContent")
    told = name.split("\n")
    assert told[0] == "resnet18-fp32-160"  # which took the least time
    assert told[1].startswith("83.2 %, 95 % interval 80.8")
    assert told[2] == "training time 14.33 minutes"
    assert "resnet18-fp32-160" in tab.run("document.querySelector('#chart-time [aria-label=tip]').textContent")
    assert tab.complaints == []


def test_without_scripts_the_tables_hold_every_figure(show):
    tab = show(searched(), width=768, script=False)
    assert all((wide, values_open) == (0, True) for _, wide, _, values_open, _ in tab.run(DRAWN))
    shown = tab.run("document.querySelector('#chart-time').innerText")
    for row in searched().candidates:
        if row.status == "trained":
            assert row.name in shown
            assert f"{row.actual_s / 60:.4g}" in shown
    assert tab.run("document.documentElement.scrollWidth") <= 768


def test_a_printed_page_has_the_charts_and_not_their_tables(show):
    tab = show(searched(), width=1280, dark=True)
    assert tab.print().startswith(b"%PDF")
    tab.send("Emulation.setEmulatedMedia", media="print")
    assert tab.run("document.querySelector('.values').getBoundingClientRect().height") == 0
    assert tab.run("getComputedStyle(document.querySelector('.plot .name')).fill") == "rgb(0, 0, 0)"


def test_on_a_desk_no_table_of_a_search_is_wider_than_the_page(show):
    tab = show(searched(), width=1200)
    wide = "[...document.querySelectorAll('.scroll')].map(t => [t.ariaLabel, t.scrollWidth - t.clientWidth])"
    beyond = {label.removeprefix("Table: "): px for label, px in tab.run(wide)}
    assert "Validation accuracy on every rung, and who is out when" in beyond
    assert "The paper's Table 2 on this data and machine" in beyond
    assert {table: px for table, px in beyond.items() if px > 0} == {}


def test_a_browser_reads_the_headline(show):
    shown = show(complete(), width=1280).run("document.body.innerText")
    assert headline(complete()) in words([shown]).replace("\u00a0", " ")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_screenshot_is_a_picture_of_something(show, width):
    png = show(complete(), width=width).picture()
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24])[1] >= 2000
    assert len(png) > 50_000
