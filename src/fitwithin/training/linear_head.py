"""Multinomial logistic regression on frozen features, by L-BFGS on the device: a linear probe.

Shape suffixes: N images, D features, K classes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

#: Strengths of the L2 penalty, as scikit-learn's C. The one in the middle is tried first, then its neighbours as far as
#: they are better: on standardised features of photographs it was 0.001 to 0.1.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

#: With fewer validation images than these the strength is chosen by cross-validation in so many FOLDS.
FEW_VALIDATION, FOLDS = 200, 5

#: L-BFGS stops after so many iterations, or when no part of the gradient is larger than TOLERANCE.
ITERATIONS, TOLERANCE = 100, 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """Logits are ``features_ND @ weight_KD.T + bias_K``; ``strength`` is the penalty's C."""

    weight_KD: torch.Tensor  # noqa: N815 - shape suffixes
    bias_K: torch.Tensor  # noqa: N815
    strength: float

    def logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of features [N, D]."""
        return F.linear(x_ND, self.weight_KD, self.bias_K)


def fit(
    train: tuple[torch.Tensor, torch.Tensor],
    val: tuple[torch.Tensor, torch.Tensor],
    classes: int,
    *,
    until_at: float = math.inf,
    strengths: Sequence[float] = STRENGTHS,
    class_weights: torch.Tensor | None = None,
) -> LinearHead:
    """The regression on the ``train`` features [N, D] and labels [N] whose strength has the smallest log loss.

    The loss is that on ``val``, or with few validation images that of FOLDS parts of ``train``, each predicted by a fit
    to the others. No strength but the first is begun after ``until_at`` (monotonic). With ``class_weights`` [K] an
    image's loss counts by its class.
    """
    x_ND, y_N = train
    mean_D, std_D = x_ND.mean(0), x_ND.std(0).clamp_min(1e-6)
    x_ND = (x_ND - mean_D) / std_D
    val_ND = (val[0] - mean_D) / std_D
    if len(val[1]) >= FEW_VALIDATION or len(y_N) < 2 * FOLDS:
        parts = [(x_ND, y_N, val_ND, val[1])]
    else:
        fold_N = torch.arange(len(y_N), device=y_N.device) % FOLDS
        fold_N = fold_N[torch.argsort(torch.argsort(y_N, stable=True))]  # every fold has all classes alike
        parts = [(x_ND[fold_N != n], y_N[fold_N != n], x_ND[fold_N == n], y_N[fold_N == n]) for n in range(FOLDS)]
    losses: dict[float, float] = {}
    fitted: dict[float, list[torch.Tensor]] = {}

    def improves(strength: float, near: float | None) -> bool:
        """Whether the loss with that strength is the smallest so far; the fits begin with those of one ``near`` it."""
        if losses and time.monotonic() >= until_at:
            return False
        before = min(losses.values(), default=math.inf)
        starts = [None] * len(parts) if near is None else fitted[near]
        fits = [
            _minimise(*part[:2], classes, strength, start, class_weights)
            for part, start in zip(parts, starts, strict=True)
        ]
        held = [(part[2:], found) for part, found in zip(parts, fits, strict=True)]
        losses[strength] = sum(
            float(F.cross_entropy(_apply(w, x), y, weight=class_weights, reduction="sum")) for (x, y), w in held
        )
        fitted[strength] = fits
        return losses[strength] < before

    first = len(strengths) // 2
    improves(strengths[first], None)
    for way in (strengths[first:], strengths[first::-1]):
        for near, strength in itertools.pairwise(way):
            if not improves(strength, near):
                break
    best = min(losses, key=lambda strength: losses[strength])
    found = fitted[best][0] if len(parts) == 1 else _minimise(x_ND, y_N, classes, best, None, class_weights)
    weight_KD = found[:, 1:] / std_D
    return LinearHead(weight_KD=weight_KD, bias_K=found[:, 0] - weight_KD @ mean_D, strength=best)


def _apply(theta_KD1: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
    return F.linear(x_ND, theta_KD1[:, 1:], theta_KD1[:, 0])


def _minimise(
    x_ND: torch.Tensor,
    y_N: torch.Tensor,
    classes: int,
    strength: float,
    start: torch.Tensor | None,
    class_weights: torch.Tensor | None,
) -> torch.Tensor:
    """Weights [K, 1 + D], the bias first: the mean cross-entropy plus |weights|^2 / (2 C N) is smallest."""
    theta = torch.zeros(classes, 1 + x_ND.shape[1], device=x_ND.device) if start is None else start.clone()
    theta.requires_grad_()
    penalty = 1 / (2 * strength * len(y_N))
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=ITERATIONS, tolerance_grad=TOLERANCE, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        summed = F.cross_entropy(_apply(theta, x_ND), y_N, weight=class_weights, reduction="sum")
        loss = summed / len(y_N) + penalty * theta[:, 1:].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return theta.detach()
