"""Which pretrained weights are probed at which sizes, and how many are fine-tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.results import LinearProbe
from fitwithin.planning import prior, transfer
from fitwithin.planning.transfer import Prospect
from simulated.weights import weights

DATA = DataFacts(train=3000, val=300, test=300, classes=10)
TABLE = prior.load()


ALL = [weights("resnet50.a1_in1k", px=288), weights("tf_efficientnet_lite0.in1k"), weights("resnet18.a1_in1k", px=256)]


def prospects(kind: str, sizes: tuple[int, ...] = ()) -> list[Prospect]:
    return transfer.prospects(
        ALL,
        TABLE,
        kind,
        DATA,
        precisions=("amp", "amp-bf16"),
        layouts=("nchw", "channels_last") if kind == "cuda" else ("nchw",),
        sizes=sizes,
    )


def test_a_gpu_takes_the_weights_own_size_and_the_first_precision() -> None:
    found = {each.name: each.candidates for each in prospects("cuda")}
    assert all(len(candidates) == 1 for candidates in found.values())
    assert found["resnet50.a1_in1k"][0].train_px == 288
    assert found["resnet50.a1_in1k"][0].precision == "amp"
    assert found["resnet50.a1_in1k"][0].layout == "channels_last"
    lite = found["tf_efficientnet_lite0.in1k"][0]
    assert (lite.precision, lite.layout, lite.init) == ("amp", "nchw", "tf_efficientnet_lite0.in1k")


def test_a_cpu_may_take_smaller_sizes_in_either_precision() -> None:
    for each in prospects("cpu"):
        sizes = {one.train_px for one in each.candidates}
        assert max(sizes) == next(one.px for one in ALL if one.name == each.name)
        assert min(sizes) < 128
        assert {one.precision for one in each.candidates} == {"amp", "amp-bf16"}


def test_a_size_that_was_named_is_taken() -> None:
    for kind in ("cuda", "cpu"):
        assert {one.train_px for each in prospects(kind, (96, 128)) for one in each.candidates} == {128}


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_the_cheapest_comes_first(kind: str) -> None:
    costs = [each.image_s for each in prospects(kind)]
    assert costs == sorted(costs)


@given(st.lists(st.floats(0.1, 500), min_size=1, max_size=8), st.floats(1, 20_000), st.floats(1, 4))
def test_more_time_never_tunes_fewer_and_each_gets_its_epochs(
    epochs_s: list[float], seconds: float, times: float
) -> None:
    count = transfer.num_tuned(epochs_s, seconds)
    assert 0 <= count <= min(len(epochs_s), transfer.MOST_TUNED)
    assert all(transfer.LEAST_EPOCHS * each <= seconds / count for each in epochs_s[:count])
    assert transfer.num_tuned(epochs_s, seconds * times) >= count


def probe(name: str, correct: int, neighbours: int = 100, pixels: int = 40) -> LinearProbe:
    return LinearProbe(
        candidate=Candidate(model=name.partition(".")[0], train_px=224, precision="amp", init=name),
        correct=correct,
        neighbours_correct=neighbours,
        pixels_correct=pixels,
        images=3000,
        strength=0.01,
        parameters=10**6,
        startup_s=1.0,
        features_s=2.0,
        image_s=0.001,
        head_s=1.0,
        cached=0,
        peak_bytes=10**9,
    )


def test_the_best_on_validation_data_comes_first() -> None:
    ranked = transfer.best_first([probe("a.x", 200), probe("b.x", 250), probe("c.x", 250, neighbours=150)])
    assert [one.candidate.init for one in ranked] == ["c.x", "b.x", "a.x"]


def test_probes_that_take_longer_than_an_image_may_are_left_out_unless_all_do() -> None:
    quick, slow = probe("a.x", 200), replace(probe("b.x", 250), image_s=0.004)
    assert transfer.quick_to_use([quick, slow], None) == [quick, slow]
    assert transfer.quick_to_use([quick, slow], 2.0) == [quick]
    assert transfer.quick_to_use([quick, slow], 0.1) == [quick], "the one that comes nearest"
    assert transfer.quick_to_use([], 1.0) == []


def test_features_that_find_neighbours_by_chance_alone_count_only_if_images_are_few() -> None:
    poor = [probe("a.x", 200, neighbours=45)]
    assert transfer.foreign(poor, DATA) == ""
    assert "many" in transfer.foreign(poor, replace(DATA, train=50_000))
    assert transfer.foreign([*poor, probe("b.x", 100, neighbours=120)], replace(DATA, train=50_000)) == ""


def test_features_that_tell_less_than_pixels_are_of_no_use() -> None:
    digits = [probe("a.x", 285, neighbours=270, pixels=295)]
    assert "90.0 %" in transfer.foreign(digits, DATA)
    assert "98.3 %" in transfer.foreign(digits, DATA)
    photos = [probe("a.x", 280, neighbours=235, pixels=110)]
    assert transfer.foreign(photos, DATA) == ""


def test_fine_tuning_mirrors_only_what_the_recipe_mirrors() -> None:
    tuning = recipes.load("transfer")
    assert tuning.flips
    assert transfer.recipe_for(tuning, recipes.load("fast")).flips
    assert not transfer.recipe_for(tuning, recipes.load("upright")).flips


@given(st.floats(1.5, 80), st.integers(96, 320), st.integers(8, 256))
def test_a_batch_that_seems_to_fit_grows_with_the_memory_and_keeps_the_limit(gib: float, px: int, most: int) -> None:
    backbone = TABLE.of("tf_efficientnet_lite0")
    fits = transfer.likely_batch(backbone, px, int(gib * 2**30), most)
    assert min(most, transfer.GRAIN) <= fits <= most
    assert transfer.likely_batch(backbone, px, int(2 * gib * 2**30), most) >= fits
    assert transfer.likely_batch(backbone, 2 * px, int(gib * 2**30), most) <= fits


def test_the_likely_batch_stays_below_the_largest_that_ran() -> None:
    """tf_efficientnet_lite2 at 260 px: 66 images ran within 6 GiB on an H200, 67 did not."""
    assert 32 <= transfer.likely_batch(TABLE.of("tf_efficientnet_lite2"), 260, 6 * 2**30, 64) <= 64


@given(
    st.lists(st.floats(0.01, 1e4), min_size=1, max_size=5),
    st.integers(2, 50_000),
    st.floats(0, 1e3),
    st.sampled_from(["cuda", "cpu"]),
)
def test_a_profile_is_quick_by_the_time_of_its_steps(
    epochs_s: list[float], train: int, seconds: float, kind: str
) -> None:
    recipe = recipes.load("transfer")
    found = transfer.quick_to_profile(epochs_s, train, recipe, seconds, kind)
    assert recipe.max_batch is not None
    for quick, epoch_s in zip(found, epochs_s, strict=True):
        took_s = transfer.PROFILE_STEPS[kind] * epoch_s * min(1, recipe.max_batch / train)
        if took_s < 0.999 * transfer.SHORT_PROFILE_S or took_s < 0.999 * seconds:
            assert quick
        if took_s > 1.001 * max(seconds, transfer.SHORT_PROFILE_S):
            assert not quick


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ({"crop": 100, "squash": 100}, "crop"),
        ({"crop": 100, "squash": 108}, "crop"),  # within the error
        ({"crop": 100, "squash": 130, "pad": 140}, "pad"),
        ({"crop": 140, "squash": 100, "pad": 90}, "crop"),
    ],
)
def test_pictures_are_cropped_unless_another_way_is_clearly_better(correct: dict[str, int], expected: str) -> None:
    assert transfer.best_fit(correct, 300) == expected
