"""What is known beforehand: the table that ships, and the laws of what is expected."""

import math
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.candidate import TABLE_2
from fitwithin.planning import prior
from fitwithin.planning.prior import BATCH, IMAGES, PACE_PX, REFERENCES, LearningCurve, ScoredTrial, expected_logits
from fitwithin.planning.stats import Accuracy

TABLE = prior.load()

curves = st.builds(
    LearningCurve,
    overhead_s=st.floats(0, 30),
    images_per_s=st.floats(1, 20_000),
    train_images=st.integers(10, 10**6),
    level=st.floats(-3, 3),
    growth=st.floats(-0.3, 0.3),
    error=st.floats(0.01, 0.5),
    rate=st.floats(0.1, 2),
    knee=st.floats(5, 200),
)


def test_the_table_that_ships_knows_a_broad_pool() -> None:
    assert len(TABLE.tried) >= 32
    assert set(TABLE_2) <= TABLE.backbones.keys()
    assert {name for pair in REFERENCES.values() for name in pair} <= TABLE.backbones.keys()
    text = (resources.files("fitwithin") / "planning" / "prior.csv").read_text(encoding="utf-8")
    assert len(text) <= 100_000
    assert {"date", "made by", "hardware", "without"} <= {
        line[2:].split(": ")[0] for line in text.splitlines() if line.startswith("# ")
    }
    for backbone in TABLE.backbones.values():
        assert backbone.error > 0
        assert backbone.image_us("cuda", 224) > backbone.image_us("cuda", 64) > 0
        assert backbone.image_us("cpu", 224) >= backbone.image_us("cpu", 64) > 0


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_step_of_the_tables_batch_takes_what_its_images_take(kind: str) -> None:
    backbone = TABLE.of("resnet18")
    assert backbone.step_s(kind, BATCH) == pytest.approx(1e-6 * BATCH * backbone.image_us(kind, PACE_PX[kind]))
    assert backbone.step_s(kind, BATCH // 2) < backbone.step_s(kind, BATCH)


def test_an_unknown_backbone_is_like_its_neighbours() -> None:
    unknown = TABLE.of("resnet32t")
    known = [backbone.skill for backbone in TABLE.backbones.values() if backbone.model.startswith("resnet")]
    assert min(known) <= unknown.skill <= max(known)
    assert unknown.error > TABLE.of("resnet26d").error
    large, small = TABLE.of("resnet_x", 40_000_000), TABLE.of("resnet_x", 6_000_000)
    assert large.macs > small.macs


@given(curves, st.floats(0, 1e5), st.floats(0, 1e5))
def test_more_time_is_never_expected_to_do_harm(curve: LearningCurve, one_s: float, other_s: float) -> None:
    few_s, many_s = sorted((one_s, other_s))
    assert curve.logit(few_s) <= curve.logit(many_s) + 0.02
    assert 0 <= curve.share(few_s) <= curve.share(many_s) + 0.005


@given(curves)
def test_nothing_is_expected_of_no_step(curve: LearningCurve) -> None:
    assert curve.logit(curve.overhead_s) == -math.inf


def of(level: float, error: float = 0.15) -> LearningCurve:
    return LearningCurve(
        overhead_s=0,
        images_per_s=IMAGES / 100,
        train_images=10_000,
        level=level,
        growth=0.0,
        error=error,
        rate=1.0,
        knee=15,
    )


def trial(number: int, curve: LearningCurve, correct: int, total: int = 1000) -> ScoredTrial:
    return ScoredTrial(number=number, seconds=10, accuracy=Accuracy(correct=correct, total=total), curve=curve)


def test_equal_results_are_decided_by_what_was_known() -> None:
    found = expected_logits([trial(1, of(0.0), 700), trial(2, of(0.5), 700)], 100)
    assert found[2] > found[1]


def test_a_clear_result_decides_against_what_was_known() -> None:
    found = expected_logits([trial(1, of(0.1), 800), trial(2, of(0.0), 900)], 100)
    assert found[2] > found[1]


def test_a_few_validation_images_decide_less_than_many() -> None:
    def lead(total: int) -> float:
        found = expected_logits([trial(1, of(0.0), total // 2, total), trial(2, of(0.0), total * 6 // 10, total)], 100)
        return found[2] - found[1]

    assert 0 < lead(20) < lead(2000)


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 100)), min_size=1, max_size=6), st.floats(-2, 2))
def test_how_hard_the_data_are_does_not_change_the_order(found: list[tuple[float, int]], harder: float) -> None:
    easy = expected_logits([trial(n, of(level), right, 100) for n, (level, right) in enumerate(found)], 100)
    hard = expected_logits([trial(n, of(level - harder), right, 100) for n, (level, right) in enumerate(found)], 100)
    for number, expected in easy.items():
        assert expected - hard[number] == pytest.approx(harder)
