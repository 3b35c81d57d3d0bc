"""Charts of a report as inline SVG: accuracy against time and memory, loss curves, predicted against actual time.

Every chart is a function from a Report to SVG text, or to None where the report has nothing for it to show. The SVG
is meant to stand inside an HTML page: text stays text, ids are unique across the charts, the background is clear and
axes take the page's own text colour, so that one chart serves a light page, a dark one and paper.
Why matplotlib: docs/decisions/0003-charts-with-matplotlib-svg.md. It is imported inside functions: 1.4 s.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fitwithin.report import CandidateRow, Report

#: Okabe and Ito's colours that keep 3:1 contrast, or nearly, on white and on near-black; told apart by dashes as well.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8A8A8A"
#: No chart draws in this colour: it is the stand-in for the page's text colour, put in place after drawing.
INK = "#010203"

_WIDTH_IN = 5.4
_MARKERS = ("o", "s", "^", "D")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fitwithin",
    "text.parse_math": False,  # a "$" in a name is a dollar
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same layout everywhere
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.columnspacing": 1.3,
    "legend.handletextpad": 0.5,
    "legend.handlelength": 1.7,
}

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
    scale, unit = _time_unit([row.actual_s or 0.0 for row in rows])
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
                label=_short(row.name, 28) + (" (winner)" if won else "") if named else "_other",
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
    return _svg(draw, 3.9 + 0.09 * len(coloured), "chart-loss", "Training loss against epochs", ends)


def predicted_against_actual(report: Report) -> str | None:
    """What each candidate's training was predicted to take (mark and interval) and what it took, with the error."""
    rows = [row for row in report.candidates if row.predicted_s and row.actual_s is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: (row.name != report.winner, -_share(row)))
    left_out, rows = len(rows[12:]), rows[:12]
    scale, unit = _time_unit([row.actual_s or 0.0 for row in rows])
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
            axes.text(0.0, y - 0.3, _short(row.name, 36), transform=across, fontsize=8, va="bottom")
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
    return _svg(draw, 1.25 + 0.42 * len(rows), "chart-prediction", title, f"actual over predicted time, {told}{more}")


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
    return _svg(draw, 3.9, name, title, f"{x_label}, validation accuracy: {told}")


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
        text = _short(point.row.name, 30)
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


def _svg(draw: Callable[[Any], None], height_in: float, name: str, title: str, description: str) -> str:
    """Draw on a fresh figure and return SVG to stand inside a page, with ``name`` before each of its ids."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    # The SVG writer reads its options from rcParams; the context puts them back, and no pyplot state is touched.
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name with signs that DejaVu lacks is drawn by the reader's own fonts: text stays text.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained", facecolor="none")
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(out.getvalue(), name, title, description)


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """Matplotlib's SVG document as an element of a page: no prolog, own ids, the page's fonts and colour, a title."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    # Its style sheet says "*", which would reach the whole page: say it on the root element instead.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'\bxlink:href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    body = re.sub(INK, "currentColor", body, flags=re.I)
    box = re.search(r'viewBox="([^"]+)"', body)
    root = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1] if box else ""}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" style="stroke-linejoin: round; stroke-linecap: butt">\n'
        f' <title id="{name}-title">{html.escape(title)}</title>\n'
        f' <desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: root, body, count=1).strip()


def _point(row: CandidateRow, x: float) -> _Point:
    assert row.validation is not None
    low, high = row.validation.interval
    return _Point(x, 100 * row.validation.share, 100 * low, 100 * high, row)


def _share(row: CandidateRow) -> float:
    return row.validation.share if row.validation else -1.0


def _short(name: str, limit: int = 26) -> str:
    """The name, its middle left out where it is longer than ``limit``: both ends of a timm name tell models apart."""
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2]}…{name[-(limit - limit // 2 - 1) :]}"


def _time_unit(seconds: Sequence[float]) -> tuple[float, str]:
    """The divisor and the name of the unit in which the longest of these reads best."""
    longest = max(seconds)
    return (3600.0, "hours") if longest >= 2 * 3600 else (60.0, "minutes") if longest >= 180 else (1.0, "seconds")
