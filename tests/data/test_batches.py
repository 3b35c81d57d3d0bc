"""The loader's laws: crops like torchvision's, pixels like Pillow's, a batch that is a function of its number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitwithin import recipe as recipes
from fitwithin.data.batches import TrainBatches, balanced_order, dummy_batch, resize, sample_crops
from fitwithin.data.pack import Pack
from fitwithin.training.augment import resized


def images(n: int = 7) -> Pack:
    """``n`` random images of several sizes, one split, as a pack that was never on a disk."""
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(20, 60, n, dtype=np.int32), rng.integers(20, 60, n, dtype=np.int32)
    sizes = heights.astype(np.int64) * widths * 3
    return Pack(
        folder=None,  # type: ignore[arg-type]
        shorter_px=60,
        classes=("a", "b"),
        fingerprint="",
        broken=(),
        paths=tuple(map(str, range(n))),
        offsets=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64),
        heights=heights,
        widths=widths,
        labels=np.arange(n, dtype=np.int64) % 2,
        split_codes=np.zeros(n, np.uint8),
        crcs=np.zeros(n, np.uint32),
        pixels=rng.integers(0, 256, int(sizes.sum()), dtype=np.uint8),
    )


@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    px=st.integers(4, 80),
    seed=st.integers(0, 2**16),
)
def test_resizes_as_pillow_does(height: int, width: int, px: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top = int(rng.integers(0, width - 4)), int(rng.integers(0, height - 4))
    box = (left, top, int(rng.integers(left + 4, width + 1)), int(rng.integers(top + 4, height + 1)))
    oracle = np.asarray(Image.fromarray(image).crop(box).resize((px, px), Image.Resampling.BILINEAR))
    found = resize(image, box, np.empty((px, px, 3), np.uint8))
    assert np.abs(found.astype(int) - oracle.astype(int)).max() <= 3


@given(
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
    sizes=st.lists(st.tuples(st.integers(3, 300), st.integers(3, 300)), min_size=1, max_size=20),
)
def test_crops_lie_within_their_images_and_every_image_comes_once(
    seed: int, epoch: int, sizes: list[tuple[int, int]]
) -> None:
    high, wide = (np.array(side, dtype=np.int64) for side in zip(*sizes, strict=True))
    crops = sample_crops(high, wide, recipes.load("paper"), seed=seed, epoch=epoch)
    left, top, right, bottom = crops.boxes.T
    assert sorted(crops.order) == list(range(len(sizes)))
    assert ((left >= 0) & (left < right) & (right <= wide[crops.order])).all()
    assert ((top >= 0) & (top < bottom) & (bottom <= high[crops.order])).all()


@pytest.mark.parametrize("fit", recipes.FITS)
@pytest.mark.parametrize("canvas_px", [24, 40, 60], ids=["few fit", "most fit", "all fit"])
def test_what_lies_on_canvases_is_what_would_have_been_resized(canvas_px: int, fit: str) -> None:
    """The same images and crops; the device's resizing rounds once less. Crops that are too large were resized here."""
    pack, px, batch = images(), 20, 28
    described = {"px": px, "batch": batch, "seed": 5, "first_step": 0, "steps": 9}
    recipe = replace(recipes.load("paper"), fit=fit)
    plain = TrainBatches(pack, recipe, **described)
    canvases = TrainBatches(pack, recipe, canvas_px=canvas_px, **described)
    assert (canvases.px, canvases.label_shape, len(canvases)) == (canvas_px, (batch, 3), len(plain))
    assert (plain.px, plain.label_shape) == (px, (batch,))
    (labels, fill), (told, fill_canvases) = plain.prepare(1), canvases.prepare(1)
    assert told.dtype == labels.dtype
    assert (told[:, 0] == labels).all()
    found = np.full((batch, px, px, 3), 7, np.uint8)
    fill(found, range(batch))
    x_bhwc = np.full((batch, canvas_px, canvas_px, 3), 7, np.uint8)  # what an earlier batch left there
    fill_canvases(x_bhwc, range(batch))
    on_device = resized(torch.from_numpy(x_bhwc), torch.from_numpy(told[:, 1:]), px, torch.float32)
    assert np.abs(on_device.numpy() - found).max() <= 1.1
    too_large = (told[:, 1:] == px).all(axis=1)
    assert too_large.any() == (canvas_px < 60)
    assert (x_bhwc[too_large, :px, :px] == found[too_large]).all()


def test_a_canvas_has_room_for_what_is_resized_here() -> None:
    with pytest.raises(AssertionError, match="must have room"):
        TrainBatches(images(), recipes.load("paper"), px=32, canvas_px=24, batch=2, seed=0, first_step=0, steps=1)


@pytest.mark.parametrize("canvas_px", [None, 40])
def test_a_dummy_batch_has_the_shapes_of_a_real_one(canvas_px: int | None) -> None:
    described = {"px": 24, "batch": 6, "seed": 0, "first_step": 0, "steps": 1, "canvas_px": canvas_px}
    real = TrainBatches(images(), recipes.load("paper"), **described)
    x, y = dummy_batch(24, 6, 2, 0, canvas_px)
    assert tuple(x.shape) == (real.size, real.px, real.px, 3)
    assert tuple(y.shape) == real.label_shape
    assert y.dtype == torch.int64
    if canvas_px:
        assert 1 <= int(y[:, 1:].min()) <= int(y[:, 1:].max()) <= canvas_px
        assert int(y[:, 0].max()) < 2


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**16))
def test_balanced_classes_come_equally_often_and_no_image_much_more_often(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(labels, np.random.default_rng(seed))
    assert len(order) == len(labels)
    drawn = np.bincount(labels[order], minlength=len(counts))
    assert drawn.max() - drawn.min() <= 1
    for label in range(len(counts)):
        own = np.bincount(order, minlength=len(labels))[labels == label]
        assert own.max() - own.min() <= 1, "each comes before any comes once more"
