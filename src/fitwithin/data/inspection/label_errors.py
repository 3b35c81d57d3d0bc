"""Confident learning: which labels are likely to be wrong, by probabilities of a model that did not see them.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021. A class's
threshold is the mean probability that its images get for it. The confident joint counts images by their label and by
the most probable class among those whose threshold they reach; off its diagonal are the wrong ones. At most as many
images as that says are suspected (prune by noise rate).

Which come first is our own: those of whose label another class is the most times as probable. By the difference of the
two probabilities, cleanlab's normalised margin, images that are hard to tell hide wrong labels once there are many
classes (docs/decisions/0024).
"""

# N images, K classes

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: A label is suspected only if another class is so many times as probable: e to the power of LEAST_LOG_RATIO, or the
#: number of classes to the power of CLASSES_POWER if that is more. A label that is drawn at random is about as many
#: times less probable as there are classes.
LEAST_LOG_RATIO, CLASSES_POWER = 2.0, 0.75


class Suspicion(NamedTuple):
    """Images whose labels are likely to be wrong, the surest first: positions [N], the class that each is likely to
    have, and the logarithm of how many times that is as probable as the label. ``expected`` is how many labels are
    wrong by the confident joint."""

    positions: Ints
    better: Ints
    log_ratios: Floats
    expected: int


def thresholds(probabilities_NK: Floats, labels_N: Ints) -> Floats:
    """The mean probability of each class among the images that have it [K]; 1 where there are none."""
    count = probabilities_NK.shape[1]
    own = probabilities_NK[np.arange(len(labels_N)), labels_N]
    images = np.bincount(labels_N, minlength=count)
    sums = np.bincount(labels_N, weights=own, minlength=count)
    return np.where(images > 0, sums / np.maximum(images, 1), 1.0).astype(np.float32)


def confident_joint(probabilities_NK: Floats, labels_N: Ints) -> Ints:
    """How many images have a label (row) and are confidently of a class (column), [K, K]."""
    count = probabilities_NK.shape[1]
    # A threshold that is reached but for rounding is reached.
    reached = np.where(probabilities_NK >= thresholds(probabilities_NK, labels_N) - 1e-6, probabilities_NK, -1.0)
    confident = reached.max(axis=1) >= 0
    joint = np.zeros((count, count), np.int64)
    np.add.at(joint, (labels_N[confident], reached.argmax(axis=1)[confident]), 1)
    return joint


def expected_errors(joint_KK: Ints, labels_N: Ints) -> int:
    """How many labels are wrong by the joint, once its rows have as many images as there are with each label."""
    images_K = np.bincount(labels_N, minlength=len(joint_KK))
    rows_K = joint_KK.sum(axis=1)
    wrong_K = rows_K - np.diagonal(joint_KK)
    return round(float((images_K * wrong_K / np.maximum(rows_K, 1)).sum()))


def log_ratios(probabilities_NK: Floats, labels_N: Ints) -> tuple[Ints, Floats]:
    """The most probable other class of each image, and the logarithm of its probability over the label's."""
    rows = np.arange(len(labels_N))
    logs = np.log(np.maximum(probabilities_NK, np.finfo(np.float32).tiny))
    own = logs[rows, labels_N].copy()
    logs[rows, labels_N] = -np.inf
    better = logs.argmax(axis=1)
    return better, logs[rows, better] - own


def suspect(probabilities_NK: Floats, labels_N: Ints) -> Suspicion:
    """The labels that are likely to be wrong."""
    expected = expected_errors(confident_joint(probabilities_NK, labels_N), labels_N)
    better, ratios = log_ratios(probabilities_NK, labels_N)
    order = np.argsort(-ratios, kind="stable")[:expected]
    least = max(LEAST_LOG_RATIO, CLASSES_POWER * float(np.log(probabilities_NK.shape[1])))
    order = order[ratios[order] >= least]
    return Suspicion(positions=order, better=better[order], log_ratios=ratios[order], expected=expected)


class Confusion(NamedTuple):
    """Two classes, how many images of either are taken for the other one, and how many there are of both."""

    one: int
    other: int
    mixed: int
    images: int


def confusions(probabilities_NK: Floats, labels_N: Ints, most: int) -> list[Confusion]:
    """The pairs of classes that are mixed up most often, by the share of their images."""
    count = probabilities_NK.shape[1]
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (labels_N, probabilities_NK.argmax(axis=1)), 1)
    images_K = np.bincount(labels_N, minlength=count)
    mixed = np.triu(table + table.T, 1)
    found = [
        Confusion(int(one), int(other), int(mixed[one, other]), int(images_K[one] + images_K[other]))
        for one, other in zip(*np.nonzero(mixed), strict=True)
    ]
    return sorted(found, key=lambda each: -each.mixed / each.images)[:most]
