"""The page of the benchmark inference.py, from its result alone: docs/results/inference.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pages import Target, origin, save, table, targets, text

TARGETS = (
    Target(
        "ensemble_gain_points_mean",
        "delivered views less the single one at the training size, points",
        "{:.2f}",
        least=1.0,
    ),
    Target(
        "vs_paper_views_points",
        "what is delivered less all views of the winner, where it takes no more time, points",
        "{:.2f}",
        least=0,
    ),
    Target("latency_error_pct_max", "milliseconds that the report says, against those measured, %", "{:.1f}", most=5),
    Target("nll_better_on", "runs whose log loss on test the temperature lowers", "{:.0f}"),
    Target("ece_after_max", "calibration error on test with the temperature, most", "{:.3f}", most=0.03),
    Target("novelty_auroc_min", "novelty: area under the ROC curve, own test images against others", "{:.3f}"),
    Target("novelty_flagged_pct_max", "the same: own test images that are called novel, %", "{:.1f}"),
    Target("export_families_ok", "families that ONNX answers alike", "{:.0f}", least=10),
    Target("onnx_max_abs_diff", "ONNX: largest difference of a probability", "{:.1e}", most=1e-4),
    Target("onnx_class_agreement", "ONNX: share of pictures with the same class", "{:.3f}", least=1.0),
    Target(
        "predict_vs_timm_loop", "predict with one view, images/s by those of a plain timm loop", "{:.2f}", least=1.5
    ),
    Target("serve_errors", "service, 60 s with 32 connections: errors", "{:.0f}", most=0),
    Target("serve_p99_ms_max", "the same: 99th percentile, ms", "{:.0f}"),
    Target("serve_memory_growth_pct_max", "the same: memory grows by, %", "{:.1f}", most=5),
    Target("hostile_longest_good_s", "among 1,000 hostile requests: the longest good one, s", "{:.2f}", most=1),
    Target("hostile_crashes", "the same: crashes and answers of 500", "{:.0f}", most=0),
)

METHOD = (
    "*run*: a finished run with its own val and test; views and temperature are chosen on val, figures are of test. "
    "*bench*: `fitwithin bench` with the batch of the report, against the sum of its views' milliseconds. *novelty*: "
    "up to 500 test images and 500 pictures of another data set, and the same by the surest probability. "
    "*export*: drawn weights, two views and a temperature, eight pictures. *predict*: `fitwithin predict` with all its "
    "views and with one, beside a plain timm loop with one over the same files (timm's own loader, as many workers as "
    "cores, float32), starts and ends of the processes included, "
    "three of each in turn. *serve*: 32 connections that ask for one picture after "
    "the other, from the same machine; then cut, random and huge bodies, bombs, wrong types, a hundred files and "
    "bodies that do not come. The GPU's rows of imagenette are of before `8d8627e`: their short passes were timed "
    "while a loader worked beside them. On two shared cores two "
    "benches of the same model differed by up to 22 % (tried by hand)."
)


def write(value: dict[str, Any], docs: Path) -> None:
    """Write the page below ``docs``."""
    parts = [
        ["# What a run hands over", "", *origin(value, "inference")],
        targets(TARGETS, value["summary"]),
        ["## How it was measured", "", *text(METHOD)],
    ]
    for kind in ("run", "bench", "novelty", "export", "predict", "serve"):
        rows = [row for row in value["rows"] if row["kind"] == kind]
        if rows:
            parts.append([f"## {kind}", "", *_table(rows)])
    save(docs / "results" / "inference.md", "\n".join(line for part in parts for line in part))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Every row, without what is the same everywhere."""
    heads = [name for name in rows[0] if name not in ("kind", "commit", "each")]
    return table(heads, [[_shown(row.get(name)) for name in heads] for row in rows])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return "–" if value is None else str(value)
