"""What a reader of a report wants to know first: what was made, what it costs, where the time went, and what next."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections import Counter
from typing import NamedTuple

from fitwithin.report import pretrained
from fitwithin.report.schema import CandidateRow, Report
from fitwithin.report.summary import delivered_method
from fitwithin.units import format_count, format_duration, format_size

#: Reasons that are named where candidates are summed up; the others are counted.
MOST_REASONS = 3

#: Of a reason so many characters are shown there.
REASON_WIDTH = 90


class Fact(NamedTuple):
    """A word and what there is to say about it."""

    label: str
    text: str


#: What a model sees of long pictures, where that is not their centre.
SHOWN = {"pad": " on whole pictures with borders", "squash": " on whole pictures, squashed"}


def answer(report: Report, folder: str) -> list[Fact]:
    """The facts on top of a run's report, whose files are in ``folder``; none without a winner."""
    if report.winner is None:
        return []
    used = delivered_method(report)
    row = report.row(used.candidate if used else report.winner)
    model = f"{row.model} ({row.precision}), trained at {row.train_px} px"
    model += SHOWN.get(report.request.get("recipe_values", {}).get("fit", ""), "")
    if row.parameters:
        model += f"; {format_count(row.parameters)} parameters, {format_size(4 * row.parameters)} as float32"
    if report.members:
        model += f"; its answers are averaged with those of {' and '.join(report.members)}"
    facts = [Fact("Model", model)]
    if report.receipt.weights is not None:
        facts.append(Fact("Weights", pretrained.described(report.receipt.weights)))
    elif report.pretrained_why:
        facts.append(Fact("Weights", report.pretrained_why))
    if chosen := [view for view in report.views if view.chosen]:
        views = "1 view" if len(chosen) == 1 else f"the average of {len(chosen)} views"
        device = report.receipt.device.get("name")
        cost = f"{sum(view.ms_per_image for view in chosen):.3g} ms an image for {views}"
        if used_at := report.usage:
            cost += f", {format_size(used_at.used_bytes)} with {used_at.batch} images a pass"
        facts.append(Fact("Cost", f"{cost} on {device}" if device else cost))
    facts += [Fact("Time", text) for text in filter(None, (_spent(report), _lost(report)))]
    quoted = shlex.quote(folder)
    facts.append(Fact("Files", f"{folder} (report.html, receipt.json; the model is in model/)"))
    facts.append(Fact("Next", f"fitwithin predict {quoted} IMAGES -o predictions.csv"))
    return facts


def shown(report: Report) -> list[CandidateRow]:
    """The candidates that a table lists: all but the rejected ones; all, where nothing else is left."""
    return [row for row in report.candidates if row.status != "rejected"] or list(report.candidates)


def left_out(report: Report) -> tuple[str, tuple[str, ...]]:
    """How many candidates are not in the table and why, in a sentence, and each of them with its reason."""
    there = {row.name for row in shown(report)}
    out = [row for row in report.candidates if row.name not in there]
    if not out:
        return "", ()
    brief = (re.split(r"; | \(", row.reason.removeprefix("left out: "))[0] for row in out)
    short = (textwrap.shorten(reason, REASON_WIDTH, placeholder=" …") for reason in brief)
    reasons = Counter(short).most_common()
    named = [f"{count:,}: {reason}" for reason, count in reasons[:MOST_REASONS]]
    if others := sum(count for _, count in reasons[MOST_REASONS:]):
        named.append(f"{others:,}: for other reasons")
    were = "was" if len(out) == 1 else "were"
    said = f"{len(out):,} of {len(report.candidates):,} candidates {were} left out ({'; '.join(named)})."
    return said, tuple(f"{row.name}: {row.reason}" for row in out)


def _spent(report: Report) -> str:
    """The seconds of each phase."""
    phases = report.receipt.phases
    total_s = sum(phase.spent_s for phase in phases)
    if not total_s:
        return ""
    each = ", ".join(f"{phase.phase} {format_duration(phase.spent_s)}" for phase in phases)
    return f"{format_duration(total_s)}: {each}"


def _lost(report: Report) -> str:
    """What was spent on candidates that nothing came of."""
    unused = [row for row in report.candidates if row.status == "rejected" and row.profile_s and not row.profile_cached]
    failed = [row for row in report.candidates if row.status == "failed" and row.actual_s]
    words = []
    if unused:
        took_s = sum(row.profile_s or 0.0 for row in unused)
        words.append(f"{len(unused)} profiled and not trained ({format_duration(took_s)})")
    if failed:
        took_s = sum(row.actual_s or 0.0 for row in failed)
        words.append(f"{len(failed)} that left no model ({format_duration(took_s)})")
    return f"of these on candidates that nothing came of: {', '.join(words)}" if words else ""
