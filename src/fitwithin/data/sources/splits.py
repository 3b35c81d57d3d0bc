"""Which folders' names name a split, and the split of a data set whose folders state none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from fitwithin.data.dataset import Sample
from fitwithin.data.fingerprint import digest

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

#: What may hang on such a word: trainset, testdata.
_GLUED = re.compile(r"(?<=.)(sets?|data|images?|imgs?|split|dir|folder)$")


def split_named(name: str) -> str | None:
    """The split that a folder's name is the name of, in any case: Training, valid, test."""
    return _NAMES.get(name.casefold())


def split_alike(name: str) -> str | None:
    """The split that a name speaks of with other words before or after: seg_train, val2017, TestSet."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    found = {_NAMES.get(word) or _NAMES.get(_GLUED.sub("", word)) for word in words} - {None}
    return found.pop() if len(found) == 1 else None


def random_split(samples: Sequence[Sample], *, seed: int, with_test: bool) -> list[Sample]:
    """Train samples spread over val, test (if asked) and train, class by class.

    The order of drawing is that of BLAKE2b(seed, path), so a sample's place in it never depends on other files.
    """
    by_label: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.split == "train":
            by_label.setdefault(sample.label, []).append(sample)
    result = [sample for sample in samples if sample.split != "train"]
    for mine in by_label.values():
        mine.sort(key=lambda sample: digest(f"{seed}:{sample.path}".encode("utf-8", "surrogateescape")))
        tenth = round(len(mine) / 10)
        n_val = min(max(1, tenth), len(mine) - 1)
        n_test = tenth if with_test else 0
        for rank, sample in enumerate(mine):
            split = "val" if rank < n_val else "test" if rank < n_val + n_test else "train"
            result.append(replace(sample, split=split))
    return result
