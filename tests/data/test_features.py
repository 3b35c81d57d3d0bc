"""Features in the cache: what was kept is what comes back, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.data import features
from fitwithin.data.features import NONE, Features


def some(positions: list[int]) -> Features:
    """Each image's features begin with its position."""
    values = np.array([[n, -n, 0.5] for n in positions], dtype=np.float16).reshape(-1, 3)
    return Features(positions=np.array(positions, dtype=np.int64), values=values)


@given(st.lists(st.integers(0, 500), unique=True), st.data())
def test_what_is_asked_for_comes_in_the_order_asked(positions: list[int], data: st.DataObject) -> None:
    kept = some(positions)
    wanted = np.array(data.draw(st.permutations(positions)), dtype=np.int64)
    if len(wanted):
        assert kept.of(wanted)[:, 0].tolist() == wanted.tolist()
    assert not len(kept.missing(wanted))
    other = np.array([501, 502])
    assert kept.missing(other).tolist() == [501, 502]
    with pytest.raises(KeyError):
        kept.of(other)


def test_more_can_be_added_to_what_is_there() -> None:
    first = NONE.plus(np.array([3, 1]), some([3, 1]).values)
    both = first.plus(np.array([2]), some([2]).values)
    assert both.of(np.array([1, 2, 3]))[:, 0].tolist() == [1, 2, 3]


def test_features_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "features.npz"
    features.write(path, some([4, 2]))
    back = features.read(path)
    assert back.positions.tolist() == [4, 2]
    assert back.of(np.array([2]))[0].tolist() == [2.0, -2.0, 0.5]


def test_a_file_that_is_absent_or_cut_short_counts_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    assert features.read(path) is NONE
    features.write(path, some(list(range(100))))
    path.write_bytes(path.read_bytes()[:150])
    assert features.read(path) is NONE
