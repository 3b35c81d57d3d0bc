"""The page of the benchmark training.py, from its result alone: docs/results/training.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pages import Target, gpu, origin, save, table, targets, text

Row = dict[str, Any]

TARGETS = (
    Target("loader_bound_ratio_min", "images/s with real data over the device's own, least", "{:.3f}", least=0.95),
    Target("speed_vs_timm_loop_min", "images/s over a plain timm loop's, least", "{:.2f}", least=1.3),
    Target("overrun_s_max", "seconds beyond the budget, most", "{:.3f}", most=0),
    Target("budget_used_pct_min", "share of the budget that was used, %, least", "{:.2f}", least=97),
    Target("budget_used_pct_min_long", "of runs of 10 minutes and more", "{:.2f}", least=99),
    Target("fast_budget_used_pct_min", "the same of recipe fast", "{:.2f}"),
    Target("paper_budget_used_pct_min", "of recipe paper", "{:.2f}"),
    Target("overrun_s_max_stalls", "seconds beyond the budget with a stall injected, most", "{:.3f}", most=0),
    Target("stalls", "stalls injected", "{:.0f}", least=20),
    Target("imagenette_90s_fast_single_test_mean", "imagenette, 90 s, fast, one view, %", "{:.2f}", least=94.0),
    Target("imagenette_90s_paper_single_test_mean", "the same with recipe paper", "{:.2f}"),
    Target("imagenette_90s_fast_ensemble_test_mean", "imagenette, 90 s, fast, ensemble, %", "{:.2f}", least=94.5),
    Target("imagenette_90s_paper_ensemble_test_mean", "the same with recipe paper", "{:.2f}"),
    Target("imagenette_600s_fast_ensemble_test_mean", "imagenette, 600 s, fast, ensemble, %", "{:.2f}", least=96.0),
    Target("imagenette_600s_paper_ensemble_test_mean", "the same with recipe paper", "{:.2f}"),
    Target("mini_imagenet_90s_fast_ensemble_test_mean", "mini-imagenet, 90 s, fast, ensemble, %", "{:.2f}"),
    Target("mini_imagenet_90s_paper_ensemble_test_mean", "the same with recipe paper", "{:.2f}"),
    Target("mini_imagenet_300s_fast_ensemble_test_mean", "mini-imagenet, 300 s, fast, ensemble, %", "{:.2f}"),
    Target("mini_imagenet_300s_paper_ensemble_test_mean", "the same with recipe paper", "{:.2f}"),
)

METHOD = (
    "Accuracy: `fitwithin run` as a user has it, one backbone, 6 GiB by the driver's count, from the start of its "
    "process to the saved, evaluated model; the store of decoded images and the profile are there already. Every "
    "choice was made on validation images, the test split is read once a run. One view: the size that was best on "
    "validation. Overrun: by the receipt or by a clock outside the process, whichever is later. Speed: one after the "
    "other on the same machine, with so many loader processes; the timm loop reads the JPEG files with timm's own "
    "loader. Stalls were injected on a CPU ([log](../log.md))."
)

SPREAD = "Per cent; with several seeds, mean and standard deviation. Used: by the clock outside the process."


def write(value: dict[str, Any], docs: Path) -> None:
    """Write the page below ``docs``."""
    rows = value["rows"]
    parts = [
        ["# The training engine", "", *origin(value, "training")],
        targets(TARGETS, value["summary"]),
        ["## How it was measured", "", *text(METHOD)],
        _speed([row for row in rows if row["part"] == "speed"]),
        _accuracy([row for row in rows if row["part"] == "accuracy"]),
    ]
    save(docs / "results" / "training.md", "\n".join(line for part in parts for line in part))


def _speed(rows: Sequence[Row]) -> list[str]:
    head = ["Backbone", "Variant", "px", "Batch", "Loaders", "images/s", "device alone", "loaders alone", "timm loop"]
    lines = [
        [
            row["model"],
            f"{row['precision']} {row['layout']}",
            *(f"{row[name]}" for name in ("px", "batch", "workers")),
            *(f"{row[f'{name}images_per_s']:,.0f}" for name in ("", "device_", "loader_", "timm_")),
        ]
        for row in rows
    ]
    return ["## Speed", "", *table(head, lines, left=2)] if rows else []


def _accuracy(rows: Sequence[Row]) -> list[str]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("data", "time", "recipe", "model", "precision")), []).append(row)
    head = [
        "Data",
        "Time",
        "Recipe",
        "Backbone",
        "GPU",
        "px (test)",
        "Runs",
        "Batch",
        "Epochs",
        "Val",
        "One view",
        "Ensemble",
        "Used, s",
    ]
    lines = [
        [
            *key[:3],
            f"{key[3]} {key[4]}",
            gpu(group),
            f"{group[0]['sizes'][0]} ({group[0]['sizes'][1]})",
            _runs(group),
            f"{group[0]['batch']}",
            f"{mean(row['epochs'] for row in group):.0f}",
            _spread([row["val"] for row in group]),
            _spread([_single(row) for row in group]),
            _spread([row["ensemble_test"] for row in group]),
            f"{mean(row['wall_s'] for row in group):.2f}",
        ]
        for key, group in groups.items()
    ]
    return ["## Accuracy", "", *text(SPREAD), *table(head, lines, left=6)] if rows else []


def _runs(group: Sequence[Row]) -> str:
    """How many runs there are, and how many came through test in time if not all did."""
    tested = sum(row["ensemble_test"] is not None for row in group)
    return f"{len(group)}" if tested == len(group) else f"{len(group)} ({tested} tested)"


def _single(row: Row) -> float | None:
    """The test figure of the view that was best on validation."""
    found: float | None = max(row["single"].values(), key=lambda pair: pair[0])[1]
    return found


def _spread(found: Sequence[float | None]) -> str:
    there = [number for number in found if number is not None]
    if not there:
        return "–"
    return f"{mean(there):.2f}" + (f" ± {stdev(there):.2f}" if len(there) > 1 else "")


if __name__ == "__main__":
    raise SystemExit("python benchmarks/training.py --page writes this page")
