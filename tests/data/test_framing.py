"""What a square input shows of a picture: laws of the frames, and of the crops that training draws under them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitwithin import recipe as recipes
from fitwithin.data.batches import sample_crops
from fitwithin.data.framing import BORDER, CROP_MODES, Frame, cut, elongation

SIDES = st.integers(1, 400)
CROPS = st.floats(0.05, 1.0)


def test_every_fit_has_a_name_in_timm() -> None:
    assert set(CROP_MODES) == set(recipes.FITS)


@given(height=SIDES, width=SIDES, crop=CROPS, fit=st.sampled_from(recipes.FITS))
def test_a_frame_lies_in_the_middle_and_has_its_share(height: int, width: int, crop: float, fit: str) -> None:
    left, top, right, bottom = Frame(crop, fit).box(height, width)
    wide, high = right - left, bottom - top
    assert wide >= 1
    assert high >= 1
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    if fit != "squash":
        assert wide == high
    if fit != "pad":
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    wanted = {"crop": min(height, width), "pad": max(height, width), "squash": width}[fit]
    assert abs(wide - crop * wanted) <= 1


@given(height=SIDES, width=SIDES)
def test_pad_and_squash_show_the_whole_picture(height: int, width: int) -> None:
    assert Frame(1.0, "squash").box(height, width) == (0, 0, width, height)
    left, top, right, bottom = Frame(1.0, "pad").box(height, width)
    assert left <= 0 <= width <= right
    assert top <= 0 <= height <= bottom


@given(crop=CROPS, fit=st.sampled_from(recipes.FITS))
def test_a_frame_is_read_as_it_was_written(crop: float, fit: str) -> None:
    frame = Frame(crop, fit)
    assert Frame.parse(str(frame)) == frame
    assert Frame.of_config({"crop_pct": crop, "crop_mode": CROP_MODES[fit]}) == frame


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    left=st.integers(-20, 20),
    top=st.integers(-20, 20),
    wide=st.integers(1, 30),
    high=st.integers(1, 30),
)
def test_what_lies_beyond_the_picture_is_a_border(
    height: int, width: int, left: int, top: int, wide: int, high: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    canvas = Image.new("RGB", (200, 200), BORDER)
    canvas.paste(Image.fromarray(image), (50, 50))
    expected = canvas.crop((50 + left, 50 + top, 50 + left + wide, 50 + top + high))
    assert np.array_equal(cut(image, (left, top, left + wide, top + high)), np.asarray(expected))


@given(
    seed=st.integers(0, 99),
    sizes=st.lists(st.tuples(st.integers(3, 300), st.integers(3, 300)), min_size=1, max_size=20),
    fit=st.sampled_from(recipes.FITS),
)
def test_training_crops_are_parts_of_what_is_shown(seed: int, sizes: list[tuple[int, int]], fit: str) -> None:
    high, wide = (np.array(side, dtype=np.int64) for side in zip(*sizes, strict=True))
    recipe = replace(recipes.load("fast"), fit=fit)
    crops = sample_crops(high, wide, recipe, seed=seed, epoch=0)
    left, top, right, bottom = crops.boxes.T
    own_high, own_wide = high[crops.order], wide[crops.order]
    assert sorted(crops.order) == list(range(len(sizes)))
    assert ((left < right) & (top < bottom)).all()
    longer = np.maximum(own_high, own_wide)
    beyond_w, beyond_h = ((longer - own + 1) // 2 * (fit == "pad") for own in (own_wide, own_high))
    assert ((left >= -beyond_w) & (right <= own_wide + beyond_w)).all()
    assert ((top >= -beyond_h) & (bottom <= own_high + beyond_h)).all()


def test_squashed_crops_reach_the_ends_of_long_pictures() -> None:
    """Of a picture of 40 x 400 pixels, of which plain crops show a tenth at a time."""
    count, recipe = 500, recipes.load("fast")
    high, wide = np.full(count, 40), np.full(count, 400)
    boxes = sample_crops(high, wide, replace(recipe, fit="squash"), seed=0, epoch=0).boxes
    assert boxes[:, 0].min() == 0
    assert boxes[:, 2].max() == 400
    assert (boxes[:, 2] - boxes[:, 0]).mean() > 200
    plain = sample_crops(high, wide, recipe, seed=0, epoch=0).boxes
    assert (plain[:, 2] - plain[:, 0]).max() <= 54


@pytest.mark.parametrize(("sides", "expected"), [([], 1.0), ([(3, 9), (9, 3), (5, 5)], 3.0), ([(4, 3)], 4 / 3)])
def test_elongation_is_the_medians(sides: list[tuple[int, int]], expected: float) -> None:
    high, wide = (np.array([pair[n] for pair in sides], np.int32) for n in (0, 1))
    assert elongation(high, wide) == pytest.approx(expected)
