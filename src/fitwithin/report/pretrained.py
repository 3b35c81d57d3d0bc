"""What a report says of pretrained weights: those that were probed, the winner's, or that there are none."""

from __future__ import annotations

from fitwithin.events import LinearProbed, StartChosen, WeightsFound
from fitwithin.planning.stats import Accuracy
from fitwithin.report.schema import PretrainedRow, Report
from fitwithin.report.tables import Column, Columns, Table, accuracy_cell, table_by_column
from fitwithin.store import Store
from fitwithin.weights.find import Weights

#: Said where there are none.
ABSENT = (
    "The weights are drawn: no pretrained ones are on this machine. For some thousand photos they are likely worth "
    "several points (clothing10, five minutes of two CPU cores: 89.8 % instead of 82.3, docs/results/transfer.md); "
    "`fitwithin weights pull` fetches some."
)

LINEAR_HEAD = (
    "Accuracy on validation data of a linear head on frozen features, and of the nearest training image by these."
)


def rows(store: Store, n_val: int) -> tuple[PretrainedRow, ...]:
    """The weights that were probed, the best first, then those that failed."""
    found, chosen = store.latest(WeightsFound), store.latest(StartChosen)
    known = {each.name: each for each in found.weights} if found is not None else {}
    tuned = {one.init for one in chosen.tuned} if chosen is not None else set()
    last = {event.name: event for event in store.read(LinearProbed) if event.name in known}
    made = [_row(event, known[name], n_val, tuned=name in tuned) for name, event in last.items()]
    return tuple(sorted(made, key=lambda row: (-(row.linear.share if row.linear else -1.0), row.name)))


def _row(event: LinearProbed, weights: Weights, n_val: int, *, tuned: bool) -> PretrainedRow:
    probe = event.probe
    return PretrainedRow(
        name=weights.name,
        licence=weights.licence,
        sha256=weights.sha256,
        source=weights.source,
        trained_on=weights.trained_on,
        px=None if probe is None else probe.candidate.train_px,
        images=0 if probe is None else probe.images,
        linear=None if probe is None else Accuracy(correct=probe.correct, total=n_val),
        neighbours=None if probe is None else Accuracy(correct=probe.neighbours_correct, total=n_val),
        tuned=tuned,
        reason=event.reason,
    )


def why(store: Store) -> str:
    """Whether the run starts from pretrained weights, and why; nothing where it was not to be decided."""
    chosen, found = store.latest(StartChosen), store.latest(WeightsFound)
    if chosen is not None:
        return chosen.why
    return ABSENT if found is not None and not found.weights and not found.named else ""


def of(report_rows: tuple[PretrainedRow, ...], name: str | None) -> PretrainedRow | None:
    """The row of the weights that the candidate of that name starts from."""
    return next((row for row in report_rows if name is not None and name.startswith(f"{row.name}-")), None)


def table(report: Report) -> Table:
    """The weights that were probed."""
    found = report.pretrained
    columns: Columns = [
        (Column("Weights"), [row.name for row in found]),
        (Column("px", number=True), [str(row.px) if row.px else None for row in found]),
        (Column("Images", number=True, rank=2), [f"{row.images:,}" for row in found]),
        (Column("Linear head", number=True), [accuracy_cell(row.linear) for row in found]),
        (Column("Neighbours", number=True, rank=2), [accuracy_cell(row.neighbours) for row in found]),
        (Column("Tuned"), ["yes" if row.tuned else "no" for row in found]),
        (Column("Licence", rank=1), [row.licence for row in found]),
        (Column("Trained on", wrap=True, rank=2), [row.trained_on or None for row in found]),
        (Column("Source", wrap=True, rank=2), [row.source for row in found]),
    ]
    return table_by_column("Pretrained weights", columns)


def described(row: PretrainedRow) -> str:
    """The weights that a model starts from, in words."""
    trained_on = f", trained on {row.trained_on}" if row.trained_on else ""
    return f"starts from {row.name} ({row.licence}{trained_on}; {row.source}; sha256 {row.sha256[:16]})"
