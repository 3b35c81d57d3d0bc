"""Probabilities to trust: weights of rare classes, one temperature, and how far probabilities are from what happens.

Shape suffixes: N images, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fitwithin.inference.quality import BINS, Calibration, Value

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

Labels = npt.NDArray[np.int64]

#: No temperature is fitted to fewer images: its error would be larger than what it mends.
LEAST_IMAGES = 200

#: Classes are weighted if the largest has so many times the training images of the smallest. These powers are tried;
#: the accuracy on validation data may become so much smaller.
IMBALANCED, POWERS, MOST_LOST = 3.0, (0.25, 0.5, 0.75, 1.0), 0.01

#: The least probability that is told from 0.
LEAST = 1e-12

#: The inverse temperature stays within these; Newton's method takes so many steps at most.
BOUNDS, STEPS = (0.05, 20.0), 25

#: Resamples of a bootstrap interval.
RESAMPLES = 200


def fit_temperature(probabilities_NK: Floats, labels_N: Labels) -> float:
    """The temperature at which the labels are the most likely: 1 leaves the probabilities as they are, more makes them
    less extreme. Newton's method on its inverse, in which the log-likelihood is concave."""
    logs_NK = np.log(np.maximum(probabilities_NK, LEAST)).astype(np.float64)
    own = float(logs_NK[np.arange(len(labels_N)), labels_N].mean())
    inverse = 1.0
    for _ in range(STEPS):
        scaled_NK = softmax(inverse * logs_NK)
        mean_N = (scaled_NK * logs_NK).sum(axis=1)
        slope = own - float(mean_N.mean())
        curvature = float(((scaled_NK * logs_NK**2).sum(axis=1) - mean_N**2).mean())
        before, inverse = inverse, float(np.clip(inverse + slope / max(curvature, 1e-9), *BOUNDS))
        inverse = float(np.clip(inverse, before / 2, before * 2))  # far away a whole step goes too far
        if abs(inverse - before) < 1e-4 * before:
            break
    return 1.0 / inverse


def tempered(probabilities_NK: Floats, temperature: float) -> Floats:
    """The probabilities at a temperature."""
    if temperature == 1.0:
        return probabilities_NK
    logs_NK = np.log(np.maximum(probabilities_NK, LEAST)).astype(np.float64)
    return np.asarray(softmax(logs_NK / temperature), dtype=np.float32)


def adjusted(probabilities_NK: Floats, class_weights: Sequence[float]) -> Floats:
    """The probabilities times the classes' weights, adding up to 1 again; as they are without weights."""
    if not class_weights:
        return probabilities_NK
    weighted_NK = np.maximum(probabilities_NK, LEAST) * np.asarray(class_weights)
    return np.asarray(weighted_NK / weighted_NK.sum(axis=1, keepdims=True), dtype=np.float32)


#: How classes of different size are treated, by the word of --balance; ``auto`` finds out more in the end.
BALANCED = {
    "auto": "In the end validation images decide how answers for rare classes are weighed (--balance auto).",
    "none": "Classes are weighted alike, as --balance none asks.",
    "weights": "Rare classes weigh more in the loss, as --balance weights asks.",
    "sampling": "All classes are drawn equally often, as --balance sampling asks.",
}


class Balance(NamedTuple):
    """The weights of classes, none where they are alike, and why."""

    class_weights: tuple[float, ...]
    why: str


def choose_balance(probabilities_NK: Floats, labels_N: Labels, train_K: Labels) -> Balance:
    """Weights for classes with few of the ``train_K`` training images, by validation data.

    Each is the inverse of its class's share to a power (Menon et al., "Long-tail learning via logit adjustment", ICLR
    2021): that power is taken at which the mean of the classes' recalls is largest. It must be larger than without
    weights by more than its error, and the accuracy no more than MOST_LOST smaller.
    """
    most, least = int(train_K.max()), int(train_K.min())
    if most < IMBALANCED * max(1, least):
        return Balance((), f"Classes are weighted alike: they have {least:,} to {most:,} training images.")
    shares_K = np.maximum(train_K, 1) / train_K.sum()
    own_N = probabilities_NK.argmax(axis=1) == labels_N
    best: tuple[float, float, float, tuple[float, ...]] | None = None
    for power in POWERS:
        weights = tuple(float(each) for each in (shares_K**-power) / (shares_K**-power).mean())
        hit_N = adjusted(probabilities_NK, weights).argmax(axis=1) == labels_N
        gain, error = _recall_gain(own_N, hit_N, labels_N)
        lost = float(own_N.mean() - hit_N.mean())
        if lost <= MOST_LOST and gain > error and (best is None or gain > best[0]):
            best = (gain, lost, power, weights)
    uneven = f"Classes have {least:,} to {most:,} training images"
    if best is None:
        return Balance((), f"{uneven}; no weights make the mean of their recalls better on validation data.")
    gain, lost, power, weights = best
    changed = f"the accuracy by {-100 * lost:+.1f}" if lost else "the accuracy by nothing"
    why = f"{uneven}; rare ones are weighted by their share to the power of {-power:g}, which changes the mean of the "
    return Balance(weights, f"{why}recalls on validation data by {100 * gain:+.1f} points, {changed}.")


def _recall_gain(
    before_N: npt.NDArray[np.bool_], after_N: npt.NDArray[np.bool_], labels_N: Labels
) -> tuple[float, float]:
    """What the mean of the classes' recalls gains, and its standard error, paired by image."""
    changes = [
        after_N[labels_N == label].astype(np.float64) - before_N[labels_N == label] for label in np.unique(labels_N)
    ]
    gain = float(np.mean([each.mean() for each in changes]))
    return gain, float(np.sqrt(sum(each.var() / len(each) for each in changes))) / len(changes)


def log_likelihoods(probabilities_NK: Floats, labels_N: Labels) -> npt.NDArray[np.float64]:
    """The logarithm of the probability of the right class, image by image."""
    own_N = probabilities_NK[np.arange(len(labels_N)), labels_N]
    return np.asarray(np.log(np.maximum(own_N, LEAST)), dtype=np.float64)


def measure(probabilities_NK: Floats, labels_N: Labels, *, seed: int = 0) -> Calibration:
    """How good the probabilities are, with intervals."""
    n = len(labels_N)
    nll_N = -log_likelihoods(probabilities_NK, labels_N)
    own_N = probabilities_NK[np.arange(n), labels_N]
    brier_N = (probabilities_NK.astype(np.float64) ** 2).sum(axis=1) - 2 * own_N + 1
    confidence_N = probabilities_NK.max(axis=1)
    hit_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    counts_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    gap_N = hit_N - confidence_N.astype(np.float64)

    def ece(weights_N: npt.NDArray[np.int64]) -> float:
        return float(np.abs(np.bincount(bin_N, weights=weights_N * gap_N, minlength=BINS)).sum() / n)

    def value(each_N: npt.NDArray[np.float64]) -> Value:
        return _value(float(each_N.mean()), counts_RN @ each_N / n)

    return Calibration(
        images=n,
        nll=value(nll_N),
        brier=value(brier_N),
        ece=_value(ece(np.ones(n, dtype=np.int64)), np.array([ece(counts_N) for counts_N in counts_RN])),
    )


def _value(value: float, resampled_R: npt.NDArray[np.float64]) -> Value:
    low, high = np.quantile(resampled_R, [0.025, 0.975])
    return Value(value=value, low=min(float(low), value), high=max(float(high), value))


def softmax(logits_NK: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Probabilities of logits, row by row, in their type."""
    exponent_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(exponent_NK / exponent_NK.sum(axis=1, keepdims=True))
