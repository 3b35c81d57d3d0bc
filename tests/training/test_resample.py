"""Resizing on the device: its weights' laws, PyTorch's own antialiased resizing beside it, and the loader's."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from fitwithin.data.batches import resize
from fitwithin.training.augment import resized, weights

#: A canvas, what its image takes of it, and the side to resize to: up and down, one pixel and all of it.
SIDES = st.integers(1, 70).flatmap(
    lambda side: st.tuples(st.just(side), st.integers(1, side), st.integers(1, side), st.integers(1, 80))
)


def canvas(side: int, seed: int) -> torch.Tensor:
    """One canvas full of noise, [1, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, generator=generator)


def found(x_bhwc: torch.Tensor, height: int, width: int, px: int) -> torch.Tensor:
    """What becomes of one canvas, [P, P, 3]."""
    return resized(x_bhwc, torch.tensor([[height, width]]), px, torch.float32)[0]


@given(side=st.integers(1, 300), px=st.integers(1, 300), shares=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=4))
def test_every_row_of_weights_sums_to_one_and_none_is_outside_the_image(
    side: int, px: int, shares: list[float]
) -> None:
    sizes = torch.tensor([max(1, round(share * side)) for share in shares])
    found_npw = weights(sizes, side, px, torch.float32)
    assert found_npw.shape == (len(sizes), px, side)
    assert float(found_npw.min()) >= 0
    torch.testing.assert_close(found_npw.sum(2), torch.ones(len(sizes), px), rtol=0, atol=1e-5)
    outside = torch.arange(side).view(1, 1, -1) >= sizes.view(-1, 1, 1)
    assert not bool((found_npw * outside).any())


@given(SIDES, st.integers(0, 255), st.integers(0, 99))
def test_an_image_of_one_colour_keeps_it_whatever_else_is_on_the_canvas(
    sides: tuple[int, int, int, int], value: int, seed: int
) -> None:
    side, height, width, px = sides
    x_bhwc = canvas(side, seed)
    x_bhwc[:, :height, :width] = value
    wanted = torch.full((px, px, 3), float(value))
    torch.testing.assert_close(found(x_bhwc, height, width, px), wanted, rtol=0, atol=1e-2)


@given(side=st.integers(1, 90), share=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_an_image_of_the_size_asked_for_stays_as_it_is(side: int, share: float, seed: int) -> None:
    px, x_bhwc = max(1, round(share * side)), canvas(side, seed)
    assert torch.equal(found(x_bhwc, px, px, px), x_bhwc[0, :px, :px].float())


@given(SIDES, st.integers(0, 99))
def test_resizes_as_pytorch_does(sides: tuple[int, int, int, int], seed: int) -> None:
    side, height, width, px = sides
    x_bhwc = canvas(side, seed)
    part = x_bhwc[:, :height, :width].permute(0, 3, 1, 2).float()
    oracle = F.interpolate(part, (px, px), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    torch.testing.assert_close(found(x_bhwc, height, width, px), oracle, rtol=0, atol=1e-2)


@given(SIDES, st.integers(0, 99))
def test_resizes_as_the_loader_does_but_for_its_rounding(sides: tuple[int, int, int, int], seed: int) -> None:
    """The loader rounds to whole numbers after each of two passes, half of one at most each time."""
    side, height, width, px = sides
    x_bhwc = canvas(side, seed)
    oracle = resize(x_bhwc[0].numpy(), (0, 0, width, height), np.empty((px, px, 3), np.uint8))
    assert float((found(x_bhwc, height, width, px) - torch.from_numpy(oracle)).abs().max()) <= 1.1


def test_half_precision_tells_pixels_to_less_than_a_whole() -> None:
    x_bhwc = torch.cat([canvas(64, seed) for seed in range(6)])
    sizes = torch.tensor([[64, 64], [1, 1], [64, 20], [7, 63], [33, 33], [50, 40]])
    whole, half = (resized(x_bhwc, sizes, 40, dtype) for dtype in (torch.float32, torch.float16))
    assert half.dtype is torch.float16
    assert float((half.float() - whole).abs().max()) < 0.5


def test_images_of_a_batch_do_not_reach_into_each_other() -> None:
    x_bhwc = torch.cat([canvas(48, seed) for seed in range(5)])
    sizes = torch.tensor([[48, 48], [1, 30], [20, 48], [31, 17], [32, 32]])
    together = resized(x_bhwc, sizes, 32, torch.float32)
    for n, (height, width) in enumerate(sizes.tolist()):
        torch.testing.assert_close(together[n], found(x_bhwc[n : n + 1], height, width, 32), rtol=0, atol=1e-3)
