"""The page and the lines of an inspection: complete, safe, narrow enough, and readable in a browser."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import browser
from fitwithin.data.dataset import Dataset, Sample
from fitwithin.data.inspection.facts import ClassCount, Facts, Spread
from fitwithin.data.inspection.suspects import KINDS, Suspect
from fitwithin.inspection import page, summary
from fitwithin.inspection.findings import LIST, Inspection, Labels, Mixed, Parts
from simulated.pictures import jpeg, picture, write

HOSTILE = "<script>alert(1)</script> & \u202e\x1b[31m"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty pictures of two classes, one of which has a name that would like to be code."""
    paths = [f"train/{name}/{n}.jpg" for name in ("cats", "dogs") for n in range(30)]
    root = write(tmp_path_factory.mktemp("photos"), {path: jpeg(picture(n)) for n, path in enumerate(paths)})
    samples = [Sample(path=path, label=int("dogs" in path), split="train") for path in paths]
    return Dataset(
        source="/photos",
        root=root,
        classes=("cats", HOSTILE),
        samples=tuple(samples),
        fingerprint="0",
        split_why="as the folders have it",
        ignored=0,
    )


@pytest.fixture(scope="module")
def found(data: Dataset) -> Inspection:
    """Suspects of every kind, more of one than the page shows."""
    paths = [sample.path for sample in data.samples]
    suspects = [
        Suspect(
            path=path,
            label=HOSTILE,
            split="train",
            what=what,
            why=f"a near twin of {HOSTILE}",
            suggestion="look",
            exclude=what == "copy",
            other=paths[(number + 5) % len(paths)] if what in ("copy", "near twin", "leak", "two labels") else "",
            likeness=0.97,
        )
        for what in KINDS
        for number, path in enumerate(paths[: 50 if what == "near twin" else 3])
    ]
    spread = Spread(least=20, median=96, most=4000)
    return Inspection(
        source=str(data.root),
        created_at="2026-01-01T12:00:00+00:00",
        split_why=data.split_why,
        facts=Facts(
            counts={"train": 60, "val": 0, "test": 0},
            unreadable=3,
            classes=tuple(
                ClassCount(name=name, train=30 - 20 * n, val=0, test=0) for n, name in enumerate(data.classes)
            ),
            formats={"JPEG": 60},
            modes={"RGB": 59, "L": 1},
            total_bytes=10**6,
            width=spread,
            height=spread,
            ratio=spread,
            imbalance=3.0,
        ),
        suspects=tuple(suspects),
        too_small=4,
        labels=Labels(
            weights=("resnet18.a1_in1k",),
            images=60,
            right=50,
            expected_errors=5,
            mixed=(Mixed(one="cats", other=HOSTILE, mixed=7, images=60),),
            parts=(Parts(split="test", leaked=10, leaked_right=10, clean=50, clean_right=30),),
        ),
        labels_why="Labels were checked by features of resnet18.a1_in1k.",
        notes=("4 images are grey",),
        seconds={},
    )


def test_the_page_is_whole_and_runs_no_code(found: Inspection, data: Dataset) -> None:
    text = page.html(found, data)
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    for title in KINDS.values():
        assert f"{title} <small>" in text
    assert f"Here are {page.MOST_SHOWN} of them" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in re.findall(r'href="(#[^"]+)"', text)} <= set(ids)


def test_three_files_are_written_and_say_the_same(found: Inspection, data: Dataset, tmp_path: Path) -> None:
    page.write(found, data, tmp_path / "out")
    listed = (tmp_path / "out" / LIST).read_text(encoding="utf-8")
    assert listed.startswith("\ufeffexclude,path,")
    assert len(re.findall(r"^(yes|no),", listed, re.MULTILINE)) == len(found.suspects)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "inspect.html",
        "inspect.json",
        "suspects.csv",
    ]


def test_lines_fit_80_columns_and_name_every_kind(found: Inspection) -> None:
    lines = list(summary.lines(found, Path("photos"), Path("out")))
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for title in KINDS.values():
        assert title in text
    for said in (
        "right for 83.3 % of 60 images",
        "right for 100.0 % (10 of 10) of the test images with a twin in train, and for 60.0 % (30 of 50) of the others",
        "fitwithin run photos --exclude out/suspects.csv",
        "4 images with a side below 32 px",
    ):
        assert said in text


def test_nothing_suspicious_is_said(found: Inspection) -> None:
    clean = dataclasses.replace(found, suspects=(), labels=None, labels_why="Labels were not checked, as asked.")
    lines = list(summary.lines(clean, Path("photos"), Path("out")))
    assert "  nothing suspicious was found" in lines
    assert not any("--exclude" in line for line in lines)


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Tab]:
    path = browser.found()
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with browser.browser(path) as opened:
        yield opened


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1440, False), (1440, True)])
def test_a_browser_shows_it_at_any_width(
    tab: browser.Tab, found: Inspection, data: Dataset, tmp_path: Path, width: int, dark: bool
) -> None:
    file = tmp_path / "inspect.html"
    file.write_text(page.html(found, data), encoding="utf-8")
    tab.complaints.clear()
    tab.open(file, width=width, dark=dark)
    assert tab.run("document.documentElement.scrollWidth") <= width
    shown = "Promise.all([...document.images].map(each => (each.loading = 'eager', each.decode().then(() => 1))))"
    assert sum(tab.run(shown)) == len(re.findall("<img ", file.read_text(encoding="utf-8")))
    assert tab.complaints == []
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    for node in nodes:
        role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
        if not node.get("ignored") and role in ("link", "image", "heading", "region", "navigation"):
            assert name, node
    for kind in ("keyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert tab.run("document.activeElement.tagName") == "A"
    if folder := os.environ.get("FITWITHIN_SHOTS"):
        (Path(folder) / f"inspect-{width}-{'dark' if dark else 'light'}.png").write_bytes(tab.picture())
    if axe := os.environ.get("FITWITHIN_AXE"):  # axe.min.js, which is no dependency
        tab.run(Path(axe).read_text(encoding="utf-8") + ";0")
        violations = tab.run("axe.run().then(found => found.violations.map(each => [each.id, each.impact]))")
        assert [each for each in violations if each[1] in ("serious", "critical")] == []
