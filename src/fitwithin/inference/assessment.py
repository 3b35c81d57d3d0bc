"""How good a model's answers are on labelled images: class by class, by how sure it is, and its surest mistakes.

Shape suffixes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fitwithin.inference.calibration import Labels, measure, tempered
from fitwithin.inference.quality import Assessment, ClassScore, Confusion, Mistake, Surest
from fitwithin.planning.stats import Accuracy

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

#: Shares of the images, those that the model is surest of.
SUREST = (1.0, 0.95, 0.9, 0.8, 0.5)

#: So many pairs of classes that are mixed up are listed, and so many mistakes.
MOST_CONFUSIONS, MOST_MISTAKES = 12, 24

#: A matrix of all pairs is kept of no more classes.
MOST_IN_MATRIX = 50


def assess(
    split: str,
    probabilities_NK: Floats,
    labels_N: Labels,
    *,
    classes: Sequence[str],
    paths: Sequence[str],
    temperature: float,
) -> Assessment:
    """Assess the probabilities, not tempered yet, of the images at ``paths`` by their labels."""
    final_NK = tempered(probabilities_NK, temperature)
    answers_N, sure_N = final_NK.argmax(axis=1), final_NK.max(axis=1)
    hits_N, k = answers_N == labels_N, len(classes)
    matrix_KK = np.zeros((k, k), dtype=np.int64)
    np.add.at(matrix_KK, (labels_N, answers_N), 1)
    right_K, there_K, named_K = np.diag(matrix_KK), matrix_KK.sum(axis=1), matrix_KK.sum(axis=0)
    present = there_K > 0
    recall_K = right_K / np.maximum(1, there_K)
    precision_K = right_K / np.maximum(1, named_K)
    f1_K = 2 * recall_K * precision_K / np.maximum(1e-12, recall_K + precision_K)
    mixed_KK = matrix_KK - np.diag(right_K)
    pairs = np.argsort(-mixed_KK, axis=None, kind="stable")[:MOST_CONFUSIONS]
    order_N = np.argsort(-sure_N, kind="stable")
    wrong = order_N[~hits_N[order_N]][:MOST_MISTAKES]
    return Assessment(
        split=split,
        temperature=temperature,
        top1=Accuracy(correct=int(hits_N.sum()), total=len(labels_N)),
        macro_recall=float(recall_K[present].mean()),
        macro_precision=float(precision_K[present].mean()),
        macro_f1=float(f1_K[present].mean()),
        raw=measure(probabilities_NK, labels_N),
        calibrated=measure(final_NK, labels_N),
        classes=tuple(
            ClassScore(name=name, recall=_share(right, there), precision=_share(right, named))
            for name, right, there, named in zip(
                classes, right_K.tolist(), there_K.tolist(), named_K.tolist(), strict=True
            )
        ),
        confusions=tuple(
            Confusion(truth=classes[place // k], answer=classes[place % k], count=int(mixed_KK.flat[place]))
            for place in map(int, pairs)
            if mixed_KK.flat[place]
        ),
        surest=tuple(_surest(share, sure_N[order_N], hits_N[order_N]) for share in SUREST),
        mistakes=tuple(
            Mistake(
                path=paths[i], truth=classes[labels_N[i]], answer=classes[answers_N[i]], probability=float(sure_N[i])
            )
            for i in map(int, wrong)
        ),
        matrix=tuple(tuple(map(int, row)) for row in matrix_KK) if k <= MOST_IN_MATRIX else (),
    )


def _share(correct: int, total: int) -> Accuracy | None:
    return Accuracy(correct=correct, total=total) if total else None


def _surest(share: float, sure_N: Floats, hits_N: Labels) -> Surest:
    """Of the images in order, the surest first."""
    count = max(1, round(share * len(sure_N)))
    right = Accuracy(correct=int(hits_N[:count].sum()), total=count)
    return Surest(share=share, probability=float(sure_N[count - 1]), right=right)
