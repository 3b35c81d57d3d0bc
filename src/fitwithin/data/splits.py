"""The split of a data set whose folders state none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fitwithin.data.dataset import Sample
from fitwithin.data.fingerprint import digest


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
