"""Temperature and the quality of probabilities: against scipy, scikit-learn and plain definitions."""

import numpy as np
import pytest
import scipy.optimize
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.inference.calibration import (
    MOST_LOST,
    adjusted,
    choose_balance,
    fit_temperature,
    log_likelihoods,
    measure,
    tempered,
)
from fitwithin.inference.ensemble import softmax
from fitwithin.inference.quality import BINS

seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, n: int = 300, k: int = 5, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right about as often as they say at a factor of 1, and labels."""
    rng = np.random.default_rng(seed)
    logits = sharp * rng.normal(size=(n, k))
    rows = softmax(logits)
    labels = (rng.random(n)[:, None] > rows.cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    return rows, labels


@given(seeds, st.floats(0.1, 8))
def test_the_temperature_is_the_best_one(seed: int, factor: float) -> None:
    true, labels = problem(seed)
    given_ = tempered(true, 1 / factor)
    found = fit_temperature(given_, labels)

    def loss(log_t: float) -> float:
        return -float(log_likelihoods(tempered(given_, float(np.exp(log_t))), labels).mean())

    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").fun
    assert loss(np.log(found)) <= best + 1e-4


@given(seeds)
def test_of_honest_probabilities_it_is_about_one_and_undoes_a_factor(seed: int) -> None:
    true, labels = problem(seed, n=3000)
    assert fit_temperature(true, labels) == pytest.approx(1.0, abs=0.15)
    assert fit_temperature(tempered(true, 0.5), labels) == pytest.approx(2.0, rel=0.15)


@given(seeds, st.floats(0.2, 5))
def test_a_temperature_changes_no_answer_and_keeps_the_sum(seed: int, temperature: float) -> None:
    true, _ = problem(seed)
    found = tempered(true, temperature)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == true.argmax(axis=1)).all()


@pytest.mark.parametrize("right", [True, False])
def test_where_all_are_right_or_wrong_it_stays_finite(right: bool) -> None:
    rows = np.tile(np.array([0.9, 0.1], dtype=np.float32), (50, 1))
    temperature = fit_temperature(rows, np.full(50, 0 if right else 1))
    assert 0.04 < temperature < 21
    assert np.isfinite(tempered(rows, temperature)).all()


@given(seeds, st.sampled_from([1, 7, 300]))
def test_the_figures_are_those_of_scikit_learn_and_the_definition(seed: int, n: int) -> None:
    rows, labels = problem(seed, n=n)
    found = measure(rows, labels)
    assert found.nll.value == pytest.approx(sklearn.metrics.log_loss(labels, rows, labels=range(5)), rel=1e-4)
    assert found.brier.value == pytest.approx(((rows - np.eye(5)[labels]) ** 2).sum(1).mean(), rel=1e-4)
    sure, hit = rows.max(1), rows.argmax(1) == labels
    ece = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (sure >= low) & (sure < low + 1 / BINS) if low < 1 - 1 / BINS else sure >= low
        ece += abs(float((hit[inside] - sure[inside]).sum())) / n
    assert found.ece.value == pytest.approx(ece, abs=0.02)
    for value in (found.nll, found.brier, found.ece):
        assert value.low <= value.value <= value.high


def test_the_interval_covers_what_holds_for_many_images() -> None:
    """In about 95 of 100 samples."""
    rows, labels = problem(0, n=60_000)
    whole = measure(rows, labels).nll.value
    samples = [measure(rows[i : i + 300], labels[i : i + 300]).nll for i in range(0, 60_000, 300)]
    assert 180 <= sum(one.low <= whole <= one.high for one in samples) <= 199


def skewed(seed: int, train: tuple[int, ...], val: int) -> tuple[np.ndarray, np.ndarray]:
    """Honest probabilities of a classifier that has seen so many images of each class, and labels drawn alike."""
    rng, k = np.random.default_rng(seed), len(train)
    labels = rng.integers(0, k, val)
    logits = rng.normal(size=(val, k)) + 1.5 * np.eye(k)[labels] + np.log(np.array(train) / sum(train))
    return softmax(logits.astype(np.float32)), labels


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_weights_of_classes_change_odds_and_keep_the_sum(seed: int, weight: float) -> None:
    rows, _ = skewed(seed, (5, 5, 5), 20)
    found = adjusted(rows, (weight, 1.0, 1.0))
    assert found.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    assert found[:, 0] / found[:, 1] == pytest.approx(weight * rows[:, 0] / rows[:, 1], rel=1e-3)
    assert adjusted(rows, ()) is rows


@given(st.integers(0, 10_000), st.lists(st.integers(1, 1000), min_size=2, max_size=6), st.integers(20, 300))
def test_weights_never_cost_more_accuracy_than_allowed_and_always_pay(seed: int, train: list[int], val: int) -> None:
    rows, labels = skewed(seed, tuple(train), val)
    found = choose_balance(rows, labels, np.array(train))
    if not found.class_weights:
        return

    def scores(probabilities: np.ndarray) -> tuple[float, float]:
        answers = probabilities.argmax(axis=1)
        recall = sklearn.metrics.recall_score(labels, answers, labels=np.unique(labels), average="macro")
        return float((answers == labels).mean()), float(recall)

    before, after = scores(rows), scores(adjusted(rows, found.class_weights))
    assert after[0] >= before[0] - MOST_LOST - 1e-9
    assert after[1] > before[1]
    order = np.argsort(train, kind="stable")
    assert all(np.diff(np.array(found.class_weights)[order]) <= 1e-9), "the rarer, the heavier"


def test_what_a_skewed_training_hides_is_found_again() -> None:
    rows, labels = skewed(1, (1000, 100, 10), 3000)
    found = choose_balance(rows, labels, np.array([1000, 100, 10]))
    answers = adjusted(rows, found.class_weights).argmax(axis=1)
    before = sklearn.metrics.recall_score(labels, rows.argmax(axis=1), average="macro")
    assert sklearn.metrics.recall_score(labels, answers, average="macro") > before + 0.1
    assert "10 to 1,000 training images" in found.why


def test_classes_of_about_the_same_size_are_left_alone() -> None:
    rows, labels = skewed(2, (100, 90, 60), 500)
    assert choose_balance(rows, labels, np.array([100, 90, 60])).class_weights == ()
