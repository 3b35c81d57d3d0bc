"""Which batch an update takes, and which variants are profiled at all: laws of pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.candidate import Candidate, grid
from fitwithin.engine.jobs import batches_to_compare
from fitwithin.engine.results import StepTiming
from fitwithin.profiling.batch_search import KNEE, accum_options, knee
from fitwithin.profiling.variants import pruned, slower, variants_to_compare

RATES = st.dictionaries(st.integers(2, 1000), st.floats(1, 1e5), min_size=1, max_size=6)


@given(largest=st.integers(2, 5000))
def test_smaller_batches_are_halves_and_multiples_of_eight(largest: int) -> None:
    found = batches_to_compare(largest)
    assert all(2 <= batch < largest for batch in found)
    assert all(batch % 8 == 0 or batch == largest // 2 for batch in found)
    assert largest < 4 or largest // 2 in found


@given(rates=RATES)
def test_the_knee_is_the_smallest_batch_near_the_best(rates: dict[int, float]) -> None:
    batch, why = knee(rates)
    best = max(rates.values())
    assert rates[batch] >= KNEE * best
    assert all(rates[other] < KNEE * best for other in rates if other < batch)
    assert why.startswith(f"{batch} reaches")


@given(batch=st.integers(2, 600), largest=st.integers(2, 600))
def test_parts_are_equal_fit_and_are_as_few_as_can_be(batch: int, largest: int) -> None:
    found = accum_options(batch, largest)
    assert all(batch % n == 0 and 2 <= batch // n <= largest for n in found)
    assert found == sorted(found)
    if largest >= batch:
        assert found[0] == 1


def test_a_prime_batch_that_does_not_fit_cannot_be_divided() -> None:
    assert accum_options(257, 100) == []


VARIANTS = grid(["resnet18"], ["amp", "amp-bf16", "fp32", "tf32"], [160], ["nchw", "channels_last"])


@given(data=st.data())
def test_the_best_stays_and_whatever_is_dropped_is_slower_than_the_noise(data: st.DataObject) -> None:
    paces = {
        variant: StepTiming(
            batch=64,
            step_s=data.draw(st.floats(1e-3, 1.0)),
            error_s=data.draw(st.floats(0, 0.1)),
        )
        for variant in data.draw(st.lists(st.sampled_from(VARIANTS), min_size=1, unique=True))
    }
    lost = slower(paces)
    best = paces[min(paces, key=lambda variant: (paces[variant].step_s, variant))]
    assert len(lost) < len(paces)
    for variant, pace in paces.items():
        if variant in lost:
            assert pace.step_s - pace.error_s > best.step_s + best.error_s
            assert "too slow" in lost[variant]
        elif pace is not best:
            assert pace.step_s - pace.error_s <= 1.0201 * (best.step_s + best.error_s)
    noisier = {variant: replace(pace, error_s=pace.error_s + 0.05) for variant, pace in paces.items()}
    assert set(slower(noisier)) <= set(lost)


def test_nothing_measured_loses_nothing() -> None:
    assert slower({}) == {}


def test_variants_are_compared_at_the_smallest_size_and_dropped_at_all() -> None:
    candidates = grid(["resnet18", "resnet50"], ["amp", "fp32"], [224, 160]) + grid(["vgg11"], ["amp"], [160, 224])
    found = variants_to_compare(candidates)
    assert set(found) == {"resnet18", "resnet50"}
    assert all(variant.train_px == 160 for variants in found.values() for variant in variants)
    loser = Candidate(model="resnet18", train_px=160, precision="fp32")
    gone = pruned(candidates, {loser: "too slow"})
    assert {each.candidate.name for each in gone} == {"resnet18-fp32-160", "resnet18-fp32-224"}


@pytest.mark.parametrize(
    ("layout", "name"), [("nchw", "resnet18-amp-160"), ("channels_last", "resnet18-amp-160-channels_last")]
)
def test_a_layout_other_than_the_papers_shows_in_the_name(layout: str, name: str) -> None:
    assert Candidate(model="resnet18", train_px=160, precision="amp", layout=layout).name == name
