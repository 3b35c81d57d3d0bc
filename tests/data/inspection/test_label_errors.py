"""Confident learning: cleanlab is the oracle, and planted errors come first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.data.inspection import label_errors


def drawn(seed: int, images: int, classes: int, wrong: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels, and which of them are wrong; every class has images."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    logits = rng.normal(0, 1, (images, classes))
    logits[np.arange(images), truth] += rng.uniform(1, 5, images)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    flipped = rng.random(images) < wrong
    flipped[:classes] = False
    labels = np.where(flipped, (truth + rng.integers(1, classes, images)) % classes, truth)
    return probabilities.astype(np.float32), labels.astype(np.int64), flipped


@given(seed=st.integers(0, 2**31), images=st.integers(40, 200), classes=st.integers(2, 6))
def test_the_joint_is_that_of_cleanlab(seed: int, images: int, classes: int) -> None:
    count = pytest.importorskip("cleanlab.count")
    probabilities, labels, _ = drawn(seed, images, classes)
    theirs = count.compute_confident_joint(labels, probabilities.astype(np.float64), calibrate=False)
    ours = label_errors.confident_joint(probabilities, labels)
    np.testing.assert_array_equal(ours, theirs)


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 6))
def test_the_most_probable_other_class_is_named_with_its_ratio(seed: int, classes: int) -> None:
    probabilities, labels, _ = drawn(seed, 120, classes)
    better, ratios = label_errors.log_ratios(probabilities, labels)
    for row, label, other, ratio in zip(probabilities, labels, better, ratios, strict=True):
        assert row[other] == np.delete(row, label).max()
        assert np.exp(ratio) == pytest.approx(row[other] / row[label], rel=1e-4)


@pytest.mark.parametrize(("classes", "least"), [(10, 0.0), (100, 0.05)])
def test_the_first_ones_are_wrong_more_often_than_those_of_cleanlab(classes: int, least: float) -> None:
    """As many images as have wrong labels, by either order; the more classes, the larger the gain."""
    rank = pytest.importorskip("cleanlab.rank")
    gains = []
    for seed in range(5):
        probabilities, labels, wrong = drawn(seed, 3000, classes, wrong=0.05)
        theirs = rank.get_normalized_margin_for_each_label(labels, probabilities.astype(np.float64))
        _, ratios = label_errors.log_ratios(probabilities, labels)
        count = int(wrong.sum())
        ours = wrong[np.argsort(-ratios, kind="stable")[:count]].mean()
        gains.append(float(ours - wrong[np.argsort(theirs, kind="stable")[:count]].mean()))
    assert np.mean(gains) >= least


def test_wrong_labels_are_suspected_and_the_right_class_is_named() -> None:
    probabilities, labels, wrong = drawn(0, 2000, 5, wrong=0.05)
    found = label_errors.suspect(probabilities, labels)
    hits = wrong[found.positions]
    assert hits.mean() > 0.75
    assert hits.sum() > 0.5 * wrong.sum()
    assert 0.5 * wrong.sum() < found.expected < 2 * wrong.sum()
    assert (found.log_ratios[:-1] >= found.log_ratios[1:]).all()
    assert (found.better != labels[found.positions]).all()


def test_labels_that_the_model_is_sure_of_are_left_alone() -> None:
    probabilities = np.full((20, 2), 0.01, np.float32)
    labels = np.arange(20) % 2
    probabilities[np.arange(20), labels] = 0.99
    found = label_errors.suspect(probabilities, labels)
    assert len(found.positions) == 0
    assert found.expected == 0
    assert label_errors.confusions(probabilities, labels, 3) == []


def test_a_class_without_images_is_no_trouble() -> None:
    probabilities, labels, _ = drawn(1, 100, 3)
    wider = np.concatenate([probabilities * 0.9, np.full((100, 1), 0.1, np.float32)], axis=1)
    assert label_errors.confident_joint(wider, labels).shape == (4, 4)
    assert label_errors.thresholds(wider, labels)[3] == 1


def test_what_is_mixed_up_most_comes_first() -> None:
    labels = np.repeat([0, 1, 2], 10)
    probabilities = np.eye(3, dtype=np.float32)[labels]
    probabilities[:4] = [0, 0.9, 0.1]  # four of class 0 are taken for 1
    probabilities[10] = [0, 0.1, 0.9]
    first, second = label_errors.confusions(probabilities, labels, 5)
    assert first == (0, 1, 4, 20)
    assert second == (1, 2, 1, 20)
