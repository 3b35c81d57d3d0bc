"""The page of the benchmark faults.py, from its result alone: docs/results/faults.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import Target, origin, save, table, targets, text

Row = dict[str, Any]

TARGETS = (
    Target("runs", "runs in which something was killed", "{:.0f}", least=200),
    Target("unbalanced", "runs whose books did not balance in the end", "{:.0f}", most=0),
    Target("over_s_max", "seconds by which settled and reserved ever were above the budget, most", "{:.2f}", most=0),
    Target("overspend_events", "runs whose receipt says that a limit was not kept", "{:.0f}", most=0),
    Target("without_a_result", "runs without a report and a model that classifies", "{:.0f}", most=0),
    Target("untested", "runs with a model for whose test there was no time", "{:.0f}"),
    Target("resumed", "times that a killed run was resumed or begun again", "{:.0f}"),
    *(
        Target(f"kills_of_{victim}", f"kills of {words}", "{:.0f}")
        for victim, words in (("worker", "a worker"), ("driver", "the driver"), ("both", "both at once"))
    ),
)

METHOD = (
    "`fitwithin run` on scikit-learn's 1,797 digits, on one core of a CPU, with tiny backbones and an empty cache: a "
    "backbone alone, two in turn, three by `--search halving`, and those with `--gpus 2`. One to three times a run, at "
    "moments drawn from a seed, a SIGKILL befalls a worker (whatever is compared, probed, trained or evaluated then), "
    "the driver, or both. A run whose driver is gone is resumed, or begun again where it had no folder yet. In the end "
    "the books are added up anew after each of their events, and what was handed over must classify 50 images, where "
    "there was time to validate it more than twice as often right as guessing."
)

WAYS = "By what was searched. Kept: settled and reserved never went beyond the time."


def write(value: dict[str, Any], docs: Path, ways: Sequence[Sequence[str]]) -> None:
    """Write the page below ``docs``."""
    parts = [
        ["# Runs whose processes are killed", "", *origin(value, "faults")],
        targets(TARGETS, value["summary"]),
        ["## How it was measured", "", *text(METHOD)],
        ["## Runs", "", *text(WAYS), *_ways(value["rows"], ways)],
    ]
    save(docs / "results" / "faults.md", "\n".join(line for part in parts for line in part))


def _ways(rows: Sequence[Row], ways: Sequence[Sequence[str]]) -> list[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(" ".join(ways[row["number"] % len(ways)]), []).append(row)
    head = ["Asked for", "Runs", "Kills", "Resumed", "Kept", "With a result", "Tested", "Longest, s"]
    lines = [
        [
            f"`{way}`",
            f"{len(group)}",
            f"{sum(len(row['hits']) for row in group)}",
            f"{sum(row['starts'] - 1 for row in group)}",
            f"{sum(row['over_s'] == 0 for row in group)}",
            f"{sum(row['valid'] for row in group)}",
            f"{sum(row.get('test') is not None for row in group)}",
            f"{max(row['wall_s'] for row in group):.1f}",
        ]
        for way, group in groups.items()
    ]
    return table(head, lines)
