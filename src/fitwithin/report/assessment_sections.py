"""The sections on how good the answers are: class by class, how far to trust a probability, and what is mixed up."""

from __future__ import annotations

from fitwithin.inference.quality import Assessment, Value
from fitwithin.planning.stats import Accuracy
from fitwithin.report.schema import ClassRow, Report
from fitwithin.report.tables import Cell, Column, Columns, Section, accuracy_cell, table_by_column

#: The report shows so many classes; report.json has all.
MOST_CLASSES = 30

#: Classes are imbalanced if one has this many times the training images of another.
IMBALANCED = 1.5

SCORES = (
    "Log loss: the mean negative logarithm of the right class's probability. Brier: the squared error of all "
    "probabilities. ECE: the expected calibration error, by how much probabilities and shares of right answers differ. "
    "Of all three less is better."
)

SUREST = "If it answers only where it is surest, so many of its answers are right."

SPLITS = {"val": "Validation", "test": "Test"}


def sections(report: Report) -> list[Section]:
    """Those that have something to say."""
    return [_by_class(report), _trust(report), _mixed_up(report)]


def _last(report: Report) -> Assessment | None:
    """The assessment on test images, or else on validation images."""
    return report.assessments[-1] if report.assessments else None


def _by_class(report: Report) -> Section:
    """The classes that are recognised worst first; of many only so many."""

    def images(accuracy: Accuracy | None) -> str | None:
        return f"{accuracy.total:,}" if accuracy else None

    last = _last(report)
    precision = {score.name: score.precision for score in last.classes} if last else {}
    rows = sorted(report.classes, key=_recognised)
    weakest = rows[:MOST_CLASSES]
    columns: Columns = [
        (Column("Class", wrap=True), [row.name for row in weakest]),
        (Column("Train images", number=True, rank=1), [f"{row.train:,}" for row in weakest]),
        (Column("Val", number=True), [accuracy_cell(row.validation) for row in weakest]),
        (Column("Val images", number=True, rank=2), [images(row.validation) for row in weakest]),
        (Column("Test", number=True), [accuracy_cell(row.test) for row in weakest]),
        (Column("Test images", number=True, rank=2), [images(row.test) for row in weakest]),
        (Column("Precision", number=True, rank=1), [accuracy_cell(precision.get(row.name)) for row in weakest]),
    ]
    said = "What is delivered, class by class, the weakest first: the share of its images that is recognised"
    said += ", and of the answers that name it the share that is right (precision)." if last else "."
    if len(rows) > len(weakest):
        said += f" {len(rows) - len(weakest):,} more are in report.json."
    paragraphs = (said, _macro(report, last)) if last else (said,)
    return Section("classes", "Accuracy by class", paragraphs, (table_by_column("Accuracy by class", columns),))


def _recognised(row: ClassRow) -> tuple[float, str]:
    accuracy = row.test or row.validation
    return accuracy.share if accuracy else -1.0, row.name


def _macro(report: Report, last: Assessment) -> str:
    """The means over the classes, where they say something else than the accuracy."""
    counts = [row.train for row in report.classes]
    if not counts or max(counts) < IMBALANCED * min(counts):
        return ""
    return (
        f"The classes are not equally large ({min(counts):,} to {max(counts):,} training images). If each counts the "
        f"same, {SPLITS[last.split].lower()} recall is {100 * last.macro_recall:.1f} %, precision "
        f"{100 * last.macro_precision:.1f} % and F1 {100 * last.macro_f1:.1f} %; accuracy is {last.top1.percent}."
    )


def _trust(report: Report) -> Section:
    rows = [
        (f"{SPLITS[each.split]}{when}", found)
        for each in report.assessments
        for when, found in (
            ((", as it came", each.raw), (", calibrated", each.calibrated))
            if each.temperature != 1.0
            else (("", each.raw),)
        )
    ]
    columns: Columns = [
        (Column("Probabilities", wrap=True), [name for name, _ in rows]),
        (Column("Images", number=True, rank=1), [f"{found.images:,}" for _, found in rows]),
        *(
            (Column(title, number=True), [_value_cell(getattr(found, field)) for _, found in rows])
            for title, field in (("Log loss", "nll"), ("Brier", "brier"), ("ECE", "ece"))
        ),
    ]
    last = _last(report)
    surest = last.surest if last else ()
    shares: Columns = [
        (Column("Surest"), [f"{100 * each.share:.0f} %" for each in surest]),
        (Column("Images", number=True, rank=1), [f"{each.right.total:,}" for each in surest]),
        (Column("Probability at least", number=True), [f"{each.probability:.3f}" for each in surest]),
        (Column("Right", number=True), [accuracy_cell(each.right) for each in surest]),
    ]
    of = f" ({SPLITS[last.split].lower()} images)" if last else ""
    tables = (
        table_by_column("How good the probabilities are", columns),
        table_by_column(f"Answers to the surest{of}", shares),
    )
    said = (report.balance_why, report.temperature_why, SCORES, SUREST) if rows else ()
    return Section("trust", "How far to trust a probability", said, tables)


def _value_cell(value: Value) -> Cell:
    return Cell(f"{value.value:.3f}", aside=f"{value.low:.3f}–{value.high:.3f}")


def _mixed_up(report: Report) -> Section:
    last = _last(report)
    if last is None:
        return Section("mistakes", "What it mixes up")
    pairs = last.confusions
    columns: Columns = [
        (Column("Images of", wrap=True), [pair.truth for pair in pairs]),
        (Column("taken for", wrap=True), [pair.answer for pair in pairs]),
        (Column("Count", number=True), [f"{pair.count:,}" for pair in pairs]),
    ]
    lines = tuple(
        f"{each.path}: is {each.truth!r}, taken for {each.answer!r} with probability {each.probability:.3f}"
        for each in last.mistakes
    )
    return Section(
        "mistakes",
        "What it mixes up",
        (f"The pairs of classes that are mixed up the most, on {SPLITS[last.split].lower()} images.",),
        (table_by_column("What it mixes up", columns),),
        ((f"The {len(lines)} mistakes that it is surest of", lines),),
    )
