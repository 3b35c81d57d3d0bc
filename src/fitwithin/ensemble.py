"""The multi-resolution ensemble: views (size x flip) of one model, and which of them to average.

Shape suffixes: N images, K classes, V views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, order=True)
class View:
    """One way of looking at an image: its size in pixels, and mirrored or not."""

    px: int
    flip: bool

    @property
    def name(self) -> str:
        """``224 px`` or ``224 px flipped``."""
        return f"{self.px} px flipped" if self.flip else f"{self.px} px"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The views to average, in order of choosing, and why each was taken or left."""

    views: tuple[View, ...]
    why: str
    reasons: dict[View, str]


def views_of(sizes: Sequence[int], *, flips: bool) -> list[View]:
    """Sizes x {plain, flipped}; plain alone where the recipe does not flip (mirrored digits are other digits)."""
    return [View(px=px, flip=flip) for px in sorted(set(sizes)) for flip in ((False, True) if flips else (False,))]


def softmax(logits_NK: Floats) -> Floats:
    """Probabilities of logits, row by row."""
    shifted = logits_NK - logits_NK.max(axis=-1, keepdims=True)
    exponent = np.exp(shifted)
    return np.asarray(exponent / exponent.sum(axis=-1, keepdims=True), dtype=np.float32)


def average(logits: Mapping[View, Floats], views: Sequence[View]) -> Floats:
    """Mean probability over the views (the paper's average of outputs), shape [N, K]."""
    return np.asarray(np.mean([softmax(logits[view]) for view in sorted(views)], axis=0), dtype=np.float32)


def correct(probabilities_NK: Floats, labels_N: npt.NDArray[np.int64]) -> int:
    """How many rows have their largest entry at the label."""
    return int((probabilities_NK.argmax(axis=1) == labels_N).sum())


def choose(
    logits: Mapping[View, Floats],
    labels_N: npt.NDArray[np.int64],
    ms_per_image: Mapping[View, float],
    limit_ms: float | None,
) -> Choice:
    """The views to average: all where no inference limit is set (the paper's ensemble), else greedily by gain.

    With a limit, the best affordable single view comes first; then, while one fits and helps, the view with the
    largest gain in validation accuracy per millisecond. ``labels_N`` must be validation labels, never test labels.
    ``ms_per_image`` of a set of views is the sum of theirs: each is one forward pass.
    """
    views = sorted(logits)
    if limit_ms is None:
        why = f"no inference limit: the average of all {len(views)} views"
        return Choice(views=tuple(views), why=why, reasons=dict.fromkeys(views, "part of the full ensemble"))
    reasons: dict[View, str] = {}
    chosen: list[View] = []
    best = -1
    left_ms = limit_ms
    while True:
        scored = []
        for view in (view for view in views if view not in chosen and ms_per_image[view] <= left_ms):
            score = correct(average(logits, [*chosen, view]), labels_N)
            gain = (score - max(best, 0)) / ms_per_image[view]
            scored.append((score if not chosen else gain, -ms_per_image[view], view, score))
        if not scored:
            break
        _, _, view, score = max(scored)
        if score <= best:
            break
        reasons[view] = f"{score - max(best, 0):+d} of {len(labels_N)} validation images for {ms_per_image[view]:.3g} ms"
        chosen.append(view)
        best, left_ms = score, left_ms - ms_per_image[view]
    for view in views:
        if view not in chosen:
            fits = ms_per_image[view] <= left_ms
            reasons[view] = "no gain on validation data" if fits else f"needs {ms_per_image[view]:.3g} ms, {left_ms:.3g} ms are left"
    spent = limit_ms - left_ms
    why = f"{len(chosen)} of {len(views)} views fit and help: {spent:.3g} of {limit_ms:.3g} ms per image"
    return Choice(views=tuple(chosen), why=why, reasons=reasons)
