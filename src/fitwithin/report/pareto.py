"""The Pareto front of the candidates that were tried: accuracy against training time, inference and memory. Pure.

A candidate is on the front if no other is at least as good in all of them and better in one. Training time is what it
was given, not what it took: whoever stopped a moment earlier is not the better for it. What was measured is compared to
two digits. What is not known of every candidate (a run by a frozen plan has no profiles) is left out for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fitwithin.report.schema import CandidateRow

#: Times and memory are compared to so many digits: a timing of a second is good to no more.
DIGITS = 2

#: What is compared, in words, by the field of a candidate's row.
COMPARED = {
    "validation": "accuracy",
    "allotted_s": "the training time given",
    "inference_ms": "inference",
    "peak_bytes": "memory",
}

Merits = tuple[float, ...]


def compared(rows: Sequence[CandidateRow]) -> list[str]:
    """The fields that are known of every candidate that was tried; accuracy is one of them by definition."""
    tried = [row for row in rows if row.validation is not None]
    return [field for field in COMPARED if all(getattr(row, field) is not None for row in tried)]


def beats(one: Merits, other: Merits) -> bool:
    """Whether ``one`` is at least as good in everything and better in something; more is better."""
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


def beaten(merits: Mapping[str, Merits]) -> dict[str, str | None]:
    """For each name None where it is on the front, else a name on the front that beats it: the best in the first merit.

    Merits in which more is better, in the same order for all.
    """
    # From the best on: whoever beats a name stands before it, and is beaten by somebody who stands on the front.
    ordered = sorted(merits, key=lambda name: merits[name], reverse=True)
    front: list[str] = []
    found: dict[str, str | None] = {}
    for name in ordered:
        found[name] = next((other for other in front if beats(merits[other], merits[name])), None)
        if found[name] is None:
            front.append(name)
    return {name: found[name] for name in merits}


def marked(rows: Sequence[CandidateRow]) -> tuple[CandidateRow, ...]:
    """The rows, those that were tried marked: on the front or not, and then by whom they are beaten."""
    fields = compared(rows)
    merits = {row.name: _merits(row, fields) for row in rows if row.validation is not None}
    found = beaten(merits)
    return tuple(
        replace(row, front=found[row.name] is None, beaten_by=found[row.name]) if row.name in found else row
        for row in rows
    )


def _merits(row: CandidateRow, fields: Sequence[str]) -> Merits:
    assert row.validation is not None
    costs = {field: float(f"{getattr(row, field):.{DIGITS}g}") for field in fields if field != "validation"}
    return (row.validation.share, *(-cost for cost in costs.values()))
