"""An image in 48 numbers, by which its near twins are looked for: the low frequencies of its grey picture.

A mirrored image has the same numbers, but for the signs of those that are odd from left to right. With an image's even
numbers e and odd ones o, the likeness of two images or of one and the mirrored other is e . e' + |o . o'|: one search
finds both. The rest of the eight ways to lay a square down are asked for by turned descriptions.
"""

# N images, P pixels, F frequencies (7), E even (27) and O odd (21) numbers

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from fitwithin.data.inspection.greys import SIDE, Greys, Greys8

Floats = npt.NDArray[np.float32]

#: Frequencies in each direction. With 6 there are twice as many candidates, with 8 crops are less like their images.
FREQUENCIES = 7

#: An image is asked for as a whole and as these nine windows: the side, and where it begins, from the top or left. So a
#: crop of 90 % is never further than two hundredths of a side from one of them, and its likeness is 0.93 or more.
CROP, BEGINS = 0.93, (0.0, 0.035, 0.07)

#: Grey pictures whose standard deviation is less than this are of one colour, or nearly: they are like nothing.
LEAST_CONTRAST = 2.0

#: So many images are described to learn how much of each frequency images have; so many at once.
SAMPLED, AT_ONCE = 4000, 2048


@dataclass(frozen=True, kw_only=True)
class Pose:
    """A window of an image and how it lies: the window's side and its beginning from the top and the left, as shares of
    the image; then mirrored, upside down, and turned over its diagonal, in this order."""

    side: float = 1.0
    top: float = 0.0
    left: float = 0.0
    mirrored: bool = False
    flipped: bool = False
    turned: bool = False


#: How each image is asked for; the mirrored ones come by themselves.
POSES = (
    Pose(),
    *(Pose(side=CROP, top=top, left=left) for top in BEGINS for left in BEGINS),
    Pose(flipped=True),
    Pose(turned=True),
    Pose(flipped=True, turned=True),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Descriptions:
    """Unit vectors in two parts, float32 [N, E] and [N, O]; zeros for what is of one colour."""

    even: Floats
    odd: Floats


def interpolation(begin: npt.ArrayLike, side: npt.ArrayLike, px: int = SIDE) -> Floats:
    """Matrices [N, P, P] that take the ``px`` pixels of a line to as many of its window, linearly."""
    begin_N, side_N = np.atleast_1d(np.asarray(begin, np.float32)), np.atleast_1d(np.asarray(side, np.float32))
    middle_P = (np.arange(px, dtype=np.float32) + 0.5) / px
    source_NP = np.clip((begin_N[:, None] + side_N[:, None] * middle_P) * px - 0.5, 0, px - 1)
    found: Floats = np.maximum(0, 1 - np.abs(source_NP[:, :, None] - np.arange(px, dtype=np.float32)))
    return found


@cache
def _cosines() -> Floats:
    """The rows of the discrete cosine transform, [F, P]."""
    place_P, frequency_F = np.arange(SIDE), np.arange(FREQUENCIES)
    rows = np.cos(np.pi * (2 * place_P[None] + 1) * frequency_F[:, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    found: Floats = rows.astype(np.float32)
    return found


@cache
def _rows(begin: float, side: float) -> Floats:
    """The same of a window, from the pixels of the whole: [F, P]."""
    found: Floats = _cosines() @ interpolation(begin, side)[0]
    return found


def frequencies(greys_NPP: Greys8, pose: Pose = POSES[0]) -> Floats:
    """The low frequencies [N, F, F] of grey pictures in a pose."""
    found = _rows(pose.top, pose.side) @ greys_NPP.astype(np.float32) @ _rows(pose.left, pose.side).T
    if pose.mirrored:
        found[:, :, 1::2] *= -1
    if pose.flipped:
        found[:, 1::2] *= -1
    return np.ascontiguousarray(found.transpose(0, 2, 1)) if pose.turned else found


def weights_of(greys: Greys) -> Floats:
    """What each frequency is divided by, [F, F]: the root of its usual size in these images. Without it the lowest ones
    decide alone."""
    step = max(1, len(greys) // SAMPLED)
    sample = greys.at(np.arange(0, len(greys), step))
    found = np.sqrt(np.sqrt(np.square(frequencies(sample)).mean(0)) + 1)
    # An image and the same one turned must have the same length.
    return np.asarray((found + found.T) / 2, dtype=np.float32)


def describe(greys_NPP: Greys8, weights_FF: Floats, pose: Pose = POSES[0]) -> Descriptions:
    """The descriptions of grey pictures in a pose."""
    found = frequencies(greys_NPP, pose) / weights_FF
    found[:, 0, 0] = 0  # how bright it is
    flat = greys_NPP.reshape(len(greys_NPP), -1).std(axis=1) < LEAST_CONTRAST
    length = np.linalg.norm(found.reshape(len(found), -1), axis=1)
    found *= (np.where(flat, 0, 1) / np.maximum(length, 1e-6)).astype(np.float32)[:, None, None]
    even, odd = found[:, :, 0::2].reshape(len(found), -1), found[:, :, 1::2].reshape(len(found), -1)
    return Descriptions(even=np.delete(even, 0, axis=1), odd=odd)


def parts(total: int, at_once: int = AT_ONCE) -> Iterator[range]:
    """Positions from 0 on, so many at once."""
    return (range(first, min(total, first + at_once)) for first in range(0, total, at_once))
