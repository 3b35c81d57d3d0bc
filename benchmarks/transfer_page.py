"""The page of the benchmark transfer.py, from its result alone: docs/results/transfer.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pages import Target, origin, save, table, targets, text

TARGETS = (
    Target("gpu_90s_test_mean", "90 s on a GPU, test, mean, %", "{:.2f}", least=93.5),
    Target("gpu_90s_test_spread", "the same, largest less smallest, points", "{:.2f}", most=1.5),
    Target("gpu_90s_loop_test_best", "the best plain fine-tuning of the same wall time, test, %", "{:.2f}"),
    Target("gpu_90s_minus_plain_finetune_points", "the mean less that, points", "{:.2f}", least=0.5),
    Target("gpu_90s_random_test_mean", "from drawn weights, 90 s on a GPU, test, %", "{:.2f}"),
    Target("first_model_s_max", "seconds to the first model, most", "{:.1f}", most=20),
    Target("cpu_60s_test_mean", "60 s on two CPU cores, test, %", "{:.2f}", least=82),
    Target("cpu_300s_test_mean", "300 s on two CPU cores, test, %", "{:.2f}", least=88),
    Target("cpu_300s_random_test_mean", "from drawn weights, 300 s on two CPU cores, test, %", "{:.2f}"),
    Target(
        "few_points_below_linear_max",
        "few images a class: linear head less the delivered model, most",
        "{:.2f}",
        most=0.5,
    ),
    Target("few_points_above_linear_mean", "the same the other way round, mean", "{:.2f}"),
    Target("overrun_s_max", "seconds beyond the budget, most", "{:.2f}", most=0),
    Target("cap_violations", "runs above the memory cap", "{:.0f}", most=0),
)

METHOD = (
    "Each run is the whole command with an empty cache and the weights of efficientnet-lite0, 1 and 2 at hand "
    "(Apache-2.0). They have seen ImageNet; nothing of clothing10 is in it. *plain*: no backbone, size or recipe is "
    "named. *loop*: `benchmarks/plain_loop.py` from the named weights at the named rate, of the same wall time. "
    "*few*: so many training images of each class; Linear is what the linear head of the winner's weights reaches "
    "alone on the test images. On two cores nothing was fine-tuned in that time; the delivered model may have up to "
    "two other linear heads as members. *loop* has timm's default augmentation, and each took some seconds more than "
    "its limit. *random*: `--init random`; its prior knows clothing10. The data set has 372 test images: one is 0.27 "
    "points. Rows on a GPU were made two at a time, each on a GPU and 16 cores of its own in one host; those of "
    "before `d4fd1ad27f37` have no other members. The five plain runs of 90 s come from two hosts of the same kind: "
    "seed 3 was the first run on the second one, where torch had been loaded once before; it started in 18.6 s and had "
    "its first model after 25.9 s. The other four had theirs after 7 to 11 s."
)


def write(value: dict[str, Any], docs: Path) -> None:
    """Write the page below ``docs``."""
    parts = [
        ["# Starts from pretrained weights", "", *origin(value, "transfer")],
        targets(TARGETS, value["summary"]),
        ["## How it was measured", "", *text(METHOD)],
        ["## Runs", "", *_runs(value["rows"])],
    ]
    save(docs / "results" / "transfer.md", "\n".join(line for part in parts for line in part))


def _runs(rows: list[dict[str, Any]]) -> list[str]:
    """Every row."""
    order = sorted(rows, key=lambda row: (row["where"], row["limit_s"], row["kind"], row["what"], row["seed"]))
    heads = ["Data", "Limit", "On", "Run", "Took", "Seed", "Test", "Val", "Linear", "First model s", "Wall s"]
    lines = []
    for row in order:
        took = f"{row['model']}@{row['px']}" if row.get("model") else "–"
        figures = [row.get(name) for name in ("test", "val", "linear_test", "first_model_s", "wall_s")]
        shown = ["–" if each is None else f"{each:.2f}" for each in figures[:3]]
        shown += ["–" if each is None else f"{each:.1f}" for each in figures[3:]]
        what = f"{row['kind']} {row['what']}".strip()
        lines.append([row["data"], f"{row['limit_s']:g} s", row["where"], what, took, str(row["seed"]), *shown])
    return table(heads, lines, left=5)
