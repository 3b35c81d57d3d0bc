"""The Pareto front of the candidates that were tried: accuracy against training time, inference time and memory.

A candidate is on the front if no other is at least as good in all of them and better in one. Training time is what it
was given, not what it took. Times and memory are compared to two digits. What is not known of every candidate (a run by
a frozen plan has no profiles) is left out for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fitwithin.report.schema import CandidateRow

#: Digits to which times and memory are compared: a timing of a second is good to no more.
DIGITS = 2

#: What is compared, in words, by the field of a candidate's row.
OBJECTIVES = {
    "validation": "accuracy",
    "allotted_s": "the training time given",
    "inference_ms": "inference time",
    "peak_bytes": "memory",
}

#: Values of which more is better, in the same order for all candidates.
Objectives = tuple[float, ...]


def known_objectives(rows: Sequence[CandidateRow]) -> list[str]:
    """The fields that are known of every candidate that was tried; accuracy always is."""
    tried = [row for row in rows if row.validation is not None]
    return [field for field in OBJECTIVES if all(getattr(row, field) is not None for row in tried)]


def dominates(one: Objectives, other: Objectives) -> bool:
    """Whether ``one`` is at least as good in everything and better in something."""
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


def dominated_by(objectives: Mapping[str, Objectives]) -> dict[str, str | None]:
    """For each name None where it is on the front, else the name on the front that dominates it: the best in the first
    objective."""
    # From the best on: whatever dominates a name stands before it, and is on the front or dominated by one that is.
    ordered = sorted(objectives, key=lambda name: objectives[name], reverse=True)
    front: list[str] = []
    found: dict[str, str | None] = {}
    for name in ordered:
        found[name] = next((other for other in front if dominates(objectives[other], objectives[name])), None)
        if found[name] is None:
            front.append(name)
    return {name: found[name] for name in objectives}


def with_pareto(rows: Sequence[CandidateRow]) -> tuple[CandidateRow, ...]:
    """The rows, and of those that were tried whether they are on the front, or which candidate dominates them."""
    fields = known_objectives(rows)
    found = dominated_by({row.name: _objectives(row, fields) for row in rows if row.validation is not None})
    return tuple(
        replace(row, front=found[row.name] is None, dominated_by=found[row.name]) if row.name in found else row
        for row in rows
    )


def _objectives(row: CandidateRow, fields: Sequence[str]) -> Objectives:
    assert row.validation is not None
    costs = [float(f"{getattr(row, field):.{DIGITS}g}") for field in fields if field != "validation"]
    return (row.validation.share, *(-cost for cost in costs))
