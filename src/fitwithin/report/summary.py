"""What a run comes to, in sentences and large figures: what was reached, within which limits, how far to trust it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fitwithin.planning.search import FINAL
from fitwithin.planning.stats import Accuracy, format_confidence
from fitwithin.report.schema import Limit, MethodRow, Report
from fitwithin.report.search_report import rung_name
from fitwithin.units import format_duration, format_size, listed

#: How far candidates come, the furthest first.
STATUSES = ("trained", "planned", "failed", "rejected")


class Tile(NamedTuple):
    """A large figure: what, how much, of how much; ``percent`` draws a bar."""

    label: str
    value: str
    detail: str
    percent: float | None = None
    kept: bool = True


def headline(report: Report) -> str:
    """The run in a sentence or two: what was reached, within which limits, and what was spent; or what a plan found."""
    limits, allowed = report.receipt.limits, _allowed(report)
    if report.winner is None:
        within = f" within {allowed}" if allowed else ""
        counts = {status: sum(row.status == status for row in report.candidates) for status in STATUSES}
        if is_plan(report):
            fit = f"{counts['planned']} of {len(report.candidates)} candidates fit{within}"
            return f"{fit}; nothing has been trained yet."
        ended = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none tried"
        none = f"No model: none of {len(report.candidates)} candidates left one{within} ({ended})"
        return f"{none}; `fitwithin plan` shows what would fit."
    used = delivered_method(report)
    row = report.row(used.candidate if used else report.winner)
    sizes = f"trained at {used.train_px} px, tested at {used.test_px}" if used else f"trained at {row.train_px} px"
    accuracy, split = (used.test, "test") if used and used.test else (used and used.validation, "validation")
    accuracy = accuracy or row.validation
    who, reached = f"{row.model} ({row.precision}, {sizes})", "was trained"
    if accuracy:
        percent, interval = format_accuracy(accuracy)
        reached = f"reaches {percent} (95 % interval {interval}) on {accuracy.total:,} {split} images"
    spent = ", ".join(_spent(limit) for limit in sorted(limits, key=lambda limit: limit.unit != "s"))
    broken = ", ".join(limit.name for limit in limits if not limit.kept)
    within = f", {'against limits of' if broken else 'within'} {allowed}" if allowed else ""
    return f"{who} {reached}{within}{': ' + spent if spent else ''}.{f' NOT KEPT: {broken}.' if broken else ''}"


def trust_note(report: Report) -> str:
    """How far to trust the winner's figures; empty without a winner."""
    if report.winner is None:
        return ""
    tried = sum(row.validation is not None for row in report.candidates)
    tested = any(method.test for method in report.methods)
    test = "the test images were used once, after every choice" if tested else "there is no labelled test split"
    chosen = f"Validation accuracy is optimistic, because the best of {tried} candidates was chosen by it; {test}."
    found = [chosen if tried > 1 else f"{capitalize(test)}."]
    counts, copies = report.data.get("counts", {}), report.data.get("copies", {})
    for split, count in copies.items():
        what = "is a copy of a training image" if count == 1 else "are copies of training images"
        found.append(
            f"{count:,} of {counts.get(split, 0):,} {split} images {what}, so the {split} accuracy is too good."
        )
    missing = [row.name for row in report.classes if tested and row.test is None]
    if missing:
        found.append(f"There is no test image of {listed(missing)}: the test accuracy says nothing of that.")
    return " ".join(found)


def search_sentence(report: Report) -> str:
    """The search in a few words: how many were tried, which came second, how sure the choice is; empty without one."""
    search = report.search
    if search is None or not search.trials or report.winner is None:
        return ""
    tried, rungs = len({trial.candidate for trial in search.trials}), len({t.rung for t in search.trials} - {FINAL})
    on = "1 rung" if rungs == 1 else f"{rungs} rungs"
    summary = f"The search tried {tried} candidates in {len(search.trials)} trials on {on}."
    second = search.runner_up
    if second is None:
        return f"{summary} No other candidate left a model to compare with."
    where, images = rung_name(second.rung), f"{second.accuracy.total:,} validation images"
    if second.confidence is None:
        return (
            f"{summary} Second is {second.candidate}, with {second.accuracy.percent} on {where} like the winner: "
            f"{images} cannot tell them apart."
        )
    return (
        f"{summary} Second is {second.candidate}, with {second.accuracy.percent} on {where}, where the winner had "
        f"{second.winner_accuracy.percent}. That the winner is really better is {format_confidence(second.confidence)} "
        f"sure by {images}."
    )


def tiles(report: Report) -> Iterator[Tile]:
    """The page's large figures: accuracy, then every limit with the share of it that was used."""
    used = delivered_method(report)
    accuracy = (used.test or used.validation) if used else None
    if accuracy and used:
        reached, interval = format_accuracy(accuracy)
        of = f"95 % interval {interval}, {accuracy.total:,} images"
        yield Tile("Test accuracy" if used.test else "Validation accuracy", reached, of)
    elif is_plan(report):
        fit = sum(row.status == "planned" for row in report.candidates)
        yield Tile("Candidates that fit", f"{fit}", f"of {len(report.candidates)}")
    for limit in report.receipt.limits:
        of = f"of {format_amount(limit.limit, limit.unit)}: {'kept' if limit.kept else 'NOT KEPT'}"
        percent = min(limit.used_pct, 100.0)
        yield Tile(capitalize(limit.name), format_amount(limit.spent, limit.unit), of, percent, limit.kept)


def is_plan(report: Report) -> bool:
    """Whether this is a plan: no winner, and nothing trained or failed on the way."""
    return report.winner is None and all(row.status in ("planned", "rejected") for row in report.candidates)


def delivered_method(report: Report) -> MethodRow | None:
    """The row that is marked as the result of the run; None without one."""
    return next((method for method in report.methods if method.delivered), None)


def format_amount(value: float, unit: str) -> str:
    """A figure in its unit: ``6.00 GiB`` for bytes, ``3h 00m`` for s, ``5 ms/image`` for any other."""
    if unit == "bytes":
        return format_size(value)
    return format_duration(value) if unit == "s" else f"{value:.3g} {unit}"


def format_accuracy(accuracy: Accuracy) -> tuple[str, str]:
    """An accuracy in percent, and its 95 % interval: ``91.2 %`` and ``90.3–92.1``."""
    low, high = accuracy.interval
    return accuracy.percent, f"{100 * low:.1f}–{100 * high:.1f}"


def capitalize(text: str) -> str:
    """The text with a capital at its beginning, the rest as it was."""
    return text[:1].upper() + text[1:]


def _allowed(report: Report) -> str:
    """The limits in words, ``6.00 GiB and 3h 00m``: those of the receipt, or of the request before there are any."""
    words = [format_amount(limit.limit, limit.unit) + _of_what(limit) for limit in report.receipt.limits]
    asked = [(report.request.get(key), unit) for key, unit in (("memory_bytes", "bytes"), ("time_s", "s"))]
    words = words or [format_amount(value, unit) for value, unit in asked if value]
    return " and ".join(", ".join(words).rsplit(", ", 1))


def _spent(limit: Limit) -> str:
    """What was spent of a limit: ``spent 2h 57m``, ``peak 5.91 GiB``."""
    word = {"bytes": "peak ", "s": "spent "}.get(limit.unit, "")
    return f"{word}{format_amount(limit.spent, limit.unit)}{_of_what(limit)}"


def _of_what(limit: Limit) -> str:
    return {"device time": " of GPU time", "inference memory": " at work"}.get(limit.name, "")
