"""The page of the benchmark search.py, from its result alone: docs/results/search.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import Target, origin, save, table, targets, text

Row = dict[str, Any]

TARGETS = (
    Target("cost_ratio", "halving's wall time over the exhaustive search's training, most", "{:.3f}", most=0.25),
    Target("accuracy_gap_points", "exhaustive's test accuracy less halving's, points, most", "{:.2f}", most=0.5),
    Target(
        "regret_points_with_prior", "exhaustive's less that of halving with the prior, points, most", "{:.2f}", most=0.5
    ),
    Target("imagenette_accuracy_gap_points", "the same on imagenette", "{:.2f}", most=0.5),
    Target("mini_imagenet_accuracy_gap_points", "the same on mini-imagenet", "{:.2f}", most=0.5),
    Target("two_gpu_speedup", "GPU seconds by the second, on two GPUs over on one, least", "{:.2f}", least=1.9),
    Target("overspend_events", "limits that were not kept", "{:.0f}", most=0),
)

METHOD = (
    "Sixteen candidates: eight backbones of different families at two sizes, in bfloat16, recipe fast, 6 GiB by the "
    "driver's count. Exhaustive: each has T seconds of training and evaluation, profiles on top. Halving: a quarter "
    "of 16 T for everything, from the start of its process to its report, with no profile known before. Prior: the "
    "same, but the size is chosen, and trials are read together with what the prior expects; it was made without the "
    "data set. Its rows are of a later commit and another GPU than most others, so not all of the difference is the "
    "prior's. Two: halving on two GPUs with the GPU seconds that it took on one. Images are packed and their folder "
    "is known before, as after any run with them. Every choice was made on validation images, the test split is read "
    "once a run. A search on one GPU may have had another one beside it, on the host's other GPU; the "
    "[log](../log.md) says when."
)

RUNS = "Validation and test are of the ensemble that was handed over, per cent."

TRIED = (
    "Validation accuracy at the training size, per cent: what a candidate had in the end, and what became of it. Those "
    "that a comparison of layouts left out are not listed."
)


def write(value: dict[str, Any], docs: Path) -> None:
    """Write the page below ``docs``."""
    parts = [
        ["# Halving against training them all", "", *origin(value, "search")],
        targets(TARGETS, value["summary"]),
        ["## How it was measured", "", *text(METHOD)],
        _runs(value["rows"]),
        *(_tried(data, value["rows"]) for data in dict.fromkeys(row["data"] for row in value["rows"])),
    ]
    save(docs / "results" / "search.md", "\n".join(line for part in parts for line in part))


def _runs(rows: Sequence[Row]) -> list[str]:
    head = ["Data", "Search", "Seed", "Winner", "GPUs", "Limit, s", "Wall, s", "GPU, s", "Val", "Test"]
    lines = [
        [
            row["data"],
            row["part"],
            f"{row['seed']}",
            row["winner"],
            f"{row['gpus']}",
            *(f"{row[name]:.1f}" for name in ("limit_s", "wall_s", "gpu_s")),
            *(_share(row[name]) for name in ("val", "test")),
        ]
        for row in sorted(rows, key=lambda row: (row["data"], row["part"], row["seed"]))
    ]
    return ["## Runs", "", *text(RUNS), *table(head, lines, left=4)]


def _tried(data: str, rows: Sequence[Row]) -> list[str]:
    """Each candidate by what it reached where all had the same time, with its end in the shorter searches."""
    whole = {
        (row["seed"], one["name"]): one
        for row in rows
        if (row["data"], row["part"]) == (data, "exhaustive")
        for one in row["tried"]
    }
    short = {
        (row["seed"], one["name"]): one
        for row in rows
        if (row["data"], row["part"]) == (data, "halving")
        for one in row["tried"]
    }
    if not whole or not short:
        return []
    reached = {key: whole[key]["validation"] or short.get(key, {}).get("validation") for key in whole}
    trained = [key for key in whole if reached[key] is not None]
    best = sorted(trained, key=lambda key: (key[0], -(whole[key]["validation"] or 0.0)))
    lines = [
        [
            f"{seed}",
            name,
            _share(whole[seed, name]["validation"]),
            _share(short.get((seed, name), {}).get("validation")),
            short.get((seed, name), {}).get("reason", "–"),
        ]
        for seed, name in best
    ]
    head = ["Seed", "Candidate", "Exhaustive", "Halving", "What became of it"]
    return [f"## Candidates on {data}", "", *text(TRIED), *table(head, lines, left=2)]


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"


if __name__ == "__main__":
    raise SystemExit("python benchmarks/search.py --page writes this page")
