"""The page of the benchmark inspect_data.py, from its result alone: docs/results/inspect.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pages import Target, origin, save, table, targets, text

_KINDS = {
    "exact": "copies",
    "jpeg_50": "near twins, JPEG at quality 50",
    "crop_90": "near twins, 90 % of both sides",
    "mirrored": "near twins, mirrored",
    "turned": "near twins, turned by a quarter",
    "leak_exact": "leaks, copies",
    "leak_crop_90": "leaks, crops of 90 % as JPEG at 75",
    "two_labels": "the same picture under two labels, JPEG at 75",
    "broken": "broken files",
}

TARGETS = (
    *(Target(f"{key}_found_pct", f"{words}: found, %", "{:.1f}", least=98) for key, words in _KINDS.items()),
    *(
        Target(f"{key}_false_alarm_pct", f"{words}: other alarms of that kind, % of all images", "{:.2f}", most=2)
        for key, words in _KINDS.items()
    ),
    Target("labels_5_recall_pct", "5 % wrong labels: found, %", "{:.1f}", least=80),
    Target("labels_5_precision_pct", "the same: of the suspects, planted, %", "{:.1f}", least=60),
    Target("labels_5_false_alarm_pct", "the same: of the right labels, suspected, %", "{:.2f}", most=2),
    Target("labels_2_recall_pct", "2 % wrong labels: found, %", "{:.1f}"),
    Target("labels_2_precision_pct", "the same: of the suspects, planted, %", "{:.1f}"),
    Target("labels_2_false_alarm_pct", "the same: of the right labels, suspected, %", "{:.2f}", most=2),
    Target("seconds_60000", "60,000 images without weights, two cores, s", "{:.0f}", most=180),
    Target("index_found_pct", "crops found among a million synthetic images, %", "{:.1f}", least=98),
    Target("index_peak_mib", "memory at a million synthetic images, MiB", "{:.0f}"),
    Target("index_growth_mib", "the same, more than at 100,000, MiB", "{:.0f}"),
)

METHOD = (
    "*twins*: 200 faults of each kind are planted into a copy of a data set, each made from a training image of its "
    "own; crops lie anywhere. A fault is found if it is named as what it is, beside the image that it was made from. "
    "Other alarms are all other suspects of that kind; the twins that a data set has of its own are among them. "
    "*labels*: a share of the labels is exchanged for another class, drawn at random, in every split; labels that were "
    "wrong before count as false. *speed*: the command as it stands, start and page included. "
    "*index*: smooth random pictures in files; the time and memory of the search "
    "and of the comparison."
)

LIMITS = (
    "Thresholds were chosen on mini-imagenet and clothing10, by crops of other images of these, and for labels by "
    "other draws of wrong ones and features of one set of weights. The folder `imn` "
    "(imagenette) was not looked at before. The 32 other alarms of mini-imagenet and the one of clothing10 were seen "
    "one by one: all are the same picture."
)


def write(value: dict[str, Any], docs: Path) -> None:
    """Write the page below ``docs``."""
    parts = [
        ["# What an inspection finds", "", *_origin(value)],
        targets(TARGETS, value["summary"]),
        ["## How it was measured", "", *text(METHOD), *text(LIMITS)],
    ]
    for kind in ("twins", "labels", "speed", "index"):
        rows = [row for row in value["rows"] if row["kind"] == kind]
        if rows:
            parts.append([f"## {kind}", "", *_table(rows)])
    save(docs / "results" / "inspect.md", "\n".join(line for part in parts for line in part))


def _origin(value: dict[str, Any]) -> list[str]:
    """The script is not called as its result is, for Python has a module of that name."""
    return [line.replace("results/inspect_data.json", "results/inspect.json") for line in origin(value, "inspect_data")]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Every row, without what is the same everywhere and what is long."""
    hidden = ("kind", "commit", "hardware", "missed", "others", "steps_s", "weights", "data", "share")
    heads = [name for name in rows[0] if name not in hidden]
    return table(heads, [[_shown(row.get(name)) for name in heads] for row in rows])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)
