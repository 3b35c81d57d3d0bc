"""An inspection as one HTML file with thumbnails, as JSON, and as the list to edit.

Jinja2 is imported inside functions: ``fitwithin --help`` does not need it.
"""

from __future__ import annotations

import functools
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fitwithin.data.dataset import Dataset
from fitwithin.data.decode import UNREADABLE, read_rgb
from fitwithin.data.inspection.facts import FEW_OF_CLASS
from fitwithin.data.inspection.suspects import ABOUT, KINDS, Suspect, to_csv
from fitwithin.files import to_json, write_text_atomic
from fitwithin.inspection.findings import JSON, LIST, PAGE, Inspection
from fitwithin.inspection.summary import fact_lines, sentences
from fitwithin.machine import cores
from fitwithin.report.tables import clean

if TYPE_CHECKING:
    import jinja2

#: Suspects of each kind that the page shows; the list has all.
MOST_SHOWN = 48

#: The longer side of a thumbnail in pixels, and its JPEG quality.
THUMBNAIL_PX, QUALITY = 160, 72


class Side(NamedTuple):
    """An image on the page."""

    path: str
    label: str
    split: str
    picture: str


class Item(NamedTuple):
    """A suspect on the page, beside the image that it is like."""

    sides: tuple[Side, ...]
    why: str
    proposal: str


class Part(NamedTuple):
    """The suspects of a kind; ``shown`` is how many there are on the page, or 0 if all are. ``alone``: none of them is
    like another image."""

    anchor: str
    title: str
    about: str
    number: str
    shown: int
    items: tuple[Item, ...]

    @property
    def alone(self) -> bool:
        """See above."""
        return all(len(item.sides) == 1 for item in self.items)


def write(found: Inspection, dataset: Dataset, folder: Path) -> None:
    """Write the page, the JSON and the list into ``folder``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / JSON, to_json(found, indent=1))
    # The mark at its beginning tells spreadsheets that it is UTF-8.
    write_text_atomic(folder / LIST, "\ufeff" + to_csv(found.suspects))
    write_text_atomic(folder / PAGE, html(found, dataset))


def html(found: Inspection, dataset: Dataset) -> str:
    """The page. It holds its pictures, and no script."""
    shown_of = {what: _once_a_pair(found.of(what))[:MOST_SHOWN] for what in KINDS}
    shown = [each for suspects in shown_of.values() for each in suspects]
    thumbnails = _thumbnails(dataset.root, {path for each in shown for path in (each.path, each.other) if path})
    about = {sample.path: sample for sample in dataset.samples}
    parts = []
    for number, (what, title) in enumerate(KINDS.items()):
        suspects = found.of(what)
        if not suspects:
            continue

        def side(path: str) -> Side:
            sample = about[path]
            label = dataset.classes[sample.label] if sample.label >= 0 else ""
            return Side(clean(path), clean(label), sample.split, thumbnails.get(path, ""))

        items = tuple(
            Item(
                sides=tuple(side(path) for path in (each.path, each.other) if path),
                why=clean(each.why[:1].upper() + each.why[1:]),
                proposal=_proposal(each),
            )
            for each in shown_of[what]
        )
        count, hidden = len(suspects), len(suspects) > MOST_SHOWN
        parts.append(Part(f"kind-{number}", title, ABOUT[what], f"{count:,}", len(items) if hidden else 0, items))
    return _template().render(
        title=f"{clean(Path(found.source).name)}: {sum(found.facts.counts.values()):,} images of "
        f"{len(found.facts.classes):,} classes",
        created_at=found.created_at,
        facts=[(name, clean(said)) for name, said in fact_lines(found.facts)],
        sentences=[clean(each) for each in (f"{found.split_why[:1].upper()}{found.split_why[1:]}.", *sentences(found))],
        sections=parts,
        classes=[{"name": clean(e.name), "train": e.train, "val": e.val, "test": e.test} for e in found.facts.classes],
        most=max(1, *(each.train for each in found.facts.classes)),
        few=FEW_OF_CLASS,
        mixed=[
            replace(each, one=clean(each.one), other=clean(each.other))
            for each in (() if found.labels is None else found.labels.mixed)
        ],
        list_file=LIST,
    )


def _once_a_pair(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The suspects, without those whose pair is there already from the other side."""
    pairs: set[tuple[str, str]] = set()
    kept = []
    for each in suspects:
        if not each.other or (each.other, each.path) not in pairs:
            pairs.add((each.path, each.other))
            kept.append(each)
    return kept


def _proposal(suspect: Suspect) -> str:
    word = "leave it out" if suspect.exclude else "keep it"
    return word if word == suspect.suggestion else f"{word} ({suspect.suggestion})"


def _thumbnails(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Pictures as ``data:`` addresses, of the images that can be read."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(cores()) as pool:
        made = pool.map(lambda path: _thumbnail(root / path), ordered)
        return dict(zip(ordered, made, strict=True))


def _thumbnail(path: Path) -> str:
    try:
        image = read_rgb(path, at_least=THUMBNAIL_PX)
    except UNREADABLE:
        return ""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


@functools.cache
def _template() -> jinja2.Template:
    from importlib.resources import files

    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = (files("fitwithin") / "inspection" / "templates" / "inspect.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)
