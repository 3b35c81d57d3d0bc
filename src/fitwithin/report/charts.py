"""Charts of a report as inline SVG: accuracy against time, memory and a search's GPU-seconds, loss, predicted times.

Every chart is a function from a Report to SVG text, or to None where the report has nothing for it to show. svg.py
makes the SVG fit for a page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fitwithin.report.svg import GREY, INK, PALETTE, short, svg, time_unit

if TYPE_CHECKING:
    from fitwithin.report.schema import CandidateRow, Report
    from fitwithin.report.search_report import TrialRow

_MARKERS = ("o", "s", "^", "D")
_Box = tuple[float, ...]  # left, bottom, right, top


class _Point(NamedTuple):
    x: float
    y: float
    low: float
    high: float
    row: CandidateRow


def accuracy_against_time(report: Report) -> str | None:
    """Validation accuracy (percent, 95 % interval) against the seconds each candidate's training took."""
    rows = [row for row in report.candidates if row.validation and row.actual_s is not None]
    if not rows:
        return None
    scale, unit = time_unit([row.actual_s or 0.0 for row in rows])
    points = [_point(row, (row.actual_s or 0.0) / scale) for row in rows]
    return _scatter(
        report,
        points,
        name="chart-time",
        title="Validation accuracy against training time",
        x_label=f"training time ({unit})",
    )


def accuracy_against_memory(report: Report) -> str | None:
    """Validation accuracy against the most memory each candidate held (GiB), with the cap as a line."""
    points = [_point(row, row.peak_bytes / 2**30) for row in report.candidates if row.validation and row.peak_bytes]
    cap = report.request.get("memory_bytes")
    if not points:
        return None
    return _scatter(
        report,
        points,
        name="chart-memory",
        title="Validation accuracy against peak memory",
        x_label="peak memory (GiB)",
        cap=cap / 2**30 if cap else None,
    )


def loss_curves(report: Report) -> str | None:
    """Training loss against epochs, a line for each trained candidate: the winner bold, the best ten coloured."""
    finite = {row.name: [p for p in row.curve if math.isfinite(p.loss)] for row in report.candidates}
    rows = [row for row in report.candidates if row.status == "trained" and len(finite[row.name]) > 1]
    if not rows:
        return None
    rows.sort(key=lambda row: (row.name != report.winner, -_share(row)))
    losses = [point.loss for row in rows for point in finite[row.name]]
    decades = min(losses) > 0 and max(losses) / min(losses) > 10
    coloured = rows[:10]

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes = figure.add_subplot()
        for place, row in reversed(list(enumerate(rows))):
            won, named = row.name == report.winner, place < len(coloured)
            axes.plot(
                [point.epoch for point in finite[row.name]],
                [point.loss for point in finite[row.name]],
                color=PALETTE[place % len(PALETTE)] if named else GREY,
                linestyle="-" if place < len(PALETTE) or not named else "--",
                linewidth=2.4 if won else 1.3,
                alpha=1.0 if named else 0.4,
                zorder=3 if won else 2,
                label=short(row.name, 28) + (" (winner)" if won else "") if named else "_other",
            )
        if decades:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="epochs", ylabel="training loss" + (" (log)" if decades else ""))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, fontsize=7.5)

    ends = "; ".join(f"{row.name} ends at {finite[row.name][-1].loss:.3g}" for row in coloured)
    return svg(draw, 3.9 + 0.09 * len(coloured), "chart-loss", "Training loss against epochs", ends)


def predicted_against_actual(report: Report) -> str | None:
    """What each candidate's training was predicted to take (mark and interval) and what it took, with the error."""
    rows = [row for row in report.candidates if row.predicted_s and row.actual_s is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: (row.name != report.winner, -_share(row)))
    left_out, rows = len(rows[12:]), rows[:12]
    scale, unit = time_unit([row.actual_s or 0.0 for row in rows])
    errors = [
        f"{100 * ((row.actual_s or 0.0) / (row.predicted_s or 1.0) - 1):+.1f} %".replace("-", "−") for row in rows
    ]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for y, (row, error) in enumerate(zip(rows, errors, strict=True)):
            predicted = row.predicted_s or 0.0
            low = predicted if row.predicted_low_s is None else row.predicted_low_s
            high = predicted if row.predicted_high_s is None else row.predicted_high_s
            first = y == 0
            interval = "predicted interval" if first else "_"
            axes.plot([low / scale, high / scale], [y, y], color=PALETTE[5], linewidth=6, alpha=0.5, label=interval)
            mark = {"marker": "|", "markersize": 11, "markeredgewidth": 2.2, "linestyle": "none"}
            axes.plot([predicted / scale], [y], color=PALETTE[0], label="predicted" if first else "_", **mark)
            spent = (row.actual_s or 0.0) / scale
            axes.plot([spent], [y], "o", color=PALETTE[1], markersize=5.5, label="actual" if first else "_")
            # Names stand above their line, not beside the axis: long ones would leave a phone no room for the plot.
            across = axes.get_yaxis_transform()
            axes.text(0.0, y - 0.3, short(row.name, 36), transform=across, fontsize=8, va="bottom")
            axes.text(1.0, y - 0.3, error, transform=across, fontsize=8, va="bottom", ha="right")
        axes.set_ylim(len(rows) - 0.5, -0.95)
        axes.margins(x=0.06)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"training time ({unit})")
        figure.legend(loc="outside lower center", ncols=3)

    told = "; ".join(f"{row.name}: {error}" for row, error in zip(rows, errors, strict=True))
    more = f"; {left_out} more are in the table" if left_out else ""
    title = "Predicted against actual training time"
    return svg(draw, 1.25 + 0.42 * len(rows), "chart-prediction", title, f"actual over predicted time, {told}{more}")


def accuracy_over_rungs(report: Report) -> str | None:
    """A search: validation accuracy against the GPU-seconds a candidate has had, a line over its rungs; the best bold.

    The ten that came furthest are coloured, the winner has its 95 % intervals, and what is handed over a ring.
    """
    lines = _climbs(report)
    if not lines:
        return None
    names = sorted(lines, key=lambda name: (name != report.winner, -len(lines[name]), -lines[name][-1][1]))
    scale, unit = time_unit([x for line in lines.values() for x, _, _ in line])
    handed = report.search.delivered if report.search else None

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes = figure.add_subplot()
        for place, name in reversed(list(enumerate(names))):
            won, named = name == report.winner, place < 10
            xs, ys = [x / scale for x, _, _ in lines[name]], [y for _, y, _ in lines[name]]
            look = {
                "marker": _MARKERS[place % len(_MARKERS)] if named else ".",
                "color": PALETTE[place % len(PALETTE)] if named else GREY,
                "linestyle": "-" if place < len(PALETTE) or not named else "--",
                "linewidth": 2.4 if won else 1.3,
                "markersize": 6.5 if won else 4.5,
                "alpha": 1.0 if named else 0.5,
                "zorder": 3 if won else 2,
                "label": short(name, 28) + (" (winner)" if won else "") if named else "_other",
            }
            if won:
                spans = [trial.accuracy.interval for _, _, trial in lines[name] if trial.accuracy]
                below = [max(0.0, y - 100 * low) for y, (low, _) in zip(ys, spans, strict=True)]
                above = [max(0.0, 100 * high - y) for y, (_, high) in zip(ys, spans, strict=True)]
                axes.errorbar(xs, ys, yerr=[below, above], elinewidth=1, capsize=2.5, **look)
            else:
                axes.plot(xs, ys, **look)
        for line in lines.values():
            for x, y, trial in line:
                if trial.name == handed:
                    ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
                    axes.plot([x / scale], [y], marker="o", label="handed over", zorder=4, **ring)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=f"GPU time of the candidate so far ({unit}, log)", ylabel="validation accuracy (%)")
        axes.margins(x=0.08, y=0.1)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda n: (labels[n] != "handed over", n), reverse=True)
        figure.legend(
            [handles[n] for n in order], [labels[n] for n in order], loc="outside lower center", ncols=2, fontsize=7.5
        )

    told = "; ".join(
        f"{name}: {', '.join(f'{y:.1f} % at {x / scale:.3g}' for x, y, _ in lines[name])}" for name in names[:10]
    )
    title = "Validation accuracy against GPU time, rung by rung"
    return svg(draw, 3.9 + 0.09 * min(10, len(names)), "chart-rungs", title, f"GPU time ({unit}), accuracy: {told}")


def _climbs(report: Report) -> dict[str, list[tuple[float, float, TrialRow]]]:
    """By candidate the GPU-seconds that it had had after each of its trials, and its accuracy (percent) then."""
    found: dict[str, list[tuple[float, float, TrialRow]]] = {}
    had: dict[str, float] = {}
    for trial in report.search.trials if report.search else ():
        had[trial.candidate] = had.get(trial.candidate, 0.0) + trial.gpu_s
        if trial.accuracy is not None and had[trial.candidate] > 0:
            found.setdefault(trial.candidate, []).append((had[trial.candidate], 100 * trial.accuracy.share, trial))
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both: none costs as little (x) and reaches more (y). Ascending in both."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _scatter(
    report: Report, points: list[_Point], *, name: str, title: str, x_label: str, cap: float | None = None
) -> str:
    precisions = sorted({point.row.precision for point in points})
    front = pareto([(point.x, point.y) for point in points])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        if len(front) > 1:
            xs, ys = zip(*front, strict=True)
            axes.step(xs, ys, where="post", color=GREY, linewidth=1.4, label="Pareto front", zorder=1)
        for place, precision in enumerate(precisions):
            own = [point for point in points if point.row.precision == precision]
            axes.errorbar(
                [point.x for point in own],
                [point.y for point in own],
                yerr=[[max(0.0, p.y - p.low) for p in own], [max(0.0, p.high - p.y) for p in own]],  # -1e-15 at 0 of n
                fmt=_MARKERS[place % len(_MARKERS)],
                color=PALETTE[place % len(PALETTE)],
                markersize=6,
                elinewidth=1,
                capsize=2.5,
                label=precision,
            )
        winners = [point for point in points if point.row.name == report.winner]
        if winners:
            ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
            axes.plot([winners[0].x], [winners[0].y], marker="o", label="winner", **ring)
        if cap is not None:
            axes.axvline(cap, color=PALETTE[1], linewidth=1.4, linestyle=(0, (5, 3)), label=f"cap {cap:.2f} GiB")
        axes.set(xlabel=x_label, ylabel="validation accuracy (%)")
        axes.margins(x=0.14, y=0.12)
        figure.legend(loc="outside lower center", ncols=5)
        _label(figure, axes, points, front)

    best = sorted(points, key=lambda point: -point.y)[:10]
    told = "; ".join(f"{point.row.name}: {point.y:.1f} % at {point.x:.3g}" for point in best)
    return svg(draw, 3.9, name, title, f"{x_label}, validation accuracy: {told}")


def _label(figure: Any, axes: Any, points: list[_Point], front: list[tuple[float, float]]) -> None:
    """Name up to eight points, the front first: each where nothing is drawn, or at least no mark and no other name."""
    figure.draw_without_rendering()  # fixes the axes' place, on which pixels depend
    frame = axes.get_window_extent()
    pixels = {point: axes.transData.transform((point.x, point.y)) for point in points}
    pixel = figure.dpi / 72
    bars = [axes.transData.transform([(point.x, point.low), (point.x, point.high)]).ravel() for point in points]
    corners = [
        corner for (x0, y0), (x1, y1) in itertools.pairwise(front) for corner in ((x0, y0, x1, y0), (x1, y0, x1, y1))
    ]
    lines = [axes.transData.transform([corner[:2], corner[2:]]).ravel() for corner in corners]
    taken: list[_Box] = []
    ranked = sorted(points, key=lambda point: ((point.x, point.y) not in front, -point.y))[:8]
    for point in ranked:
        text = short(point.row.name, 30)
        width, height = 0.6 * 7.5 * len(text), 8.5
        # Keeping well off the other marks, so that no name seems to belong to a neighbour.
        marks = [_around(at, (5 if other == point else 11) * pixel) for other, at in pixels.items()]
        free: list[tuple[int, int, _Box, float, float]] = []
        sides = [(dx, dy) for dy in (-3, 5, -12, 14, -21) for dx in (9, -9 - width)]
        for order, (dx, dy) in enumerate([*sides, (-width / 2, 9), (-width / 2, -17)]):
            x, y = pixels[point][0] + dx * pixel, pixels[point][1] + dy * pixel
            box = (x, y, x + width * pixel, y + height * pixel)
            inside = box[0] >= frame.x0 and box[1] >= frame.y0 and box[2] <= frame.x1 and box[3] <= frame.y1
            if inside and not any(_overlap(box, other) for other in (*taken, *marks)):
                crossed = sum(_overlap(box, tuple(line)) for line in (*bars, *lines))
                free.append((crossed, order, box, dx, dy))
        if free:
            best = min(free)
            place = {"xytext": best[3:], "textcoords": "offset points", "fontsize": 7.5}
            axes.annotate(text, (point.x, point.y), annotation_clip=False, **place)
            taken.append(best[2])


def _around(at: Sequence[float], reach: float) -> _Box:
    return at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _point(row: CandidateRow, x: float) -> _Point:
    assert row.validation is not None
    low, high = row.validation.interval
    return _Point(x, 100 * row.validation.share, 100 * low, 100 * high, row)


def _share(row: CandidateRow) -> float:
    return row.validation.share if row.validation else -1.0
