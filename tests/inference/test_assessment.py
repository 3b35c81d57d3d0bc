"""How good the answers are: by scikit-learn as the oracle, and by what must hold for any answers."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.inference.assessment import MOST_IN_MATRIX, assess
from fitwithin.inference.ensemble import softmax
from fitwithin.inference.quality import Assessment


def assessed(seed: int, n: int, k: int, temperature: float = 1.0) -> tuple[Assessment, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    rows = softmax((2 * np.eye(k)[labels] + rng.normal(size=(n, k))).astype(np.float32))
    names = [f"class {place}" for place in range(k)]
    paths = [f"{place}.png" for place in range(n)]
    return assess("test", rows, labels, classes=names, paths=paths, temperature=temperature), rows, labels


temperatures = st.sampled_from([1.0, 0.5, 2.0])
problems = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 120), st.integers(2, 8), temperatures)


@given(problems)
def test_recall_precision_and_their_means_are_those_of_scikit_learn(problem: tuple[int, int, int, float]) -> None:
    found, rows, labels = assessed(*problem)
    answers, k = rows.argmax(1), rows.shape[1]
    assert np.array_equal(found.matrix, sklearn.metrics.confusion_matrix(labels, answers, labels=range(k)))
    present = sorted({*labels.tolist()})
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, answers, labels=present, average="macro", zero_division=0.0
    )
    assert (found.macro_precision, found.macro_recall, found.macro_f1) == pytest.approx((precision, recall, f1))
    for place, score in enumerate(found.classes):
        assert (score.recall is None) == (place not in labels)
        assert (score.precision is None) == (place not in answers)
        if score.recall is not None:
            assert score.recall.share == pytest.approx((answers[labels == place] == place).mean())
        if score.precision is not None:
            assert score.precision.share == pytest.approx((labels[answers == place] == place).mean())


@given(problems)
def test_the_surest_are_the_surest_and_all_are_as_good_as_the_accuracy(problem: tuple[int, int, int, float]) -> None:
    found, rows, labels = assessed(*problem)
    assert found.surest[0].right == found.top1
    assert [each.probability for each in found.surest] == sorted(each.probability for each in found.surest)
    assert [each.right.total for each in found.surest] == sorted((e.right.total for e in found.surest), reverse=True)
    wrong = int((rows.argmax(1) != labels).sum())
    assert len(found.mistakes) == min(wrong, 24)
    sure = [mistake.probability for mistake in found.mistakes]
    assert sure == sorted(sure, reverse=True)
    for mistake in found.mistakes:
        place = int(mistake.path.removesuffix(".png"))
        assert mistake.truth == f"class {labels[place]}" != mistake.answer == f"class {rows[place].argmax()}"
    assert sum(pair.count for pair in found.confusions) <= wrong
    assert all(pair.truth != pair.answer for pair in found.confusions)


@given(problems)
def test_a_temperature_changes_probabilities_alone(problem: tuple[int, int, int, float]) -> None:
    found, _, _ = assessed(*problem)
    plain, _, _ = assessed(*problem[:3])
    assert (found.top1, found.matrix, found.classes) == (plain.top1, plain.matrix, plain.classes)
    assert found.raw == plain.calibrated
    assert (found.calibrated == found.raw) == (problem[3] == 1.0)


def test_of_many_classes_there_is_no_matrix() -> None:
    assert assessed(0, 100, MOST_IN_MATRIX)[0].matrix
    assert not assessed(0, 100, MOST_IN_MATRIX + 1)[0].matrix
