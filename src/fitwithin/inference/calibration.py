"""Probabilities to trust: one temperature, and how far probabilities are from what happens.

Shape suffixes: N images, K classes, R resamples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fitwithin.inference.quality import BINS, Calibration, Value

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

Labels = npt.NDArray[np.int64]

#: No temperature is fitted to fewer images: its error would be larger than what it mends.
LEAST_IMAGES = 200

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
