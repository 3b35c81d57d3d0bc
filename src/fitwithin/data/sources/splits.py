"""Which names name a split, and the split of a data set that states none: drawn from the seed, or by time or name.

A drawn split is stratified: class by class a tenth is for validation, and a tenth for the test.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fitwithin.data.dataset import Sample
from fitwithin.data.fingerprint import HALF_BYTES, digest

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

#: What may hang on such a word: trainset, testdata.
_GLUED = re.compile(r"(?<=.)(sets?|data|images?|imgs?|split|dir|folder)$")

#: The group of a sample by its path: its images are never on both sides of a split. Who is in none is alone.
Groups = Mapping[str, str]


def split_named(name: str) -> str | None:
    """The split that a folder's name is the name of, in any case: Training, valid, test."""
    return _NAMES.get(name.casefold())


def split_alike(name: str) -> str | None:
    """The split that a name speaks of with other words before or after: seg_train, val2017, TestSet."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    found = {_NAMES.get(word) or _NAMES.get(_GLUED.sub("", word)) for word in words} - {None}
    return found.pop() if len(found) == 1 else None


def random_split(
    samples: Sequence[Sample], *, seed: int, with_test: bool, group_of: Groups | None = None
) -> list[Sample]:
    """Train samples spread over val, test (if asked) and train.

    The order of drawing is that of BLAKE2b(seed, content), or of BLAKE2b(seed, group), so a place in it never depends
    on other files. (Without content it is that of the path.)
    """

    def rank(sample: Sample) -> tuple[bytes, bytes, str]:
        content = sample.content or sample.path.encode("utf-8", "surrogateescape")
        return _drawn(seed, content[:HALF_BYTES]), _drawn(seed, content), sample.path

    if group_of:
        groups = _groups(samples, group_of)
        ranks = {name: _drawn(seed, name.encode("utf-8", "surrogateescape")) for name in groups}
        ranks |= {name: rank(mine[0])[0] for name, mine in groups.items() if not group_of.get(mine[0].path)}
        return _spread_groups(
            samples, sorted(groups.values(), key=lambda mine: ranks[_name(mine[0], group_of)]), with_test
        )
    return _spread(samples, rank, ("val", "test"), with_test)


def ordered_split(
    samples: Sequence[Sample], *, order: Mapping[str, Any], with_test: bool, group_of: Groups | None = None
) -> list[Sample]:
    """The last train samples of each class go to test (if asked), those before to val. ``order`` has what each path is
    ordered by: a time, or a name. A group is where its last sample is."""

    def rank(sample: Sample) -> tuple[Any, bytes, str]:
        return order[sample.path], sample.content, sample.path

    if group_of:
        groups = sorted(_groups(samples, group_of).values(), key=lambda mine: max(map(rank, mine)), reverse=True)
        return _spread_groups(samples, groups, with_test, ("test", "val"))
    return _spread(samples, rank, ("test", "val"), with_test, last_first=True)


def _drawn(seed: int, what: bytes) -> bytes:
    return digest(f"{seed}:".encode() + what)


def _quotas(count: int, with_test: bool) -> dict[str, int]:
    """How many of a class go to val and to test: one stays in train."""
    tenth = round(count / 10)
    return {"val": min(max(1, tenth), count - 1), "test": tenth if with_test else 0}


def _spread(
    samples: Sequence[Sample],
    rank: Callable[[Sample], Any],
    parts: tuple[str, str],
    with_test: bool,
    *,
    last_first: bool = False,
) -> list[Sample]:
    """Class by class, the first go to the first part, the next to the second one."""
    by_label: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.split == "train":
            by_label.setdefault(sample.label, []).append(sample)
    result = [sample for sample in samples if sample.split != "train"]
    for mine in by_label.values():
        mine.sort(key=rank, reverse=last_first)
        quotas = _quotas(len(mine), with_test)
        first, both = quotas[parts[0]], sum(quotas.values())
        for place, sample in enumerate(mine):
            split = parts[0] if place < first else parts[1] if place < both else "train"
            result.append(replace(sample, split=split))
    return result


def _name(sample: Sample, group_of: Groups) -> str:
    """The group of a sample; of one that is in none, a name that no group has."""
    return group_of.get(sample.path) or f"\0{sample.path}"


def _groups(samples: Sequence[Sample], group_of: Groups) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.split == "train":
            groups.setdefault(_name(sample, group_of), []).append(sample)
    return groups


def _spread_groups(
    samples: Sequence[Sample], groups: Sequence[list[Sample]], with_test: bool, parts: Sequence[str] = ("val", "test")
) -> list[Sample]:
    """Whole groups, in their order: each goes to the first part that it fills more than it overfills, else to train.

    What a class still lacks of a part counts for it, and every class keeps an image in train. Without groups this is
    what :func:`_spread` does. A class that got no image of a part then gives it its smallest group, if another is left.
    """
    left = Counter(sample.label for group in groups for sample in group)
    lacks = {part: {label: _quotas(count, with_test)[part] for label, count in left.items()} for part in parts}
    counts = [Counter(sample.label for sample in group) for group in groups]
    chosen = ["train"] * len(groups)

    def give(place: int, part: str) -> None:
        chosen[place] = part
        left.subtract(counts[place])
        for label, count in counts[place].items():
            lacks[part][label] -= count

    def spares(place: int) -> bool:
        return all(left[label] > count for label, count in counts[place].items())

    for place, mine in enumerate(counts):
        for part in parts:
            filled = sum(min(count, max(0, lacks[part][label])) for label, count in mine.items())
            if 2 * filled >= mine.total() and spares(place):
                give(place, part)
                break
    of_label: dict[int, list[int]] = {label: [] for label in left}
    for place, mine in enumerate(counts):
        for label in mine:
            of_label[label].append(place)
    for part in parts:
        for label in sorted(label for label, lacking in lacks[part].items() if lacking > 0):
            free = [place for place in of_label[label] if chosen[place] == "train" and spares(place)]
            if free and not any(chosen[place] == part for place in of_label[label]):
                give(min(free, key=lambda place: counts[place].total()), part)
    placed = {sample.path: part for group, part in zip(groups, chosen, strict=True) for sample in group}
    return [replace(sample, split=placed.get(sample.path, sample.split)) for sample in samples]
