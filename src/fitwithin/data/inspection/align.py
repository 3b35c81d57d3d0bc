"""Tells near twins from images that are only alike: one is laid on the other as exactly as it can be, and their details
are compared.

The window of the first image that is the second one is found by Gauss and Newton's method (Lucas and Kanade 1981): its
two sides and two beginnings, and how much brighter it is, from the window that the search names.
"""

# N pairs, P pixels

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from fitwithin.data.inspection.describe import Floats, interpolation
from fitwithin.data.inspection.greys import Greys
from fitwithin.data.inspection.search import Candidates

#: Pairs that are laid on each other at once.
AT_ONCE = 256

#: The steps that it takes at half the size, and then at the whole.
COARSE_STEPS, STEPS = 4, 3

#: The largest change in a step, as a share of a side: further away the picture's slope says nothing.
LONGEST_STEP = 0.04

#: Pairs whose details correlate less at half the size are not tried at the whole.
WORTH_TRYING = 0.7

#: Near twins' details correlate at least so much. Of crops of 90 % one in 100 has less, of 4,000 pairs of other clothes
#: none has more than 0.85.
LEAST = 0.88

#: Details whose standard deviation is less than this, of 255, are the noise of compression.
FAINT = 0.6

#: Details that are weaker than this, of 255, count less. Without that a frame that two pictures have in common decides:
#: of 45 pairs of mini-imagenet 14 were only framed alike.
EVEN = 1.5


def same(greys: Greys, pairs: Candidates) -> Floats:
    """How far each pair's details correlate, -1 to 1, [N]; 0 without any details. From LEAST on they are near twins."""
    found = np.zeros(len(pairs), np.float32)
    for first in range(0, len(pairs), AT_ONCE):
        chosen = np.arange(first, min(len(pairs), first + AT_ONCE))
        asked, windows = _posed(greys, pairs, chosen)
        other = greys.at(pairs.second[chosen]).astype(np.float32)
        halves = _halved(asked), _halved(other)
        windows = _fit(*halves, windows, COARSE_STEPS)
        likeness = _likeness(_cut(halves[0], windows), halves[1])
        tried = np.flatnonzero(likeness > WORTH_TRYING)
        windows = _fit(asked[tried], other[tried], windows[:, tried], STEPS)
        likeness[tried] = _likeness(_cut(asked[tried], windows), other[tried])
        found[chosen] = np.minimum(likeness, 1)
    return found


def _posed(greys: Greys, pairs: Candidates, chosen: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The first images as they lie in their poses, and the windows [4, N]: height, width, top, left."""
    pictures = greys.at(pairs.first[chosen]).astype(np.float32)
    windows = np.empty((4, len(chosen)), np.float32)
    for place, i in enumerate(chosen):
        pose, picture = pairs.pose_of(int(i)), pictures[place]
        top, left = pose.top, pose.left
        if pose.flipped:
            picture = picture[::-1]
        if pose.turned:
            picture = picture.T
        if pairs.mirrored[i]:
            picture, left = picture[:, ::-1], 1 - pose.side - left
        pictures[place] = picture.copy()
        windows[:, place] = pose.side, pose.side, top, left
    return pictures, windows


def _cut(pictures_NPP: Floats, windows_4N: Floats) -> Floats:
    """The windows of the pictures, [N, P, P]."""
    height, width, top, left = windows_4N
    px = pictures_NPP.shape[-1]
    across = interpolation(left, width, px).transpose(0, 2, 1)
    return np.asarray(interpolation(top, height, px) @ pictures_NPP @ across, dtype=np.float32)


def _halved(pictures_NPP: Floats) -> Floats:
    px = pictures_NPP.shape[-1] // 2
    return np.asarray(pictures_NPP.reshape(-1, px, 2, px, 2).mean((2, 4)), dtype=np.float32)


def _fit(pictures_NPP: Floats, other_NPP: Floats, windows_4N: Floats, steps: int) -> Floats:
    """The windows that are most like the other pictures, from these on."""
    count, px = pictures_NPP.shape[:2]
    windows, along_P = windows_4N.copy(), (np.arange(px, dtype=np.float32) + 0.5) / px
    slopes = np.empty((count, 6, px, px), np.float32)
    slopes[:, 5] = 1
    for _ in range(steps if count else 0):
        slopes[:, 4] = cut = _cut(pictures_NPP, windows)
        # A change of a beginning, and of a side, moves the pixels by so much.
        slopes[:, 2], slopes[:, 3] = np.gradient(cut, axis=(1, 2))
        slopes[:, 2:4] *= px / windows[:2].T[:, :, None, None]
        np.multiply(slopes[:, 2], along_P[:, None], out=slopes[:, 0])
        np.multiply(slopes[:, 3], along_P, out=slopes[:, 1])
        slopes_N6P = slopes.reshape(count, 6, -1)
        square_N66 = slopes_N6P @ slopes_N6P.transpose(0, 2, 1) + 0.01 * np.eye(6, dtype=np.float32)
        error_NP1 = (other_NPP - cut).reshape(count, -1, 1)
        step_N6 = np.linalg.solve(square_N66, slopes_N6P @ error_NP1)[..., 0]
        windows += np.clip(step_N6[:, :4], -LONGEST_STEP, LONGEST_STEP).T
        windows[:2] = np.clip(windows[:2], 0.5, 1.5)
    return windows


def _likeness(one_NPP: Floats, other_NPP: Floats) -> Floats:
    """The correlation of the details of two pictures, [N].

    Each pixel counts by the strength of the details around it in both, so that a frame that two pictures have in common
    does not decide alone.
    """
    if not len(one_NPP):
        return np.zeros(0, np.float32)
    one, other = _details(one_NPP), _details(other_NPP)
    mean = _filters(one_NPP.shape[-1])[2]
    around = mean @ (one * one + other * other) @ mean.T
    enough = np.minimum((one * one).mean((1, 2)), (other * other).mean((1, 2))) > FAINT**2
    one, other = ((each / np.sqrt(around + EVEN**2)).reshape(len(each), -1) for each in (one, other))
    one, other = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    lengths = np.sqrt((one * one).sum(1) * (other * other).sum(1))
    return np.where(enough, (one * other).sum(1) / np.maximum(lengths, 1e-6), 0).astype(np.float32)


def _details(pictures_NPP: Floats) -> Floats:
    """What is finer than some five pixels and coarser than two, without the rim, [N, P - 2, P - 2]."""
    near, wide, _ = _filters(pictures_NPP.shape[-1])
    smooth = near @ pictures_NPP @ near.T
    return np.asarray((smooth - wide @ smooth @ wide.T)[:, 1:-1, 1:-1], dtype=np.float32)


@cache
def _filters(px: int) -> tuple[Floats, Floats, Floats]:
    """Matrices [P, P]: each pixel with its neighbours, which count 1 : 2 : 1; the mean of five; and of nine, for two
    pixels less."""
    apart = np.abs(np.arange(px)[:, None] - np.arange(px))
    near, wide, wider = np.maximum(0, 2 - apart), apart < 3, apart[2:, 2:] < 5
    one, two, three = ((each / each.sum(1, keepdims=True)).astype(np.float32) for each in (near, wide, wider))
    return one, two, three
