"""Laws of the ensemble: averages, and the choice of views with and without a limit."""

# N images, K classes, V views

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.candidate import View, by_size, describe, views_of
from fitwithin.inference.calibration import fit_temperature, log_likelihoods, tempered
from fitwithin.inference.ensemble import Choice, average, choose, correct, softmax

VIEWS = views_of([160, 224], flips=True)
seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, n: int = 60, k: int = 4, sharp: float = 1.5) -> tuple[dict[View, np.ndarray], np.ndarray]:
    """Logits of views of unlike skill on the same images, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    truth = np.eye(k)[labels] * sharp
    skills = rng.uniform(-0.3, 1.5, len(VIEWS))
    logits = {
        view: (skill * truth + rng.normal(size=(n, k))).astype(np.float32)
        for view, skill in zip(VIEWS, skills, strict=True)
    }
    return logits, labels


def hits(logits: dict[View, np.ndarray], views: tuple[View, ...], labels: np.ndarray) -> int:
    return correct(average(logits, views), labels)


@given(seeds)
def test_the_average_of_identical_views_is_the_view(seed: int) -> None:
    logits, _ = problem(seed)
    one = logits[VIEWS[0]]
    same = dict.fromkeys(VIEWS, one)
    np.testing.assert_allclose(average(same, VIEWS), softmax(one), atol=1e-6)


@given(seeds, st.permutations(VIEWS))
def test_the_order_of_views_does_not_matter(seed: int, order: list[View]) -> None:
    logits, _ = problem(seed)
    np.testing.assert_array_equal(average(logits, VIEWS), average(dict(reversed(logits.items())), order))


@given(seeds)
def test_swapping_a_view_with_its_mirror_changes_nothing(seed: int) -> None:
    logits, labels = problem(seed)
    mirrored = {View(px=view.px, flip=not view.flip): rows for view, rows in logits.items()}
    np.testing.assert_allclose(average(logits, VIEWS), average(mirrored, VIEWS), atol=1e-6)
    assert hits(logits, tuple(VIEWS), labels) == hits(mirrored, tuple(VIEWS), labels)


@given(seeds, st.floats(-1e4, 1e4))
def test_probabilities_sum_to_one_and_do_not_mind_a_shift(seed: int, shift: float) -> None:
    rows = problem(seed)[0][VIEWS[0]]
    probabilities = softmax(rows)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(softmax(rows + np.float32(shift)), probabilities, atol=5e-3)
    assert np.isfinite(softmax(rows * np.float32(1e30))).all()


@given(st.lists(st.integers(8, 512), min_size=1, max_size=4), st.booleans())
def test_views_are_sizes_by_flips(sizes: list[int], flips: bool) -> None:
    views = views_of(sizes, flips=flips)
    assert len(views) == len(set(views)) == len(set(sizes)) * (2 if flips else 1)
    assert views == sorted(views)


def test_views_are_evaluated_from_the_training_size_on() -> None:
    views = [view for view in views_of([128, 160, 192], flips=True) if view.name != "192 px flipped"]
    names = [[view.name for view in same] for same in by_size(views[::-1], 160)]
    assert names == [["160 px", "160 px flipped"], ["192 px"], ["128 px", "128 px flipped"]]


@pytest.mark.parametrize(
    ("views", "text"),
    [
        (VIEWS, "160 + 224 with flips"),
        (VIEWS[:2], "160 with flips"),
        ([VIEWS[2], VIEWS[0]], "160 + 224"),
        ([VIEWS[3], VIEWS[0]], "160 px, 224 px flipped"),
        ([VIEWS[1]], "160 px flipped"),
    ],
)
def test_views_in_a_word(views: list[View], text: str) -> None:
    assert describe(views) == text


def check(choice: Choice, logits: dict[View, np.ndarray]) -> None:
    assert choice.views
    assert len(set(choice.views)) == len(choice.views)
    assert set(choice.views) <= set(logits)
    assert choice.why


def likelihood(logits: dict[View, np.ndarray], views: tuple[View, ...], labels: np.ndarray) -> np.ndarray:
    """Of each image, at the best temperature."""
    mean = average(logits, views)
    return log_likelihoods(tempered(mean, fit_temperature(mean, labels)), labels)


@given(seeds)
def test_without_a_limit_all_views_stay_unless_one_clearly_harms(seed: int) -> None:
    logits, labels = problem(seed)
    choice = choose(logits, labels, dict.fromkeys(logits, 1.0), None)
    check(choice, logits)
    assert set(choice.reasons) == set(logits)
    before = likelihood(logits, choice.views, labels)
    assert before.mean() >= likelihood(logits, tuple(VIEWS), labels).mean() - 1e-6
    for view in choice.views:
        rest = tuple(other for other in choice.views if other != view)
        if rest:
            gain = likelihood(logits, rest, labels) - before
            assert gain.mean() <= gain.std() / np.sqrt(len(gain)) + 1e-6


def test_a_view_that_harms_is_left_out_and_told() -> None:
    logits, labels = problem(0)
    good = (np.eye(4)[labels] * 3).astype(np.float32)
    harmful = (np.eye(4)[(labels + 1) % 4] * 30).astype(np.float32)
    logits = dict.fromkeys(VIEWS[:3], good) | {VIEWS[3]: harmful}
    logits[VIEWS[3]] = harmful
    weak = {view: rows * np.float32(0.1) for view, rows in logits.items()} | {VIEWS[3]: harmful}
    choice = choose(weak, labels, {}, None)
    assert choice.views == tuple(VIEWS[:3])
    assert choice.reasons[VIEWS[3]].startswith("left out: the log-likelihood on validation data is")
    assert "3 of 4 views that do not harm" in choice.why


def test_equal_views_all_stay() -> None:
    logits, labels = problem(1)
    same = dict.fromkeys(VIEWS, logits[VIEWS[0]])
    assert choose(same, labels, {}, None).views == tuple(VIEWS)


costs = st.lists(st.floats(0.1, 5), min_size=4, max_size=4)


@given(seeds, costs, st.floats(0.05, 25))
def test_with_a_limit_it_is_never_exceeded(seed: int, each: list[float], limit_ms: float) -> None:
    logits, labels = problem(seed)
    ms = dict(zip(VIEWS, each, strict=True))
    choice = choose(logits, labels, ms, limit_ms)
    check(choice, logits)
    if min(each) > limit_ms:
        assert choice.views == (min(VIEWS, key=lambda view: (ms[view], view)),)
        assert "more than the" in choice.why
        return
    assert sum(ms[view] for view in choice.views) <= limit_ms * (1 + 1e-12)
    assert set(choice.reasons) == set(logits)


@given(seeds, costs, st.floats(0.05, 25))
def test_it_is_at_least_as_good_as_the_best_single_view_that_fits(
    seed: int, each: list[float], limit_ms: float
) -> None:
    """Against brute force; and the best set bounds what greed can lose."""
    logits, labels = problem(seed)
    ms = dict(zip(VIEWS, each, strict=True))
    fitting = [view for view in VIEWS if ms[view] <= limit_ms]
    if not fitting:
        return
    chosen = likelihood(logits, choose(logits, labels, ms, limit_ms).views, labels).mean()
    assert chosen >= max(likelihood(logits, (view,), labels).mean() for view in fitting) - 1e-6
    subsets = [s for r in range(1, 5) for s in combinations(VIEWS, r) if sum(ms[v] for v in s) <= limit_ms]
    assert chosen <= max(likelihood(logits, subset, labels).mean() for subset in subsets) + 1e-6


@given(seeds, costs)
def test_among_equal_views_the_cheapest_is_taken_alone(seed: int, each: list[float]) -> None:
    logits, labels = problem(seed)
    ms = dict(zip(VIEWS, each, strict=True))
    choice = choose(dict.fromkeys(VIEWS, logits[VIEWS[0]]), labels, ms, 100.0)
    assert [ms[view] for view in choice.views] == [min(each)]
    assert [choice.reasons[v] for v in VIEWS if v not in choice.views] == ["no gain on validation data"] * 3


def with_members(
    seed: int, skill: float, n: int = 200, k: int = 4
) -> tuple[dict[View, np.ndarray], np.ndarray, list[View]]:
    """Logits of a winner, and of two other members that err independently; the views of the others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    others = [View(px=160, flip=False, member=member) for member in (1, 2)]
    skills = {VIEWS[0]: 1.5} | dict.fromkeys(others, skill)
    logits = {
        view: (how_good * np.eye(k)[labels] + rng.normal(size=(n, k))).astype(np.float32)
        for view, how_good in skills.items()
    }
    return logits, labels, others


@given(seeds)
def test_members_that_are_as_good_and_err_elsewhere_join(seed: int) -> None:
    logits, labels, others = with_members(seed, 1.5)
    choice = choose(logits, labels, dict.fromkeys(logits, 1.0), None)
    assert {view.member for view in choice.views} >= {0}
    assert set(choice.views) & set(others)
    assert likelihood(logits, choice.views, labels).mean() > likelihood(logits, (VIEWS[0],), labels).mean()
    assert "no part in choosing" in choice.why
    assert set(choice.reasons) == set(logits)
    assert "other model" in describe(choice.views)


@given(seeds)
def test_members_that_know_nothing_do_not_join(seed: int) -> None:
    logits, labels, others = with_members(seed, 0.0, n=400)
    choice = choose(logits, labels, dict.fromkeys(logits, 1.0), None)
    assert choice.views == (VIEWS[0],)
    assert all("add nothing" in choice.reasons[view] or "left out" in choice.reasons[view] for view in others)


@given(seeds, st.floats(1.0, 4.0))
def test_members_keep_the_inference_limit(seed: int, limit_ms: float) -> None:
    logits, labels, _ = with_members(seed, 1.5)
    costs = {view: 1.0 + 0.5 * view.member for view in logits}
    choice = choose(logits, labels, costs, limit_ms)
    assert sum(costs[view] for view in set(choice.views)) <= limit_ms


def test_a_view_that_counts_twice_weighs_twice() -> None:
    logits, _, (other, _) = with_members(0, 1.5)
    own, twice = VIEWS[0], average(logits, (VIEWS[0], other, other))
    np.testing.assert_allclose(twice, (softmax(logits[own]) + 2 * softmax(logits[other])) / 3, atol=1e-6)
