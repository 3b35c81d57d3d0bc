"""Which images are the same picture: byte for byte, or near twins, such as crops, mirrored or compressed ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fitwithin.data.dataset import Dataset, Sample
from fitwithin.data.inspection import align, search
from fitwithin.data.inspection.greys import BYTES, Greys
from fitwithin.data.inspection.look import OnProgress, Seen, look

#: Near twins of images whose shorter side has fewer pixels are not looked for: at that size different things look the
#: same.
LEAST_PX = 32


class Twins(NamedTuple):
    """Two images that are the same picture, by their positions, and how far their details correlate; 1 where the files
    are the same."""

    one: int
    other: int
    likeness: float
    exact: bool


def find(seen: Sequence[Seen], greys: Greys, on_progress: OnProgress) -> list[Twins]:
    """All twins among images that were looked at. The grey pictures of copies and of small images become black.

    Of several files that are the same the first is compared with other images.
    """
    found: list[Twins] = []
    first: dict[bytes, int] = {}
    for position, each in enumerate(seen):
        if each.reason:
            continue
        original = first.setdefault(each.digest, position)
        if original != position:
            found.append(Twins(original, position, 1.0, True))
        if original != position or min(each.width, each.height) < LEAST_PX:
            greys.put(position, bytes(BYTES))
    if len(greys) < 2:
        return found
    pairs = search.candidates(greys, on_progress)
    likeness = align.same(greys, pairs)
    for i in np.flatnonzero(likeness >= align.LEAST).tolist():
        found.append(Twins(int(pairs.first[i]), int(pairs.second[i]), float(likeness[i]), False))
    return found


def families(count: int, twins: Sequence[Twins]) -> list[int]:
    """The family of each of ``count`` images: twins, and twins of twins, have the same number."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for each in twins:
        low, high = sorted((root(each.one), root(each.other)))
        parent[high] = low
    return [root(place) for place in range(count)]


def groups(
    dataset: Dataset, on_progress: Callable[[int, int], None] = lambda done, total: None, workers: int | None = None
) -> Mapping[str, str]:
    """The group of every image that has a near twin in the data set, by path: named by what is in it, wherever the
    images lie.

    For splits that keep twins on one side. Takes as long as decoding the images and a little more.

    Raises:
        DataError: no process could be started.
        OSError: there is no room in the temporary folder.
    """
    paths = [sample.path for sample in dataset.samples]
    with Greys(len(paths)) as greys:
        seen = look(Path(dataset.root), paths, greys, on_progress, workers)
        found = find(seen, greys, on_progress)
    members: dict[int, list[Sample]] = {}
    for sample, family in zip(dataset.samples, families(len(paths), found), strict=True):
        members.setdefault(family, []).append(sample)
    names = {family: min(each.content for each in own).hex() for family, own in members.items() if len(own) > 1}
    return {each.path: name for family, name in names.items() for each in members[family]}
