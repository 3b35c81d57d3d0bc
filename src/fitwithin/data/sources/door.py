"""The one door to data: whatever people have their pictures in becomes a :class:`fitwithin.data.dataset.Dataset`."""

from __future__ import annotations

import math
from pathlib import Path

from fitwithin.data.dataset import LAYOUT, Dataset
from fitwithin.data.sources import folder
from fitwithin.data.sources.listing import SPLITTINGS, Listing, assemble
from fitwithin.errors import DataError


def open_dataset(
    data: str | Path,
    *,
    seed: int = 0,
    split: str = SPLITTINGS[0],
    cache_dir: Path | None = None,
    until_at: float = math.inf,
) -> Dataset:
    """The data set in ``data``.

    Where no split is stated, it is drawn: see :func:`fitwithin.data.sources.listing.assemble`. In the folder
    ``cache_dir`` it is recorded what was read, so that files that did not change are not read again. Reading ends at
    the monotonic instant ``until_at``.

    Raises:
        DataError: there is nothing of that name, it cannot be read, or it cannot serve as a data set.
    """
    found = read(str(data))
    return assemble(found, seed=seed, split=split, cache_dir=cache_dir, until_at=until_at)


def read(data: str) -> Listing:
    """What ``data`` lists. DataError where it cannot be read."""
    root = Path(data)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"the data folder {root} {found}; give a folder laid out as {LAYOUT}")
    return folder.read(root)
