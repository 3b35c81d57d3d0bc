"""Finds the pairs of images that may be near twins, in far fewer steps than there are pairs.

The images are divided into cells of some CELL_SIZE that are alike, and each is looked for in the PROBED cells that are
nearest to it. The cells are told by the even numbers alone, which a mirrored image has too.
"""

# N images, E even and O odd numbers (describe.py), C cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fitwithin.data.inspection.describe import (
    POSES,
    Descriptions,
    Floats,
    Pose,
    describe,
    parts,
    weights_of,
)
from fitwithin.data.inspection.greys import Greys
from fitwithin.data.inspection.look import OnProgress

Ints = npt.NDArray[np.int64]

#: Images in a cell, cells that are looked into, and rounds of moving the cells' middles.
CELL_SIZE, PROBED, ROUNDS = 500, 6, 6

#: Middles are found among so many images of each cell.
SAMPLED = 50

#: Images that are asked for at once.
ASKED_AT_ONCE = 4096

#: Pairs that are less alike are no candidates. Of 500 crops of 90 % one was less like its image; of other images one in
#: 30 has a likeness of this to an image (mini-imagenet).
LIKENESS = 0.88

#: No image gets more candidates: among thousands of pictures of the same form all would be.
MOST = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Pairs of positions, each once: ``first`` in the ``pose`` (an index into POSES, and whether mirrored) is like
    ``second`` as a whole. All [N]."""

    first: Ints
    second: Ints
    pose: Ints
    mirrored: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)

    def pose_of(self, i: int) -> Pose:
        """The pose of a pair, without mirroring."""
        return POSES[int(self.pose[i])]


def candidates(greys: Greys, on_progress: OnProgress) -> Candidates:
    """The pairs among the images of these grey pictures that may be near twins."""
    weights = weights_of(greys)
    index = _Index(greys, weights)
    found = []
    for part in parts(len(greys), ASKED_AT_ONCE):
        pictures = greys.run(part.start, part.stop)
        found.append(_best(index.ask([describe(pictures, weights, pose) for pose in POSES], part.start)))
        on_progress(part.stop, len(greys))
    return _once(_joined(found))


class _Likely(NamedTuple):
    """Pairs by columns, with their likeness."""

    first: Ints
    second: Ints
    pose: Ints
    mirrored: npt.NDArray[np.bool_]
    likeness: Floats

    def at(self, places: Ints) -> _Likely:
        return _Likely._make(column[places] for column in self)


class _Index:
    """The descriptions of all images, cell by cell."""

    def __init__(self, greys: Greys, weights: Floats) -> None:
        total = len(greys)
        even, odd = [], []
        for part in parts(total):
            described = describe(greys.run(part.start, part.stop), weights)
            even.append(described.even.astype(np.float16))
            odd.append(described.odd.astype(np.float16))
        all_even = np.concatenate(even)
        self._middles_CE = _middles(all_even, max(1, total // CELL_SIZE))
        cell_N = np.concatenate([self._nearest(all_even[p.start : p.stop], 1)[:, 0] for p in parts(total)])
        #: The positions, cell by cell, and where each cell begins.
        self._order = np.argsort(cell_N, kind="stable")
        self._begins = np.searchsorted(cell_N[self._order], np.arange(len(self._middles_CE) + 1))
        self._even, self._odd = all_even[self._order], np.concatenate(odd)[self._order]

    def _nearest(self, even_NE: npt.NDArray[np.generic], many: int) -> Ints:
        """The ``many`` cells nearest to each, [N, many]; all where there are no more."""
        many = min(many, len(self._middles_CE))
        found = [np.zeros((0, many), np.int64)]
        for part in parts(len(even_NE)):
            likeness_NC = even_NE[part.start : part.stop].astype(np.float32) @ self._middles_CE.T
            # A view would keep the places of all cells: 0.9 GB at a million images.
            found.append(np.argpartition(-likeness_NC, many - 1, axis=1)[:, :many].copy())
        return np.concatenate(found)

    def ask(self, asked: Sequence[Descriptions], since: int) -> _Likely:
        """Who is like the images from the position ``since`` on, which are ``asked`` for in each of the POSES."""
        even_AE, odd_AO = np.concatenate([each.even for each in asked]), np.concatenate([each.odd for each in asked])
        count = len(asked[0].even)
        cell_AP = self._nearest(even_AE, PROBED)
        asker = np.repeat(np.arange(len(cell_AP)), cell_AP.shape[1])
        order = np.argsort(cell_AP.ravel(), kind="stable")
        asker, cell = asker[order], cell_AP.ravel()[order]
        bounds = np.searchsorted(cell, np.arange(len(self._middles_CE) + 1))
        found = []
        for number in np.unique(cell):
            mine = asker[bounds[number] : bounds[number + 1]]
            there = slice(self._begins[number], self._begins[number + 1])
            odd_AB = odd_AO[mine] @ self._odd[there].astype(np.float32).T
            likeness = even_AE[mine] @ self._even[there].astype(np.float32).T
            likeness += np.abs(odd_AB)
            a, b = np.nonzero(likeness > LIKENESS)
            first, second = mine[a] % count + since, self._order[there][b]
            each = _Likely(first, second, mine[a] // count, odd_AB[a, b] < 0, likeness[a, b])
            found.append(each.at(np.flatnonzero(first != second)))
        return _joined(found)


def _middles(even_NE: npt.NDArray[np.float16], cells: int) -> Floats:
    """The middles of so many cells, [C, E]: spherical k-means among a sample."""
    rng = np.random.default_rng(0)
    sample = even_NE[rng.permutation(len(even_NE))[: cells * SAMPLED]].astype(np.float32)
    sample /= np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-6)
    middles = sample[:cells].copy()
    for _ in range(ROUNDS if cells > 1 else 0):
        nearest = np.concatenate([(sample[p.start : p.stop] @ middles.T).argmax(1) for p in parts(len(sample))])
        order = np.argsort(nearest, kind="stable")
        begins = np.searchsorted(nearest[order], np.arange(cells))
        count = np.bincount(nearest, minlength=cells)
        held = count > 0
        middles[held] = np.add.reduceat(sample[order], begins[held])
        middles /= np.maximum(np.linalg.norm(middles, axis=1, keepdims=True), 1e-6)
    return middles


def _joined(found: Sequence[_Likely]) -> _Likely:
    return _Likely._make(np.concatenate(each) for each in zip(*found, strict=True))


def _best(found: _Likely) -> _Likely:
    """Each pair in its best pose, and of each first one the MOST that are most like it."""
    found = found.at(np.lexsort((-found.likeness, found.second, found.first)))
    found = found.at(_changes(found.first, found.second))
    found = found.at(np.lexsort((-found.likeness, found.first)))
    rank = np.arange(len(found.first)) - np.searchsorted(found.first, found.first)
    return found.at(np.flatnonzero(rank < MOST))


def _once(found: _Likely) -> Candidates:
    """Each pair once: both ways round were asked for."""
    low, high = np.minimum(found.first, found.second), np.maximum(found.first, found.second)
    order = np.lexsort((-found.likeness, high, low))
    found = found.at(order[_changes(low[order], high[order])])
    return Candidates(first=found.first, second=found.second, pose=found.pose, mirrored=found.mirrored)


def _changes(one: Ints, other: Ints) -> Ints:
    """Where a pair differs from the one before it."""
    new = np.ones(len(one), np.bool_)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return np.flatnonzero(new)
