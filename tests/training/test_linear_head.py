"""Linear heads against scikit-learn's logistic regression, and what holds for every one of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwithin.training import linear_head

# N images, D features, K classes


def blobs(n: int, classes: int, d: int, seed: int, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of classes that overlap, in a random order; the centres are the same for all seeds."""
    centres = torch.from_numpy(np.random.default_rng(7).normal(size=(classes, d)).astype(np.float32))
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]))
    noise = torch.from_numpy(rng.normal(size=(n, d)).astype(np.float32))
    return centres[labels] + spread * noise, labels


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 1.0])
def test_the_weights_are_those_of_scikit_learn(strength: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x_nd, y_n), val = blobs(400, 5, 12, seed=1), blobs(300, 5, 12, seed=2)
    head = linear_head.fit((x_nd, y_n), val, 5, strengths=[strength])
    scaled = ((x_nd - x_nd.mean(0)) / x_nd.std(0)).numpy()
    theirs = linear_model.LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(scaled, y_n.numpy())
    expected = theirs.predict_proba(((val[0] - x_nd.mean(0)) / x_nd.std(0)).numpy())
    np.testing.assert_allclose(head.logits(val[0]).softmax(1).numpy(), expected, atol=2e-3)


def test_the_strength_is_the_one_with_the_smallest_loss_on_validation_images() -> None:
    train, val = blobs(120, 4, 60, seed=3), blobs(600, 4, 60, seed=4)
    losses = {}
    for strength in linear_head.STRENGTHS:
        head = linear_head.fit(train, val, 4, strengths=[strength])
        losses[strength] = float(torch.nn.functional.cross_entropy(head.logits(val[0]), val[1]))
    assert linear_head.fit(train, val, 4).strength == min(losses, key=lambda one: losses[one])


def test_with_few_validation_images_these_do_not_choose() -> None:
    train, val = blobs(300, 4, 30, seed=5), blobs(40, 4, 30, seed=6)
    wrong = val[0], (val[1] + 1) % 4  # labels that would choose the strongest penalty
    assert linear_head.fit(train, val, 4).strength == linear_head.fit(train, wrong, 4).strength


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.floats(0.01, 100), st.floats(-50, 50))
def test_units_of_features_do_not_matter(seed: int, scale: float, shift: float) -> None:
    (x_nd, y_n), val = blobs(90, 3, 6, seed), blobs(220, 3, 6, seed + 1)
    usual = linear_head.fit((x_nd, y_n), val, 3, strengths=[0.1])
    other = linear_head.fit((x_nd * scale + shift, y_n), (val[0] * scale + shift, val[1]), 3, strengths=[0.1])
    ours, theirs = usual.logits(val[0]).softmax(1), other.logits(val[0] * scale + shift).softmax(1)
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_a_constant_feature_and_a_class_with_one_image_do_no_harm() -> None:
    x_nd, y_n = blobs(60, 3, 5, seed=8)
    x_nd[:, 2] = 4.0
    x_nd, y_n = torch.cat([x_nd, torch.zeros(1, 5)]), torch.cat([y_n, torch.tensor([3])])
    head = linear_head.fit((x_nd, y_n), (x_nd, y_n), 4)
    assert bool(torch.isfinite(head.weight_KD).all())
    assert bool(torch.isfinite(head.bias_K).all())


def test_without_time_there_still_is_a_head() -> None:
    train, val = blobs(60, 3, 400, seed=9), blobs(250, 3, 400, seed=10)
    head = linear_head.fit(train, val, 3, until_at=-math.inf)
    assert head.strength == 1e-2
    assert float((head.logits(val[0]).argmax(1) == val[1]).float().mean()) > 0.5


def test_weights_of_classes_are_those_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x_nd, y_n), val = blobs(400, 4, 12, seed=9), blobs(300, 4, 12, seed=10)
    weights = torch.tensor([0.2, 1.0, 1.5, 4.0])
    head = linear_head.fit((x_nd, y_n), val, 4, strengths=[0.1], class_weights=weights)
    scaled = ((x_nd - x_nd.mean(0)) / x_nd.std(0)).numpy()
    theirs = linear_model.LogisticRegression(
        C=0.1, max_iter=5000, tol=1e-8, class_weight=dict(enumerate(weights.tolist()))
    ).fit(scaled, y_n.numpy())
    expected = theirs.predict_proba(((val[0] - x_nd.mean(0)) / x_nd.std(0)).numpy())
    np.testing.assert_allclose(head.logits(val[0]).softmax(1).numpy(), expected, atol=2e-3)
