"""The page of the benchmark profile_phase.py, from its result alone: docs/results/profile_phase.md and its picture.

A part that the result does not hold is left out of the page; whether a target is met is computed here.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fitwithin.candidate import TABLE_2, grid
from pages import GREY, PALETTE, Target, minus, save, table, targets, text

Row = dict[str, Any]

GIB, MIB = 2**30, 2**20

#: Shown in the picture as far as they were profiled; others take the places of those that were not.
PICTURED = (
    "resnest50d_1s4x24d-fp32-160",
    "resnest50d_1s4x24d-amp-160",
    "efficientnet_b0-amp-160",
    "resnet50-fp32-160",
)

PEERS = {"lightning": "Lightning", "accelerate": "accelerate"}


TARGETS = (
    Target("candidates", "candidates", "{:.0f}", least=40),
    Target("certified", "of them with a certified batch", "{:.0f}", least=40),
    Target("trials_mean", "trials for a candidate, mean", "{:.2f}", most=5),
    Target("trials_max", "trials for a candidate, most", "{:.0f}"),
    Target("wall_s", "seconds for all, searched and timed", "{:,.1f}", most=300),
    Target("over_cap_bytes_max", "bytes above the cap by the driver's count (negative: below)", "{:,.0f}", most=0),
    Target("time_error_pct_median", "error of the predicted time, %, median", "{:.2f}", most=1, base="time_checks"),
    Target("time_error_pct_max", "error of the predicted time, %, largest", "{:.2f}", most=2, base="time_checks"),
    Target("turn_error_pct_median", "error for the whole turn, %, median", "{:.2f}", base="time_checks"),
    Target("turn_error_pct_max", "error for the whole turn, %, largest", "{:.2f}", base="time_checks"),
    Target("soak_failures", "failures in 200 steps at the certified batch", "{:.0f}", most=0, base="soaks"),
    Target("wall_ratio_lightning", "seconds side by side, over Lightning's", "{:.3f}", most=0.25),
    Target("wall_ratio_accelerate", "seconds side by side, over accelerate's", "{:.3f}"),
    Target("batch_ratio_lightning_min", "batch over Lightning's, least", "{:.3f}", least=1),
    Target("batch_ratio_accelerate_min", "batch over accelerate's, least", "{:.3f}"),
)

METHOD = """\
## How the largest batch is found

A probe runs the real training step at one batch in a fresh process under the cap, launched and then recorded as a CUDA
graph, with an evaluation at the largest size in between. It passes if nothing failed, the loss stayed finite, the peak
stayed within the cap, and the allocator never had to give memory back nor refuse any: a library that is refused its
workspace may go on with a slower algorithm. What a probe needed, the least cap under which it would have passed, is
close to a line in the batch.

1. Scout: the first probe runs 8 images and then, in the same process, about half of what fits and 93 % of what a line
   promises. These two place later probes and certify nothing.
2. Line: through the two largest batches that ran.
3. Jump: the next probe is placed where the line meets the usable memory, and where a process is to spare its neighbour
   runs beside it; if that is far beyond what has run, a little short of it.
4. Bracket: strides that double, begun anew from every better line, close in on the limit until a batch b ran and b + 1
   did not. That pair is the certificate. It does not assume that memory grows evenly.
5. Neighbour: the same backbone in the same precision at the other size begins where its neighbour's line or
   certificate puts it, since bytes per image grow with the number of pixels.
"""


def write(value: dict[str, Any], docs: Path) -> None:
    """Write the page and its picture below ``docs``."""
    order = {candidate.name: place for place, candidate in enumerate(grid(TABLE_2, ("amp", "fp32"), (160, 224)))}
    rows = sorted(value["rows"], key=lambda row: (order.get(row["candidate"], len(order)), row["candidate"]))
    profiled = [row for row in rows if "batch" in row["profile"]]
    pictured = _pictured(profiled)
    cap_bytes = value["summary"]["cap_bytes"]
    parts = [
        _made(value, profiled),
        targets(TARGETS, value["summary"]),
        _method(profiled, pictured, cap_bytes),
        _candidates(rows),
        _times(rows),
        _soaks(rows, cap_bytes),
        _watch(value["facts"].get("watch"), cap_bytes),
        _peers(value, rows),
    ]
    save(docs / "results" / "profile_phase.md", "\n".join(line for part in parts for line in part))
    if pictured:
        save(docs / "images" / "profile_phase.svg", _picture(pictured, cap_bytes))


def _made(value: dict[str, Any], profiled: Sequence[Row]) -> list[str]:
    summary = value["summary"]
    known = [row["profile"]["candidate"] for row in profiled]
    models = {each["model"] for each in known}
    whose = " of the paper's Table 2" if models <= set(TABLE_2) else ""
    precisions, sizes = (
        " and ".join(str(each) for each in sorted({each[key] for each in known})) for key in ("precision", "train_px")
    )
    what = f" ({len(models)} backbones{whose}, in {precisions}, at {sizes} px)" if known else ""
    lanes = f", up to {summary['jobs']} of them side by side" if (summary.get("jobs") or 1) > 1 else ""
    versions = ", ".join(f"{key} {version}" for key, version in value["versions"].items())
    told = text(
        f"{summary['candidates']} candidates{what} profiled on imagenette{lanes}, each process under a cap of "
        f"{summary['cap_bytes'] / GIB:.2f} GiB by the driver's count. Made by `benchmarks/profile_phase.py` on "
        f"{value['date']} at commit `{value['commit'][:12]}`, from `benchmarks/results/profile_phase.json`. "
        f"Hardware: {value['hardware']}. Versions: {versions}. The command:"
    )
    return ["# The profile phase", "", *told, f"    {value['command']}", ""]


def _method(profiled: Sequence[Row], pictured: Sequence[Row], cap_bytes: int) -> list[str]:
    if not profiled:
        return []
    trials: dict[int, list[int]] = {}
    for row in profiled:
        trials.setdefault(row["profile"]["candidate"]["train_px"], []).append(row["trials"])
    told = ", ".join(f"{mean(trials[px]):.2f} at {px} px" for px in sorted(trials))
    lines = text(
        "A trial is a batch that was run, scouted ones and repetitions included; the timed process at the end is not "
        f"one. Trials for a candidate, mean: {told}. More in [how-it-works.md](../how-it-works.md#the-profile-phase)."
    )
    short_bytes = cap_bytes - _usable(pictured[0], cap_bytes)
    less = f", {short_bytes / MIB:.0f} MiB below the cap" if short_bytes > 0 else ""
    return [
        *METHOD.splitlines(),
        "",
        *lines,
        f"![Memory needed against batch, for {len(pictured)} candidates](../images/profile_phase.svg)",
        "",
        *text(
            "Left: every batch that was tried, and the line through the smallest and the largest that passed. Right: "
            "the end of it, enlarged. What a failed batch would have needed is not known: its cross lies on the usable "
            f"memory. That is where the search aims{less}; the cap itself decides what passes."
        ),
    ]


def _candidates(rows: Sequence[Row]) -> list[str]:
    lines, turned = [], []
    for row in rows:
        profile = row["profile"]
        if "batch" not in profile:
            turned.append(f"- {row['candidate']}: {_reason(profile['reason'])}")
            continue
        timing = profile["timing"]
        keys = ("dummy_step_s", "loader_step_s", "step_s", "step_low_s", "step_high_s")
        dummy, loader, step, low, high = (f"{1e3 * timing[key]:.2f}" for key in keys)
        batch = f"{profile['batch']}{'' if row['certified'] else ' (not certified)'}"
        cells = [row["candidate"], batch, str(row["trials"]), f"{profile['peak_bytes'] / GIB:.3f}", dummy, loader]
        lines.append([*cells, f"{step} ({low}–{high})", f"{profile['batch'] / timing['step_s']:,.0f}"])
    if not lines and not turned:
        return []
    told = text(
        "Milliseconds a step: with a batch that is already there (the paper's dummy loader), of the loader alone, and "
        "of both together with the 95 % interval of their mean. Images/s are those of both together."
    )
    head = ["Candidate", "Batch", "Trials", "Peak, GiB", "Dummy, ms", "Loader, ms", "Both, ms", "Images/s"]
    return ["## All candidates", "", *(told if lines else []), *table(head, lines), *_list("Turned away:", turned)]


def _times(rows: Sequence[Row]) -> list[str]:
    lines, failed = [], []
    for row in rows:
        check = row.get("two_epochs", {})
        if "failed" in check:
            failed.append(f"- {row['candidate']}: {_reason(check['failed'])}")
        if "error_pct" in check:
            seconds = [f"{check[key]:.2f}" for key in ("predicted_s", "training_s", "turn_predicted_s", "turn_s")]
            steps, turn = [*seconds[:2], _signed(check["error_pct"], 2)], seconds[2:]
            lines.append([row["candidate"], str(check["steps"]), *steps, *turn, _signed(check["turn_error_pct"], 1)])
    if not lines and not failed:
        return []
    told = text(
        "Two epochs at the certified batch, as a run trains them, against what the profile said. The error is "
        "predicted over actual seconds of the steps, less 1; the summary takes it without its sign. These seconds run "
        "from asking for the first batch until the device has finished the last step: the start of the loader and slow "
        "first steps are included, validation and checkpoints are not. The whole turn, with the start of its process, "
        "validation and checkpoints, stands beside it."
    )
    head = ["Candidate", "Steps", "Predicted, s", "Actual, s", "Error, %"]
    head += ["Turn: predicted, s", "Actual, s", "Error, %"]
    others = _list("Failed, and so in none of the errors:", failed)
    return ["## Predicted and actual time", "", *told, *table(head, lines), *others]


def _soaks(rows: Sequence[Row], cap_bytes: int) -> list[str]:
    lines = []
    for row in rows:
        if (soak := row.get("soak")) is None:
            continue
        cells = ["–"] * 3
        if "training_s" in soak:
            left_mib = (cap_bytes - soak["peak_bytes"]) / MIB
            cells = [f"{soak['training_s']:.2f}", f"{soak['peak_bytes'] / GIB:.3f}", f"{left_mib:,.0f}"]
        failed = f"**no**: {_reason(soak.get('failed', 'too few steps, or above the cap'))}"
        lines.append([row["candidate"], str(row["profile"]["batch"]), *cells, "yes" if soak["passed"] else failed])
    if not lines:
        return []
    told = text("A training of 200 steps; it passed if it took all of them and its peak stayed within the cap.")
    head = ["Candidate", "Batch", "Seconds", "Peak, GiB", "Below the cap, MiB", "Passed"]
    return ["## 200 steps at the certified batch", "", *told, *table(head, lines)]


def _watch(watch: dict[str, Any] | None, cap_bytes: int) -> list[str]:
    if not watch or not watch["peaks"]:
        return []
    peaks = list(watch["peaks"].values())
    above = sum(peak_bytes > cap_bytes for peak_bytes in peaks)
    apart = f"{abs(cap_bytes - max(peaks)) / MIB:,.1f} MiB {'above' if above else 'below'} the cap"
    told = text(
        "A process of its own read the driver's count of every process on the GPU while candidates were searched, "
        f"timed and trained: {watch['readings']:,} readings, {len(peaks)} processes. The gaps between readings were "
        f"{watch['gap_ms_median']:.1f} ms (median), at most {watch['gap_ms_p999']:.1f} ms for 99.9 % of them and "
        f"{watch['gap_ms_max']:.1f} ms at the longest; what came and went within a gap was not seen. The most that a "
        f"process held was {max(peaks) / GIB:.3f} GiB, {apart}; processes seen above the cap: {above}."
    )
    return ["## What the driver counted", "", *told]


def _peers(value: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    compared = [row for row in rows if any(peer in row for peer in PEERS)]
    if not compared:
        return []
    names = {peer: _versioned(peer, compared) for peer in PEERS if any(peer in row for row in compared)}
    head, lines, failed = ["Candidate", "Batch", "Trials", "Search, s", "Timing, s"], [], []
    for name in names.values():
        head += [f"{name}: batch", "Trials", "Seconds"]
    for row in compared:
        alone = row.get("one_by_one", {})
        cells = [f"{alone[key]:.1f}" if key in alone else "–" for key in ("search_s", "timing_s")]
        for peer in names:
            theirs = row.get(peer, {})
            known = "batch" in theirs
            cells += [str(theirs["batch"]), str(theirs["trials"]), f"{theirs['wall_s']:.1f}"] if known else ["–"] * 3
            if "failed" in theirs:
                failed.append(f"- {PEERS[peer]}, {row['candidate']}: {_last_line(theirs['failed'])}")
        lines.append([row["candidate"], str(row["profile"]["batch"]), str(row["trials"]), *cells])
    told = text(
        "The same candidates, searched by Lightning's `BatchSizeFinder` (`binsearch`, its defaults, which cut the "
        "result by a margin of 5 %) and by accelerate's `find_executable_batch_size` (from 2048 downwards), each in a "
        "process of its own under the same cap. They get images that are there already and no evaluation; their "
        "imports and the start of CUDA are not timed. Theirs ran one after the other. Our seconds include the start of "
        "every process; in the first table ours ran one after the other too, side by side several run at once."
    )
    totals = [*_totals(value["facts"], compared, names), *_ratios(value["summary"], names), *_repeated(compared)]
    return ["## Beside other finders", "", *told, *table(head, lines), *_list("Failed:", failed), *totals]


def _totals(facts: dict[str, Any], compared: Sequence[Row], names: dict[str, str]) -> list[str]:
    lines = []
    for key, words in (("side_by_side", "side by side"), ("one_by_one", "one by one")):
        searched = [row[key] for row in compared if key in row]
        if f"peers_wall_s_{key}" in facts:
            wall_s = facts[f"peers_wall_s_{key}"]
            lines.append([f"fitwithin {words}, searched and timed", str(len(searched)), f"{wall_s:.1f}"])
        if key == "one_by_one" and searched:
            search_s = math.fsum(each["search_s"] for each in searched)
            lines.append([f"fitwithin {words}, searched", str(len(searched)), f"{search_s:.1f}"])
    for peer, name in names.items():
        seconds = [row[peer]["wall_s"] for row in compared if "batch" in row.get(peer, {})]
        lines.append([name, str(len(seconds)), f"{math.fsum(seconds):.1f}"])
    return table(["In total", "Candidates", "Seconds"], lines)


def _ratios(summary: dict[str, Any], names: Iterable[str]) -> list[str]:
    lines = []
    for peer in names:
        keys = (f"wall_ratio_{peer}", f"wall_ratio_{peer}_one_by_one", f"search_ratio_{peer}_one_by_one")
        if all(key in summary for key in keys):
            cells = [*(f"{summary[key]:.3f}" for key in keys), f"{summary[f'trials_mean_{peer}']:.1f}"]
            lines.append([PEERS[peer], *cells])
    head = ["Our seconds over those of", "Side by side", "One by one", "One by one, search only", "Its trials, mean"]
    return table(head, lines)


def _repeated(compared: Sequence[Row]) -> list[str]:
    """Whether a search that was repeated came to the same batch."""
    again = [row for row in compared if "side_by_side" in row and "one_by_one" in row]
    if not again:
        return []
    others = []
    for row in again:
        batches = {row["profile"]["batch"], row["side_by_side"]["batch"], row["one_by_one"]["batch"]}
        if len(batches) > 1:
            others.append(f"{row['candidate']} ({', '.join(str(batch) for batch in sorted(batches))})")
    told = (
        f"Searched three times (among all candidates, side by side, alone), {len(again) - len(others)} of {len(again)}"
    )
    return text(f"{told} had the same batch each time{'; the others: ' + ', '.join(others) if others else ''}.")


def _versioned(peer: str, rows: Iterable[Row]) -> str:
    versions = sorted({row[peer]["version"] for row in rows if "version" in row.get(peer, {})})
    return " ".join([PEERS[peer], *versions])


def _list(title: str, items: Sequence[str]) -> list[str]:
    return [title, "", *items, ""] if items else []


def _signed(number: float, digits: int) -> str:
    return minus(f"{number:+.{digits}f}")


def _reason(text: str) -> str:
    """A reason's first words, fit for a table."""
    return textwrap.shorten(text.replace("|", "/"), 160, placeholder=" ...")


def _last_line(text: str) -> str:
    """Where a traceback says what happened."""
    return _reason(next((line for line in reversed(text.splitlines()) if line.strip()), "no message"))


# ---- The picture

INK, PAPER = "#24292f", "#ffffff"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fitwithin",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same layout everywhere
    "font.size": 9,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}

_DOT: dict[str, Any] = {"marker": "o", "color": PALETTE[0], "markersize": 4.5, "linestyle": "none"}
_MARKS: dict[str, dict[str, Any]] = {
    "passed": _DOT,
    "scouted": {**_DOT, "markerfacecolor": PAPER, "markeredgewidth": 1.3},
    "failed": {"marker": "x", "color": PALETTE[1], "markersize": 6, "markeredgewidth": 1.7, "linestyle": "none"},
    "certified": {**_DOT, "color": PALETTE[2], "markersize": 10.5, "markerfacecolor": "none", "markeredgewidth": 1.3},
    "line": {"color": GREY, "linewidth": 1.2},
    "usable": {"color": INK, "linewidth": 1.0, "linestyle": (0, (5, 3))},
    "cap": {"color": INK, "linewidth": 1.0},
}

#: Points give a line where the largest batch is so many times the smallest: memory comes in pages.
_APART = 1.2


class _Tried(NamedTuple):
    """What the search of a candidate ran: batches with the GiB they needed, and those that failed."""

    name: str
    batch: int
    passed: dict[int, float]
    scouted: dict[int, float]
    failed: list[int]
    usable: float
    cap: float

    @property
    def bounded(self) -> bool:
        """Whether the next batch failed."""
        return self.batch + 1 in self.failed

    def line(self) -> Callable[[float], float] | None:
        """GiB against batch through the smallest and the largest that passed."""
        low, high = min(self.passed), max(self.passed)
        if high < _APART * low:
            return None
        slope = (self.passed[high] - self.passed[low]) / (high - low)
        return lambda batch: self.passed[low] + slope * (batch - low)


def _tried(row: Row, cap_bytes: int) -> _Tried:
    passed: dict[int, float] = {}
    probes = row["profile"]["probes"]
    for probe in probes:
        needed = probe["peak_bytes"] if probe["needed_bytes"] is None else probe["needed_bytes"]
        if probe["passed"] and needed is not None:
            passed[probe["batch"]] = max(needed / GIB, passed.get(probe["batch"], 0.0))
    return _Tried(
        name=row["candidate"],
        batch=row["profile"]["batch"],
        passed=passed,
        scouted={
            batch: needed / GIB for probe in probes for batch, needed in probe.get("scouted", probe.get("points", ()))
        },
        failed=sorted({probe["batch"] for probe in probes if not probe["passed"]}),
        usable=_usable(row, cap_bytes) / GIB,
        cap=cap_bytes / GIB,
    )


def _usable(row: Row, cap_bytes: int) -> int:
    """What a probe's need may come to, as the search reckons."""
    return min(
        (p["usable_bytes"] for p in row["profile"]["probes"] if p["usable_bytes"] is not None), default=cap_bytes
    )


def _pictured(profiled: Sequence[Row]) -> list[Row]:
    known = {row["candidate"]: row for row in profiled}
    names = [name for name in PICTURED if name in known]
    return [known[name] for name in [*names, *(name for name in known if name not in names)][: len(PICTURED)]]


def _picture(rows: Sequence[Row], cap_bytes: int) -> str:
    """Needed memory against batch, two panels for each row: everything that was tried, and the end of it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    out = io.StringIO()
    # The SVG writer reads its options from rcParams; the context puts them back, and no pyplot state is touched.
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07)
        figure = Figure(figsize=(8.4, 0.9 + 1.8 * len(rows)), layout=layout, facecolor=PAPER)
        panels = figure.subplots(len(rows), 2, width_ratios=(3, 2), squeeze=False)
        for row, (whole, end) in zip(rows, panels, strict=True):
            tried = _tried(row, cap_bytes)
            _draw_whole(whole, tried)
            _draw_end(end, tried)
        for axes in panels[-1]:
            axes.set_xlabel("batch")
        figure.supylabel("memory needed (GiB)", fontsize=9)
        handles = [Line2D([], [], label=label, **mark) for label, mark in _MARKS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.4)
        silent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata={**silent, "Title": "Memory needed against batch"})
    drawn = out.getvalue().replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    return "\n".join(line.rstrip() for line in drawn.splitlines())


def _draw(axes: Any, tried: _Tried, low: float, high: float) -> None:
    """What was tried from ``low`` to ``high`` images."""
    axes.axhline(tried.usable, **_MARKS["usable"])
    if (line := tried.line()) is not None:
        axes.plot([low, high], [line(low), line(high)], zorder=1.5, **_MARKS["line"])
    certified = {tried.batch: tried.passed[tried.batch]} if tried.bounded else {}
    failed = dict.fromkeys(tried.failed, tried.usable)
    kinds = {"passed": tried.passed, "scouted": tried.scouted, "failed": failed, "certified": certified}
    for place, (kind, points) in enumerate(kinds.items()):
        inside = {batch: needed for batch, needed in points.items() if low <= batch <= high}
        axes.plot(list(inside), list(inside.values()), zorder=3 + place, **_MARKS[kind])


def _draw_whole(axes: Any, tried: _Tried) -> None:
    largest = max([*tried.passed, *tried.failed])
    _draw(axes, tried, 0, 1.04 * largest)
    axes.set(xlim=(0, 1.06 * largest), ylim=(0, 1.3 * tried.cap))
    axes.set_title(tried.name, loc="left", fontsize=9, fontweight="bold")
    place = {"textcoords": "offset points", "fontsize": 8.5}
    # One above the usable memory and one below it: wherever the batch lies, they do not meet.
    at, told = (tried.batch, tried.usable), f"usable: {tried.usable:.3f} of {tried.cap:.3f} GiB"
    axes.annotate(f"largest batch {tried.batch}", at, xytext=(6, 7), ha="right", color=PALETTE[2], **place)
    axes.annotate(told, (0, tried.usable), xytext=(4, -4), va="top", **place)


def _draw_end(axes: Any, tried: _Tried) -> None:
    from matplotlib.ticker import MaxNLocator

    reach = max(4, math.ceil(0.06 * tried.batch))
    low, high = max(0, tried.batch - reach), tried.batch + max(2, reach // 2)
    axes.axhline(tried.cap, **_MARKS["cap"])
    _draw(axes, tried, low, high)
    line = tried.line()
    seen = [tried.usable, tried.cap, *(needed for batch, needed in tried.passed.items() if low <= batch <= high)]
    seen += [line(low)] if line else []
    room = 0.1 * (max(seen) - min(seen))
    axes.set(xlim=(low - 0.5, high + 0.5), ylim=(min(seen) - room, max(seen) + room))
    failed = f", {tried.batch + 1} did not" if tried.bounded else ""
    axes.set_title(f"{tried.batch} ran{failed}", loc="left", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
