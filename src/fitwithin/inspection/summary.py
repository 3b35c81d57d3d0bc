"""An inspection in lines for a terminal of 80 columns."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from fitwithin.data.inspection.facts import FEW_OF_CLASS, Facts, Spread
from fitwithin.data.inspection.suspects import KINDS
from fitwithin.data.inspection.twins import LEAST_PX
from fitwithin.inspection.findings import LIST, PAGE, Inspection, Labels
from fitwithin.report.tables import clean
from fitwithin.units import format_size, listed

WIDTH = 80

#: Suspects of each kind that are named.
MOST_NAMED = 3


def lines(found: Inspection, data: Path, folder: Path) -> Iterator[str]:
    """What was found in ``data``, and where the rest of it is: in the ``folder``."""
    counts = ", ".join(f"{count:,} {split}" for split, count in found.facts.counts.items() if count)
    yield from _wrapped(f"{data}: {sum(found.facts.counts.values()):,} images, {counts}")
    yield ""
    for name, said in fact_lines(found.facts):
        yield from _wrapped(said, f"  {name:<9} ")
    yield ""
    for what, title in KINDS.items():
        if suspects := found.of(what):
            yield from _wrapped(f"{len(suspects):>7,}  {title}", "  ")
            for each in suspects[:MOST_NAMED]:
                yield from _wrapped(f"{each.path}: {each.why}{f' ({each.other})' if each.other else ''}", " " * 11)
    if not found.suspects:
        yield "  nothing suspicious was found"
    yield ""
    for said in sentences(found):
        yield from _wrapped(said)
    yield from _wrapped(f"The page: {folder / PAGE}")
    if found.suspects:
        file = folder / LIST
        yield from _wrapped(f"The list: {file}. Say yes or no in its first column, and give it back:")
        yield f"  fitwithin run {shlex.quote(str(data))} --exclude {shlex.quote(str(file))}"


def fact_lines(facts: Facts) -> Iterator[tuple[str, str]]:
    """The numbers, each with its name."""
    yield "files", f"{_counted(facts.formats)}; {_counted(facts.modes)}; {format_size(facts.total_bytes)}"
    if facts.width.most:
        yield "pixels", f"{_spread(facts.width, '{:.0f}')} wide, {_spread(facts.height, '{:.0f}')} high"
        yield "shape", f"longer by shorter side: {_spread(facts.ratio, '{:.2f}')}"
    few = [each.name for each in facts.small]
    uneven = f"the largest of {len(facts.classes):,} is {facts.imbalance:.1f} times the smallest in train"
    yield "classes", uneven + (f"; fewer than {FEW_OF_CLASS} images to train {listed(few)}" if few else "")


def sentences(found: Inspection) -> Iterator[str]:
    """What there is to say beside numbers and suspects."""
    yield found.labels_why
    if found.labels is not None:
        yield from _of_labels(found.labels)
    if found.too_small:
        yield (
            f"{found.too_small:,} images with a side below {LEAST_PX} px were compared for copies, and not for near "
            f"twins."
        )
    yield from (f"{note[:1].upper()}{note[1:]}." for note in found.notes)


def _of_labels(labels: Labels) -> Iterator[str]:
    yield (
        f"A model that did not see them is right for {100 * labels.right / labels.images:.1f} % of {labels.images:,} "
        f"images. Some {labels.expected_errors:,} labels are wrong by confident learning."
    )
    for each in labels.parts:
        clean_part = f", and for {_share(each.clean_right, each.clean)} of the others" if each.clean else ""
        yield (
            f"A head that was fitted to train is right for {_share(each.leaked_right, each.leaked)} of the "
            f"{each.split} images with a twin in train{clean_part}."
        )
    if labels.mixed:
        pairs = [f"{each.one} and {each.other} ({_share(each.mixed, each.images)})" for each in labels.mixed[:3]]
        yield f"Mixed up most often: {', '.join(pairs)}."


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} % ({part:,} of {whole:,})"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none that can be read"


def _spread(spread: Spread, form: str) -> str:
    if spread.least == spread.most:
        return form.format(spread.least)
    return f"{form.format(spread.least)} to {form.format(spread.most)} (half below {form.format(spread.median)})"


def _wrapped(text: str, indent: str = "") -> list[str]:
    """The text in lines of WIDTH; what follows the first one stands as far in."""
    return textwrap.wrap(
        clean(text) if not text.startswith(" ") else text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_on_hyphens=False,
    )
